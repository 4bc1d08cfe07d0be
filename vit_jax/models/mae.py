"""Masked autoencoder (He et al. 2022; facebookresearch/mae, models_mae.py) around a ViT.

The encoder sees the visible patches only; a light decoder sees them with mask tokens in the gaps and predicts pixels.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.encoder import Transformer
from vit_jax.models.layers import LayerNorm, Linear, TransformerConfig
from vit_jax.models.vit import ViT, ViTConfig, positions_table, training_keys
from vit_jax.ops.masks import Mask, take


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
        if not 1 <= self.num_visible < self.encoder.num_patches:
            raise ValueError(
                f"Expected 1 to {self.encoder.num_patches - 1} visible patches of {self.encoder.num_patches}, "
                f"got {self.num_visible}: change mae.num_visible."
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
        tokens = self.encoder.placed(self.encoder.patches(images), mask.visible, keys)
        return self.decode(self.encoder.encode(tokens, keys), mask, keys)
