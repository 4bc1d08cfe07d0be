"""Multi-head self-attention: fused kernels, relative positions, and the weights themselves for pictures.

The softmax is float32 whatever the compute dtype.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.models.layers import INITS, MULTIPLE_OF_TOKENS, ZEROS, Linear, TransformerConfig
from vit_jax.ops.noise import dropout
from vit_jax.ops.positions import relative_index
from vit_jax.sharding import constrain


def attend(
    query: Float[Array, "b m h e"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    bias: Float[Array, "1 h m n"] | None = None,
    *,
    implementation: str = "xla",
    dropout_rate: float = 0.0,
    dropout_keys: Key[Array, " b"] | None = None,
) -> Float[Array, "b m h e"]:
    """Scaled dot-product attention by a fused kernel where one is asked for; `bias` is added before the softmax.

    Dropout of the weights needs the weights, so it is computed in the open; no fused kernel then.
    """
    if dropout_keys is None or dropout_rate == 0.0:
        return padded_attention(query, key, value, implementation, bias, multiple=MULTIPLE_OF_TOKENS[implementation])
    weights = dropout(attention_weights(query, key, bias), dropout_rate, dropout_keys)
    return jnp.einsum("bhmn,bnhe->bmhe", weights.astype(value.dtype), value)


def padded_attention(
    query: Float[Array, "b m h e"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    implementation: str,
    bias: Float[Array, "1 h m n"] | None = None,
    *,
    multiple: int,
) -> Float[Array, "b m h e"]:
    """JAX's attention over tokens padded up to a multiple: the keys added are masked, the queries added are cut off."""
    attention: Any = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    queries, keys = query.shape[1], key.shape[1]
    bias = bias if bias is None or implementation == "xla" else bias.astype(query.dtype)  # cuDNN takes no other
    if queries % multiple == keys % multiple == 0:
        return attention(query, key, value, bias)
    query, key, value = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = constrain(jnp.full(key.shape[:1], keys, jnp.int32), "batch")
    if bias is not None:
        bias = jnp.pad(bias, ((0, 0), (0, 0), *((0, -count % multiple) for count in bias.shape[2:])))
    return attention(query, key, value, bias, key_value_seq_lengths=lengths)[:, :queries]


def attention_weights(
    query: Float[Array, "b m h e"], key: Float[Array, "b n h e"], bias: Float[Array, "1 h m n"] | None = None
) -> Float[Array, "b h m n"]:
    """The softmax itself, float32: for dropout and for pictures."""
    logits = jnp.einsum("bmhe,bnhe->bhmn", query, key, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(query.shape[-1])
    return jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)


def relative_bias(table: Float[Array, "r h"], cfg: TransformerConfig) -> Float[Array, "1 h n n"]:
    """What a table of relative positions adds to the logits of every query and key."""
    assert cfg.grid is not None
    index = relative_index(cfg.grid, bool(cfg.num_prefix))
    return jnp.transpose(table[index], (2, 0, 1))[None]


def relative_rows(cfg: TransformerConfig) -> int:
    """Rows of a table of relative positions: offsets between patches, and three for the class token where there is one."""
    if cfg.grid is None:
        raise ValueError("Expected a grid for relative positions, got none.")
    return (2 * cfg.grid[0] - 1) * (2 * cfg.grid[1] - 1) + 3 * bool(cfg.num_prefix)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused (d, 3, h, e) kernel."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, heads, init = cfg.hidden_size, cfg.num_heads, INITS[cfg.init]
        bias = ZEROS if cfg.key_bias else None
        self.qkv = Linear(d, (3, heads, d // heads), kernel_init=init.qkv, bias_init=bias, dtype=cfg.dtype, rngs=rngs)
        if not cfg.key_bias:
            self.qv_bias = nnx.Param(jnp.zeros((2, heads, d // heads), jnp.float32))
        if cfg.relative_positions == "block":
            self.relative_positions = nnx.Param(jnp.zeros((relative_rows(cfg), heads), jnp.float32))
        self.out = Linear((heads, d // heads), d, kernel_init=init.kernel, dtype=cfg.dtype, rngs=rngs)

    @jax.named_scope("qkv")
    def projected(self, x: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values, "b n h e" each."""
        qkv = constrain(self.qkv(x), "batch", None, None, "heads", None)
        query, key, value = (part[:, :, 0] for part in jnp.split(qkv, 3, axis=2))
        if not self.cfg.key_bias:
            bias = self.qv_bias[...].astype(x.dtype)[:, None, None]
            query, value = query + bias[0], value + bias[1]
        return query, key, value

    def bias(self, shared: Float[Array, "1 h n n"] | None) -> Float[Array, "1 h n n"] | None:
        """What is added to the logits: by this block's own table, or what all blocks share."""
        own = self.cfg.relative_positions == "block"
        return relative_bias(self.relative_positions[...], self.cfg) if own else shared

    @jax.named_scope("attention")
    def __call__(
        self,
        x: Float[Array, "b n d"],
        dropout_keys: Key[Array, " b"] | None,
        shared: Float[Array, "1 h n n"] | None = None,
    ) -> Float[Array, "b n d"]:
        query, key, value = self.projected(x)
        y = attend(
            query,
            key,
            value,
            self.bias(shared),
            implementation=self.cfg.attention,
            dropout_rate=self.cfg.attention_dropout_rate,
            dropout_keys=dropout_keys,
        )
        with jax.named_scope("out"):
            return self.out(y)
