"""What methods that replace hidden patches by a mask token have in common: the model, and means over hidden patches.

The token takes the place of a patch after it is embedded, before positions are added; all tokens go through the encoder, and
one linear layer answers for each patch (SimMIM, BEiT, the ViT paper's masked patch prediction).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from vit_jax.contracts import UserError
from vit_jax.models.layers import INITS, ZEROS, Initializer, Linear
from vit_jax.models.vit import ViT, ViTConfig, training_keys
from vit_jax.ops.masks import take
from vit_jax.ops.means import Mean, weighted


class Masked(nnx.Module):
    """An encoder, a mask token and a linear layer from tokens to `outputs` numbers a patch."""

    def __init__(
        self,
        cfg: ViTConfig,
        outputs: int,
        *,
        head_init: Initializer,
        bias_init: Initializer = ZEROS,
        rngs: nnx.Rngs,
    ):
        if cfg.stem:
            raise UserError(
                "Expected an encoder on pixels, got a hybrid, whose stem would show hidden patches to others: leave "
                "model.resnet.num_layers at None."
            )
        self.cfg = cfg
        body = cfg.transformer
        self.encoder = ViT(cfg, rngs=rngs)
        self.mask_token = nnx.Param(INITS[body.init].token(rngs.params(), (1, body.hidden_size), jnp.float32))
        self.predict = Linear(
            body.hidden_size, outputs, kernel_init=head_init, bias_init=bias_init, dtype=body.dtype, rngs=rngs
        )

    def __call__(
        self, images: Float[Array, "b H W c"], hidden: Bool[Array, "b n"], **more: Any
    ) -> Float[Array, "b n o"]:
        """Answers for every patch, float32, from `tokens`, which says what `more` there is."""
        tokens = self.tokens(images, hidden, **more)
        with jax.named_scope("head"):
            return self.predict(tokens).astype(jnp.float32)

    def tokens(
        self,
        images: Float[Array, "b H W c"],
        hidden: Bool[Array, "b n"],
        *,
        source: Int[Array, "b n"] | None = None,
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b n d"]:
        """What `predict` answers from. `hidden` patches are replaced, others come from place `source` (None: their own)."""
        x = self.encoder.embed(self.encoder.patches(images))
        x = x if source is None else take(x, source)
        x = jnp.where(hidden[:, :, None], self.mask_token[...].astype(x.dtype)[None], x)
        return self.encoder.contextual(x, training_keys(train, keys))[:, self.cfg.num_prefix :]


def outputs(model: Masked, pixels: Float[Array, "b H W c"]) -> Float[Array, "b n o"]:
    """Answers with every other patch hidden: to compare two models by."""
    hidden = jnp.arange(model.cfg.num_patches)[None, :] % 2 == 0
    return model(pixels, jnp.broadcast_to(hidden, (pixels.shape[0], model.cfg.num_patches)))


def over(hidden: Bool[Array, "b n"], values: Float[Array, "b n"], weight: Float[Array, " b"]) -> Mean:
    """(total, count) an example of a value a patch, over hidden patches: the batch's mean is one over all of them."""
    chosen = hidden.astype(jnp.float32)
    total = weighted(jnp.sum(values * chosen, axis=-1), weight).total
    return Mean(total, jnp.sum(chosen, axis=-1) * weight)
