"""BEiT (Bao et al. 2022; microsoft/unilm beit/modeling_pretrain.py, engine_for_pretraining.py) around a ViT.

Blocks of patches become a mask token, and the model says which code a frozen tokenizer gives to each of them. The tokenizer
looks at a second view of the same crop, whose grid of codes is the grid of patches.
"""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from vit_jax import sharding
from vit_jax.contracts import Config, UserError
from vit_jax.derived import second_crop
from vit_jax.methods.drawing import coloured, visible
from vit_jax.methods.masked import Masked, outputs, over
from vit_jax.methods.method import Drawing, Frozen, Inputs, Means, Method, Objective
from vit_jax.models.dvae import DVAE, dvae_config, most_likely, tokens
from vit_jax.models.layers import INITS
from vit_jax.models.registry import pair, vit_config
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.masks import beit_mask, take
from vit_jax.ops.means import Mean
from vit_jax.ops.pixels import normalise

SHARE, SMALLEST = 75 / 196, 16 / 196  # of the patches: hidden at most, and in a block at least


def masking(config: Config) -> tuple[tuple[int, int], int, int]:
    """(grid, most patches hidden, patches of the smallest block): the paper's 75 and 16 of 196 unless set.

    Raises:
      UserError: as many as there are, or a block larger than what is hidden.
    """
    section, grid = config["beit"], vit_config(config, num_classes=None).grid
    patches = grid[0] * grid[1]
    most = max(1, round(SHARE * patches)) if section["num_masked"] is None else section["num_masked"]
    least = max(1, round(SMALLEST * patches)) if section["min_block"] is None else section["min_block"]
    if not least <= most < patches:
        raise UserError(
            f"Expected beit.min_block <= beit.num_masked < {patches} patches, got {least} and {most}: change either."
        )
    if least > (grid[0] - 1) * (grid[1] - 1):
        raise UserError(
            f"Expected a block of beit.min_block {least} patches that leaves a row and a column of {grid[0]} x {grid[1]} "
            "patches, as all blocks do, there is none: lower beit.min_block, or take larger pictures or smaller patches."
        )
    return grid, most, least


def hidden_blocks(keys: Key[Array, " b"], config: Config) -> Bool[Array, "b n"]:
    """Hidden patches an example, by `config.beit`."""
    return sharding.apart(lambda some: beit_mask(some, *masking(config)), keys)


def fits(theirs: Config, config: Config) -> None:
    """Raise `UserError` where a tokenizer gives other codes, or another grid of them, than the run asks for."""
    where = f"config.beit.tokenizer={config['beit']['tokenizer']}"
    if theirs["objective"] != "tokenizer":
        raise UserError(
            f"Expected a tokenizer, {where} was trained with objective {theirs['objective']!r}: give another."
        )
    cfg = dvae_config(theirs)
    if cfg.channels != config["pp"]["channels"]:
        raise UserError(
            f"Expected a tokenizer for pictures of {config['pp']['channels']} channels, {where} takes {cfg.channels}: give "
            "another, or change pp.channels."
        )
    if cfg.vocab_size != config["beit"]["vocab_size"]:
        raise UserError(
            f"Expected a tokenizer of {config['beit']['vocab_size']} codes, {where} has {cfg.vocab_size}: set "
            f"beit.vocab_size={cfg.vocab_size}, or give another."
        )
    grid, second = vit_config(config, num_classes=None).grid, second_crop(config["pp"])
    wanted = grid[0] * cfg.factor, grid[1] * cfg.factor
    if second != wanted:
        crop = pair(config["pp"]["crop"])
        shares = {wanted[0] / crop[0], wanted[1] / crop[1]}
        advice = f"set pp.second_share={min(shares):g}" if len(shares) == 1 else "take square patches"
        raise UserError(
            f"Expected a code for each of {grid[0]} x {grid[1]} patches, {where} takes pictures of {wanted[0]} x {wanted[1]} "
            f"for that, got {f'{second[0]} x {second[1]}' if second else 'no second view'}: {advice}."
        )


def codes_alone(theirs: Config) -> Config:
    """A tokenizer without its decoder, which draws figures and is asked by no step."""
    made: Any = copy.deepcopy(theirs)
    made["tokenizer"]["decoder_width"] = None
    return made


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> Masked:
    """Classes are not asked for."""
    cfg = vit_config(config, num_classes=None)
    return Masked(cfg, config["beit"]["vocab_size"], head_init=INITS["beit"].kernel, rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """Cross-entropy with the codes of hidden patches, a mean over all of the batch; pictures may hide different numbers.

    `accuracy` is the share of hidden patches whose code is the likeliest.
    """
    pp, (_, most, _) = config["pp"], masking(config)

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        keys = fold(jax.random.split(key, batch.image.shape[0]), 1)
        return {
            "images": normalise(batch.image, pp["mean"], pp["std"]),
            "hidden": hidden_blocks(keys, config),
            "second": normalise(batch.second, (0.0,), (1.0,)),
            "weight": batch.weight,
        }

    def consult(inputs: Inputs, tokenizer: DVAE) -> Inputs:
        codes = tokens(tokenizer, inputs["second"])
        return {name: value for name, value in inputs.items() if name != "second"} | {"codes": codes}

    def losses(model: Masked, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        # At most `most` patches are hidden: only as many logits over all codes are made.
        hidden, places = jax.lax.top_k(inputs["hidden"].astype(jnp.float32), most)
        found = model.tokens(inputs["images"], inputs["hidden"], train=train, keys=keys)
        logits = model.predict(take(found, places)).astype(jnp.float32)
        codes = jnp.take_along_axis(inputs["codes"], places, axis=1)
        likelihood = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[:, :, None], axis=2)[:, :, 0]
        errors = -likelihood
        right = (jnp.argmax(logits, axis=-1) == codes) & jnp.isfinite(errors)
        loss, accuracy = (over(hidden > 0, values, inputs["weight"]) for values in (errors, right.astype(jnp.float32)))
        return loss, {"accuracy": accuracy}

    return Objective(prepare, losses, consult=consult)


def in_words(config: Config) -> list[str]:
    """How much is hidden, where it was worked out."""
    (rows, columns), most, least = masking(config)
    if None not in (config["beit"]["num_masked"], config["beit"]["min_block"]):
        return []
    return [f"beit.num_masked {most} of {rows * columns} patches, in blocks of beit.min_block {least} or more"]


def picture(
    model: Masked, images: UInt8[Array, "b H W c"], config: Config, *, seed: int = 0, tokenizer: DVAE
) -> Drawing:
    """Hide blocks and let the likeliest codes say what was there. The second view is made from `images` here."""
    pp, grid = config["pp"], model.cfg.grid
    hidden = hidden_blocks(jax.random.split(key_for(seed, "reconstruct"), images.shape[0]), config)
    fractions = normalise(images, (0.0,), (1.0,))
    sides = grid[0] * tokenizer.cfg.factor, grid[1] * tokenizer.cfg.factor
    second = jnp.clip(jax.image.resize(fractions, (len(images), *sides, images.shape[-1]), "lanczos3"), 0.0, 1.0)
    codes = nnx.jit(tokens)(tokenizer, second)
    logits = nnx.jit(lambda model, pixels, hidden: model(pixels, hidden))(
        model, normalise(images, pp["mean"], pp["std"]), hidden
    )
    guessed = jnp.where(hidden, jnp.argmax(logits, axis=-1), codes)
    right = float(jnp.sum((guessed == codes) & hidden) / jnp.maximum(jnp.sum(hidden), 1))
    original = np.asarray(fractions)
    seen = visible(hidden, grid, model.cfg.patch_size)
    shown = {"original": original, "masked": np.where(seen, original, np.float32(0.5))}
    for title, values in (("tokenizer's codes", codes), ("predicted codes", guessed)):
        shown[title] = told(tokenizer, values.reshape(-1, *grid), model.cfg.patch_size)
    note = f"hidden: {float(jnp.mean(hidden)):.0%}; codes of hidden patches right: {right:.1%}"
    return Drawing(shown, f"{note}, of the tokenizer's view of the crops shown")


def told(tokenizer: DVAE, codes: Int[Array, "b h w"], patch_size: tuple[int, int]) -> Float[np.ndarray, "b H W c"]:
    """What codes stand for, a patch of pixels each: decoded, or as colours where there is no decoder."""
    cfg = tokenizer.cfg
    if cfg.decoder_width is None:
        return coloured(np.asarray(codes), cfg.vocab_size, patch_size)
    found = nnx.jit(lambda model, codes: most_likely(model.decode_codes(codes)[0]))(tokenizer, codes)
    sides = codes.shape[1] * patch_size[0], codes.shape[2] * patch_size[1]
    return np.asarray(jax.image.resize(found, (len(found), *sides, found.shape[-1]), "linear")).clip(0.0, 1.0)


METHOD = Method(
    build, objective, outputs, backbone_at="encoder", in_words=in_words, picture=picture,
    frozen={"tokenizer": Frozen("beit.tokenizer", "tokenizer.py:dalle", fits, codes_alone)},
)  # fmt: skip
