"""Training a picture tokenizer: the discrete VAE of DALL-E (Ramesh et al. 2021, section 2.1 and appendix A.2), for BEiT.

Each place of a grid gets one of a few thousand codes. In training a code is relaxed to shares of all codes (Gumbel-softmax,
Jang et al. 2017), less and less so as the temperature falls; in evaluation it is the most likely one. The model takes pixels
as fractions in [0, 1], so `pp.mean` is 0 and `pp.std` 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from vit_jax.contracts import Config, UserError
from vit_jax.methods.drawing import coloured
from vit_jax.methods.method import Drawing, Inputs, Means, Method, Objective
from vit_jax.models.dvae import DVAE, dvae_config, most_likely, tokens
from vit_jax.ops.keys import fold
from vit_jax.ops.logit_laplace import logit_laplace_nll, map_pixels
from vit_jax.ops.means import Mean, weighted
from vit_jax.ops.pixels import normalise


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> DVAE:
    """Classes are not asked for."""
    return DVAE(dvae_config(config), rngs=rngs)


def relaxed(
    logits: Float[Array, "b h w v"], temperature: Float[Array, " b"], keys: Key[Array, " b"]
) -> Float[Array, "b h w v"]:
    """Shares of the codes that become, as the temperature falls to 0, one code drawn with the probabilities of `logits`."""
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    return jax.nn.softmax((logits + noise) / temperature[:, None, None, None], axis=-1)


def divergence(logits: Float[Array, "b h w v"]) -> Float[Array, " b"]:
    """KL of each place's codes from equally likely ones, in nats, summed over the grid."""
    log_shares = jax.nn.log_softmax(logits, axis=-1)
    per_place = jnp.sum(jnp.exp(log_shares) * (log_shares + math.log(logits.shape[-1])), axis=-1)
    return jnp.sum(per_place, axis=(1, 2))


def histogram(codes: Int[Array, "b h w"], vocab_size: int) -> Float[Array, "b v"]:
    """How often each code is in each picture."""
    flat = codes.reshape(codes.shape[0], -1)
    rows = jnp.arange(flat.shape[0])[:, None]
    return jnp.zeros((flat.shape[0], vocab_size)).at[rows, flat].add(1.0)


def eased(step: Int[Array, ""], start: float, end: float, steps: int) -> Float[Array, ""]:
    """From `start` to `end` along a cosine (appendix A.2, unchecked: a straight line often diverged)."""
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def objective(config: Config, num_classes: int | None) -> Objective:
    """The negative evidence bound, a colour value: -log p(picture | codes) + kl_weight * KL(codes | equally likely).

    Metrics: both parts (`nll` a colour value, `kl` a code), `mse` of the picture decoded, and by `summary` how many codes
    are in use and their perplexity.
    """
    if tuple(config["pp"]["mean"]) != (0.0,) or tuple(config["pp"]["std"]) != (1.0,):
        raise UserError(
            f"Expected pp.mean (0.0,) and pp.std (1.0,) with objective 'tokenizer', whose pixels are fractions, got "
            f"{config['pp']['mean']} and {config['pp']['std']}: change pp.mean and pp.std."
        )
    section = config["tokenizer"]
    if section["decoder_width"] is None:
        raise UserError("Expected a decoder to train with, got tokenizer.decoder_width None: give it a width.")

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        return {"pixels": normalise(batch.image, (0.0,), (1.0,)), "weight": batch.weight}

    def schedules(step: Int[Array, ""]) -> dict[str, Float[Array, ""]]:
        start, end = section["temperature_start"], section["temperature_end"]
        return {
            "temperature": eased(step, start, end, section["temperature_steps"]),
            "kl_weight": eased(step, 0.0, section["kl_weight"], section["kl_steps"]),
        }

    def losses(model: DVAE, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        pixels, weight = inputs["pixels"], inputs["weight"]
        logits = model.logits(pixels)
        codes = jnp.argmax(logits, axis=-1)
        if train and keys is not None:
            decoded, log_scale = model.decode(relaxed(logits, inputs["temperature"], fold(keys, 0)))
        else:
            decoded, log_scale = model.decode_codes(codes)
        nll = jnp.mean(logit_laplace_nll(map_pixels(pixels), decoded, log_scale), axis=(1, 2, 3))
        kl, (places, values) = divergence(logits), (codes[0].size, pixels[0].size)
        counts = jnp.where(weight[:, None] > 0, histogram(codes, logits.shape[-1]), 0.0)
        return weighted(nll + inputs["kl_weight"] * kl / values, weight), {
            "nll": weighted(nll, weight),
            "kl": weighted(kl / places, weight),
            "mse": weighted(jnp.mean(jnp.square(most_likely(decoded) - pixels), axis=(1, 2, 3)), weight),
            "codes": Mean(counts, places * weight),
        }

    return Objective(prepare, losses, schedules)


def summary(values: Mapping[str, Any]) -> dict[str, float]:
    """The shares of the codes come down to `codes_used`, and `perplexity`: as many codes, equally often, say as much."""
    shares = np.asarray(values["codes"], np.float64)
    used = shares[shares > 0]
    perplexity = float(np.exp(-np.sum(used * np.log(used)))) if used.size else float("nan")
    others = {name: value for name, value in values.items() if name != "codes"}
    return others | {"codes_used": float(used.size), "perplexity": perplexity}


def in_words(config: Config) -> list[str]:
    """The grid, and a schedule that a short run would never see the end of."""
    cfg, section, total = dvae_config(config), config["tokenizer"], config["total_steps"]
    found = [f"{cfg.grid[0]} x {cfg.grid[1]} codes of {cfg.factor} x {cfg.factor} pixels"]
    if total is not None and total < section["temperature_steps"]:
        now = objective(config, None).schedules(jnp.asarray(total, jnp.int32))
        ends = float(now["temperature"])
        found.append(
            f"NOTE: the temperature is at {ends:.3g} when the run ends, as tokenizer.temperature_steps "
            f"{section['temperature_steps']} is more than total_steps {total}"
        )
    return found


def picture(model: DVAE, images: UInt8[Array, "b H W c"], config: Config, *, seed: int = 0) -> Drawing:
    """The picture, its codes as colours, and what they decode to (of a tokenizer with a decoder)."""
    cfg = model.cfg
    pixels = normalise(images, (0.0,), (1.0,))
    codes = np.asarray(nnx.jit(tokens)(model, pixels))
    rows, columns = pixels.shape[1] // cfg.factor, pixels.shape[2] // cfg.factor
    grid = codes.reshape(-1, rows, columns)
    cell = (cfg.factor, cfg.factor)
    shown = {"original": np.asarray(pixels), "codes": coloured(grid, cfg.vocab_size, cell)}
    if cfg.decoder_width is not None:
        decoded = nnx.jit(lambda model, grid: most_likely(model.decode_codes(grid)[0]))(model, jnp.asarray(grid))
        shown["reconstruction"] = np.asarray(decoded)
    note = f"{len(np.unique(codes))} of {cfg.vocab_size:,} codes in use here, {rows} x {columns} a picture"
    return Drawing(shown, f"{note}; a colour stands for a code, likeness of colours for nothing")


def outputs(model: DVAE, pixels: Float[Array, "b H W c"]) -> Array:
    """Pictures decoded from the shares of the codes, or these logits where there is no decoder."""
    logits = model.logits(pixels)
    return logits if model.cfg.decoder_width is None else model.decode(jax.nn.softmax(logits, axis=-1))[0]


METHOD = Method(
    build, objective, outputs, backbone_at="encoder", in_words=in_words, picture=picture, summary=summary
)  # fmt: skip
