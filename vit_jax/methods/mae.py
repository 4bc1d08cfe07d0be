"""Masked autoencoding (He et al. 2022; facebookresearch/mae, models_mae.py) around a ViT.

The encoder sees the visible patches only; a light decoder sees them with mask tokens in the gaps and predicts pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from vit_jax.contracts import Config
from vit_jax.methods.drawing import filled_in
from vit_jax.methods.masked import over
from vit_jax.methods.method import Drawing, Inputs, Means, Method, Objective
from vit_jax.models.encoder import Transformer
from vit_jax.models.layers import LayerNorm, Linear, TransformerConfig
from vit_jax.models.registry import pair, transformer_config, vit_config
from vit_jax.models.vit import ViT, ViTConfig, positions_table, training_keys
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.losses import patch_errors
from vit_jax.ops.masks import Mask, make_mask, take
from vit_jax.ops.means import Mean
from vit_jax.ops.patches import grid_of, patchify
from vit_jax.ops.pixels import normalise, normalise_patches, patch_statistics


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    encoder: ViTConfig
    decoder: TransformerConfig
    num_visible: int  # patches the encoder sees; 49 of 196 is the paper's 75%
    mask: str = "random"  # "random", "block" or "grid"
    normalised_target: bool = True  # per-patch normalised pixels (`norm_pix_loss`)
    decoder_positions: str = "sincos2d_mae"  # constant table

    def __post_init__(self) -> None:
        if self.encoder.stem:
            raise ValueError("Expected an encoder on pixels, got a hybrid: leave model.resnet.num_layers at None.")
        if self.encoder.transformer.relative_positions != "none":
            raise ValueError(
                "Expected an encoder without relative positions, which need every patch: set model.relative_positions='none'."
            )
        if not 1 <= self.num_visible < self.encoder.num_patches:
            raise ValueError(
                f"Expected 1 to {self.encoder.num_patches - 1} visible patches of {self.encoder.num_patches}, "
                f"got {self.num_visible}: change mae.num_visible."
            )


def num_visible(mae: Config, num_patches: int) -> int:
    """Patches that the encoder sees, from the section `mae`. Rounded: int(100 * (1 - 0.9)) would be 9."""
    if mae["num_visible"] is not None:
        return mae["num_visible"]
    return min(max(1, round(num_patches * (1.0 - mae["mask_ratio"]))), max(num_patches - 1, 1))


def mae_config(config: Config) -> MAEConfig:
    """The masked autoencoder that a configuration describes."""
    mae, encoder = config["mae"], vit_config(config, num_classes=None)
    return MAEConfig(
        encoder=encoder,
        decoder=transformer_config(config, mae["decoder"], mae["decoder"]["hidden_size"]),
        num_visible=num_visible(mae, encoder.num_patches),
        mask=mae["mask"],
        normalised_target=mae["normalised_target"],
    )


class MAE(nnx.Module):
    def __init__(self, cfg: MAEConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        body, light = cfg.encoder.transformer, cfg.decoder
        xavier = nnx.initializers.xavier_uniform()
        self.encoder = ViT(cfg.encoder, rngs=rngs)
        self.decoder_embed = Linear(
            body.hidden_size, light.hidden_size, kernel_init=xavier, dtype=light.dtype, rngs=rngs
        )
        self.mask_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, light.hidden_size)))
        self.decoder = Transformer(light, rngs=rngs)
        self.decoder_norm = LayerNorm(light.hidden_size, eps=light.norm_eps, dtype=light.dtype)
        self.predict = Linear(
            light.hidden_size, cfg.encoder.patch_values, kernel_init=xavier, dtype=light.dtype, rngs=rngs
        )

    @jax.named_scope("head")
    def decode(
        self, latent: Float[Array, "b t d"], mask: Mask, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b n p"]:
        """Encoded visible tokens -> predicted pixels of every patch (of meaning on hidden ones only), float32."""
        x = self.decoder_embed(latent)
        cls_rows = self.cfg.encoder.num_prefix
        first, x = x[:, :cls_rows], x[:, cls_rows:]
        gaps = mask.restore.shape[1] - x.shape[1]
        token = jnp.broadcast_to(self.mask_token[...].astype(x.dtype)[None], (x.shape[0], gaps, x.shape[-1]))
        x = take(jnp.concatenate([x, token], axis=1), mask.restore)
        x = jnp.concatenate([first, x], axis=1)
        if self.cfg.decoder_positions != "none":
            placed = dataclasses.replace(self.cfg.encoder, positions=self.cfg.decoder_positions)
            x = x + jnp.asarray(positions_table(placed, self.cfg.decoder.hidden_size))[None].astype(x.dtype)
        x = self.decoder_norm(self.decoder(x, keys))
        return self.predict(x[:, cls_rows:]).astype(jnp.float32)

    def __call__(
        self,
        images: Float[Array, "b H W c"],
        mask: Mask,
        *,
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b n p"]:
        """Predicted patches "b n p", pixels or normalised pixels by `normalised_target`; the mask is an argument."""
        keys = training_keys(train, keys)
        tokens = self.encoder.embed(self.encoder.patches(images), mask.visible)
        tokens = self.encoder.placed(tokens, mask.visible, keys)
        return self.decode(self.encoder.encode(tokens, keys), mask, keys)


def build(config: Config, num_classes: int | None, rngs: nnx.Rngs) -> MAE:
    """Classes are not asked for."""
    return MAE(mae_config(config), rngs=rngs)


def objective(config: Config, num_classes: int | None) -> Objective:
    """Mean squared error on hidden patches (models_mae.py, forward_loss).

    `baseline` is the error of predicting each patch's own mean; learning anything about shape goes below it.
    """
    pp, mae = config["pp"], config["mae"]
    grid = grid_of(pair(pp["crop"]), pair(config["model"]["patches"]["size"]))
    visible = num_visible(mae, grid[0] * grid[1])

    def prepare(batch: Any, key: Key[Array, ""], train: bool) -> Inputs:
        images = normalise(batch.image, pp["mean"], pp["std"])
        keys = fold(jax.random.split(key, images.shape[0]), 1)
        mask = make_mask(mae["mask"], keys, grid, visible)
        return {"images": images, "mask": mask, "weight": batch.weight}

    def losses(model: MAE, inputs: Inputs, keys: Key[Array, " b"] | None, train: bool) -> tuple[Mean, Means]:
        mask, weight = inputs["mask"], inputs["weight"]
        predicted = model(inputs["images"], mask, train=train, keys=keys)
        patches = model.encoder.patches(inputs["images"])
        target = normalise_patches(patches) if mae["normalised_target"] else patches
        flat = jnp.broadcast_to(jnp.mean(target, axis=-1, keepdims=True), target.shape)
        loss, baseline = (over(mask.hidden, patch_errors(guess, target), weight) for guess in (predicted, flat))
        return loss, {"baseline": baseline}

    return Objective(prepare, losses)


def in_words(config: Config) -> list[str]:
    """The number of visible patches, where it was worked out."""
    mae = config["mae"]
    if mae["num_visible"] is not None:
        return []
    num_patches = vit_config(config, None).num_patches
    visible = num_visible(mae, num_patches)
    return [f"mae.num_visible {visible} of {num_patches} (mae.mask_ratio {mae['mask_ratio']:g})"]


def picture(model: MAE, images: UInt8[Array, "b H W c"], config: Config, *, seed: int = 0) -> Drawing:
    """Hide patches as `config.mae` says and fill them in."""
    cfg = mae_config(config)
    keys = jax.random.split(key_for(seed, "reconstruct"), images.shape[0])
    return reconstructed(model, images, config, make_mask(cfg.mask, keys, cfg.encoder.grid, cfg.num_visible))


def reconstructed(model: MAE, images: UInt8[Array, "b H W c"], config: Config, mask: Mask) -> Drawing:
    """Normalised predictions are brought back with each true patch's own mean and deviation."""
    mean, std, patch_size = config["pp"]["mean"], config["pp"]["std"], model.cfg.encoder.patch_size
    pixels = normalise(images, mean, std)
    predicted, more = nnx.jit(lambda model, pixels, mask: model(pixels, mask))(model, pixels, mask), ""
    if model.cfg.normalised_target:
        statistics = patch_statistics(patchify(pixels, patch_size))
        predicted = predicted * statistics.std + statistics.mean
        more = "; each predicted patch uses the true patch's mean and deviation"
    return filled_in(pixels, predicted, mask.hidden, patch_size, mean, std, more)


def outputs(model: MAE, pixels: Float[Array, "b H W c"]) -> Float[Array, "b n p"]:
    """Predictions under a fixed mask."""
    keys = jax.random.split(jax.random.key(0), pixels.shape[0])
    return model(pixels, make_mask("random", keys, model.cfg.encoder.grid, model.cfg.num_visible))


METHOD = Method(build, objective, outputs, backbone_at="encoder", in_words=in_words, picture=picture)
