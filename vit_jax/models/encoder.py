"""Pre-norm blocks, stacked: every block parameter carries a leading [num_layers] axis and the forward is one scan.

One layout whatever `unroll` and `remat` are, so checkpoints and layer-wise decay (a vector along that axis) never
depend on a speed setting.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.attention import Attention, relative_bias, relative_rows
from vit_jax.models.layers import INITS, LayerNorm, Linear, Mlp, TransformerConfig
from vit_jax.ops.keys import fold
from vit_jax.ops.noise import drop_path, dropout
from vit_jax.ops.paths import path_name
from vit_jax.sharding import constrain, stored

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matrix products, redo the rest
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(nnx.Module):
    """x + attention(norm(x)); x + mlp(norm(x)), with optional layer scale, dropout and drop path."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d = cfg.hidden_size
        self.norm1 = LayerNorm(d, eps=cfg.norm_eps, dtype=cfg.dtype)
        self.attention = Attention(cfg, rngs=rngs)
        self.norm2 = LayerNorm(d, eps=cfg.norm_eps, dtype=cfg.dtype)
        self.mlp = Mlp(cfg, rngs=rngs)
        if cfg.layer_scale:
            self.scale1 = nnx.Param(jnp.full((d,), cfg.layer_scale, jnp.float32))
            self.scale2 = nnx.Param(jnp.full((d,), cfg.layer_scale, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        rate: Float[Array, ""],
        keys: Key[Array, " b"] | None,
        bias: Float[Array, "1 h n n"] | None = None,
    ) -> Float[Array, "b n d"]:
        draw = lambda use: None if keys is None else fold(keys, use)  # noqa: E731
        x = x + self._branch(self.attention(self.norm1(x), draw(0), bias), "scale1", rate, draw(1), draw(2))
        return x + self._branch(self.mlp(self.norm2(x), draw(3)), "scale2", rate, draw(4), draw(5))

    def _branch(
        self,
        y: Float[Array, "b n d"],
        scale: str,
        rate: Float[Array, ""],
        dropout_keys: Key[Array, " b"] | None,
        path_keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b n d"]:
        y = dropout(y, self.cfg.dropout_rate, dropout_keys)
        if self.cfg.layer_scale:
            y = y * getattr(self, scale)[...].astype(y.dtype)[None, None, :]
        return drop_path(y, rate, path_keys) if self.cfg.drop_path else y


class Transformer(nnx.Module):
    """`num_layers` blocks, stacked. Tokens in, tokens out; no norm at the end."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg

        @nnx.split_rngs(splits=cfg.num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(cfg, rngs=rngs)

        self.blocks = stacked(rngs)
        if INITS[cfg.init].by_depth:
            for kernel in (self.blocks.attention.out.kernel, self.blocks.mlp.fc2.kernel):
                number = np.arange(1, cfg.num_layers + 1).reshape(-1, *(1,) * (kernel.ndim - 1))
                kernel[...] = kernel[...] / np.sqrt(2.0 * number).astype(np.float32)
        if cfg.relative_positions == "shared":
            self.relative_positions = nnx.Param(jnp.zeros((relative_rows(cfg), cfg.num_heads), jnp.float32))

    @jax.named_scope("attention")
    def shared_bias(self) -> Float[Array, "1 h n n"] | None:
        """What the relative positions that all blocks share add to the logits of attention."""
        if self.cfg.relative_positions != "shared":
            return None
        return relative_bias(self.relative_positions[...], self.cfg)

    def __call__(self, tokens: Float[Array, "b n d"], keys: Key[Array, " b"] | None = None) -> Float[Array, "b n d"]:
        """Keys, one an example, switch dropout and drop path on."""
        return self._scan(tokens, keys, keep=False)[0]

    def every_layer(self, tokens: Float[Array, "b n d"]) -> Float[Array, "l b n d"]:
        """The tokens after each block, for features and pictures."""
        layers = self._scan(tokens, None, keep=True)[1]
        assert layers is not None
        return layers

    @jax.named_scope("blocks")
    def _scan(self, tokens: Array, keys: Array | None, *, keep: bool) -> tuple[Array, Array | None]:
        cfg = self.cfg
        graph, params = nnx.split(self.blocks)
        bias = self.shared_bias()
        rates = jnp.asarray(np.linspace(0.0, cfg.drop_path, cfg.num_layers), jnp.float32)

        def laid_out(path: tuple, leaf: Array) -> Array:
            name = path_name(path)
            return stored(leaf.astype(cfg.dtype) if name.endswith("kernel") else leaf, name)

        def body(x: Array, layer: tuple) -> tuple[Array, Array | None]:
            number, rate, block_params = layer
            # One block's kernels are gathered at a time, in the compute dtype; their gradients are scattered at once.
            block = nnx.merge(graph, jax.tree_util.tree_map_with_path(laid_out, block_params))
            x = constrain(x, "batch", None, None)
            x = block(x, rate, None if keys is None else fold(keys, number), bias)
            return x, x if keep else None

        if cfg.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[cfg.remat], prevent_cse=False)
        layers = (jnp.arange(cfg.num_layers), rates, params)
        x = tokens.astype(cfg.dtype)
        kept: list[Array] = []
        for first, last in ((0, cfg.frozen_blocks), (cfg.frozen_blocks, cfg.num_layers)):
            if first == last:
                continue
            part = jax.tree.map(lambda leaf, first=first, last=last: leaf[first:last], layers)
            x, outputs = jax.lax.scan(body, x, part, unroll=min(cfg.unroll, last - first))
            if last == cfg.frozen_blocks:
                x = jax.lax.stop_gradient(x)
            if outputs is not None:
                kept.append(outputs)
        return x, jnp.concatenate(kept) if keep else None


class MapHead(nnx.Module):
    """Multi-head attention pooling: one learned probe asks all tokens (Scaling ViT; big_vision MAPHead)."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, heads = cfg.hidden_size, cfg.num_heads
        xavier = nnx.initializers.xavier_uniform()
        self.probe = nnx.Param(xavier(rngs.params(), (1, d), jnp.float32))
        self.query = Linear(d, (heads, d // heads), kernel_init=xavier, dtype=cfg.dtype, rngs=rngs)
        self.key = Linear(d, (heads, d // heads), kernel_init=xavier, dtype=cfg.dtype, rngs=rngs)
        self.value = Linear(d, (heads, d // heads), kernel_init=xavier, dtype=cfg.dtype, rngs=rngs)
        self.out = Linear((heads, d // heads), d, kernel_init=xavier, dtype=cfg.dtype, rngs=rngs)
        self.norm = LayerNorm(d, eps=cfg.norm_eps, dtype=cfg.dtype)
        self.mlp = Mlp(cfg, rngs=rngs)

    @jax.named_scope("head")
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...].astype(self.cfg.dtype), (tokens.shape[0], *self.probe.shape))
        y = jax.nn.dot_product_attention(self.query(probe), self.key(tokens), self.value(tokens))
        y = self.out(y)
        return (y + self.mlp(self.norm(y), None))[:, 0]
