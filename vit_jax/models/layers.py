"""The dense layer, the layer norm and the attention that every model is made of.

Parameters are float32; they are cast to the compute dtype where they are used. Norm statistics and the softmax are
float32 always.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vit_jax.ops.noise import dropout
from vit_jax.ops.projection import project
from vit_jax.sharding import constrain

Initializer = Callable[..., Array]
ZEROS: Initializer = nnx.initializers.zeros_init()
# Kernels of attention. JAX (0.10 to 0.12) refuses to differentiate cuDNN's for odd counts of tokens, and a class token makes
# 197 or 257 of them. More than even is for benchmarks/attention.py to recommend.
MULTIPLE_OF_TOKENS = {"xla": 1, "cudnn": 2}


def gelu_erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU as PyTorch writes it; jax.nn's erfc costs a second branch and an exponential on CPUs."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # Google's models
    "gelu_erf": gelu_erf,  # PyTorch's nn.GELU: MAE, DeiT, BEiT
}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm blocks. Sizes from the papers' tables; the rest differs by origin and is named, not assumed."""

    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.0  # after each dense layer but qkv, and after the positions (paper ViT B.1)
    attention_dropout_rate: float = 0.0  # on the attention weights
    drop_path: float = 0.0  # stochastic depth: rates linspace(0, drop_path, num_layers)
    layer_scale: float = 0.0  # initial value of the branch scales; 0: no scales
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    fused_qkv_init: bool = False  # xavier over (d, 3d), as MAE's fused layer; else over (d, d) each, as Google's
    mlp_bias_std: float = 0.0  # Google: 1e-6
    # What follows changes speed and memory, never the parameters.
    compute_dtype: str = "float32"
    attention: str = "xla"  # or "cudnn"
    remat: str = "none"  # "dots", "full"
    unroll: int = 1  # blocks per scan step: 1 compiles fastest
    frozen_blocks: int = 0  # no gradient goes into or below the first blocks

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"Expected hidden_size divisible by num_heads, got {self.hidden_size} and {self.num_heads}: "
                "change model.hidden_size or model.transformer.num_heads."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"Expected model.activation of {sorted(ACTIVATIONS)}, got {self.activation!r}.")
        for field, known in (("attention", tuple(MULTIPLE_OF_TOKENS)), ("remat", ("none", "dots", "full"))):
            if getattr(self, field) not in known:
                raise ValueError(f"Expected {field} of {known}, got {getattr(self, field)!r}: change config.{field}.")
        if self.attention == "cudnn" and self.compute_dtype not in ("bfloat16", "float16"):
            raise ValueError(
                f"Expected compute_dtype bfloat16 or float16 with attention=cudnn, got {self.compute_dtype}: change "
                "config.compute_dtype or config.attention."
            )

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.compute_dtype)


class Linear(nnx.Module):
    """A dense layer from the trailing axes `inputs` to the axes `outputs`; kernel (*inputs, *outputs)."""

    def __init__(
        self,
        inputs: int | tuple[int, ...],
        outputs: int | tuple[int, ...],
        *,
        kernel_init: Initializer,
        bias_init: Initializer = ZEROS,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.inputs = (inputs,) if isinstance(inputs, int) else inputs
        self.outputs = (outputs,) if isinstance(outputs, int) else outputs
        self.dtype = dtype
        flat = (math.prod(self.inputs), math.prod(self.outputs))
        self.kernel = nnx.Param(kernel_init(rngs.params(), flat, jnp.float32).reshape(*self.inputs, *self.outputs))
        self.bias = nnx.Param(bias_init(rngs.params(), self.outputs, jnp.float32))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(*leading, *inputs) -> (*leading, *outputs)."""
        leading = x.ndim - len(self.inputs)
        bias = self.bias[...].astype(self.dtype).reshape((1,) * leading + self.outputs)
        return project(x.astype(self.dtype), self.kernel[...].astype(self.dtype), len(self.inputs)) + bias


class LayerNorm(nnx.Module):
    """Layer norm over the last axis: statistics in float32, result in the compute dtype."""

    def __init__(self, width: int, *, eps: float, dtype: Any = jnp.float32):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        shape = (1,) * (x.ndim - 1) + (-1,)
        scaled = centred * jax.lax.rsqrt(variance + self.eps) * self.scale[...].reshape(shape)
        return (scaled + self.bias[...].reshape(shape)).astype(self.dtype)


class BatchNorm(nnx.Module):
    """Before a linear probe's head (MAE main_linprobe.py): no scale, no bias, torch's momentum 0.1, eps 1e-6.

    Training uses the batch's statistics and moves the running ones, which evaluation uses. Over a mesh the batch is the
    global one.
    """

    def __init__(self, width: int, *, eps: float = 1e-6, momentum: float = 0.1):
        self.eps, self.momentum = eps, momentum
        self.mean = nnx.BatchStat(jnp.zeros((width,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b d"]:
        x = x.astype(jnp.float32)
        if not train:
            return (x - self.mean[...][None]) * jax.lax.rsqrt(self.var[...][None] + self.eps)
        mean, var, size = jnp.mean(x, axis=0), jnp.var(x, axis=0), x.shape[0]
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        unbiased = jax.lax.stop_gradient(var) * (size / max(size - 1, 1))  # as torch keeps it
        self.var[...] += self.momentum * (unbiased - self.var[...])
        return (x - mean[None]) * jax.lax.rsqrt(var[None] + self.eps)


def xavier_fused(parts: int) -> Initializer:
    """Xavier-uniform for `parts` square kernels side by side, each with its own fan (Flax initialises q, k, v apart)."""

    def init(key: Key[Array, ""], shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        one = nnx.initializers.xavier_uniform()
        keys = jax.random.split(key, parts)
        return jnp.concatenate([one(k, (shape[0], shape[1] // parts), dtype) for k in keys], axis=1)

    return init


def attend(
    query: Float[Array, "b m h e"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    *,
    implementation: str = "xla",
    dropout_rate: float = 0.0,
    dropout_keys: Key[Array, " b"] | None = None,
) -> Float[Array, "b m h e"]:
    """Scaled dot-product attention by a fused kernel where one is asked for.

    Dropout of the weights needs the weights, so it is computed in the open; no fused kernel then.
    """
    if dropout_keys is None or dropout_rate == 0.0:
        return padded_attention(query, key, value, implementation, multiple=MULTIPLE_OF_TOKENS[implementation])
    weights = dropout(attention_weights(query, key), dropout_rate, dropout_keys)
    return jnp.einsum("bhmn,bnhe->bmhe", weights.astype(value.dtype), value)


def padded_attention(
    query: Float[Array, "b m h e"],
    key: Float[Array, "b n h e"],
    value: Float[Array, "b n h e"],
    implementation: str,
    *,
    multiple: int,
) -> Float[Array, "b m h e"]:
    """JAX's attention over tokens padded up to a multiple: the keys added are masked, the queries added are cut off."""
    attention: Any = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    queries, keys = query.shape[1], key.shape[1]
    if queries % multiple == keys % multiple == 0:
        return attention(query, key, value)
    query, key, value = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0))) for x in (query, key, value))
    lengths = constrain(jnp.full(key.shape[:1], keys, jnp.int32), "batch")
    return attention(query, key, value, key_value_seq_lengths=lengths)[:, :queries]


def attention_weights(query: Float[Array, "b m h e"], key: Float[Array, "b n h e"]) -> Float[Array, "b h m n"]:
    """The softmax itself, float32: for dropout and for pictures."""
    logits = jnp.einsum("bmhe,bnhe->bhmn", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits / math.sqrt(query.shape[-1]), axis=-1)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused (d, 3, h, e) kernel."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, heads = cfg.hidden_size, cfg.num_heads
        xavier = nnx.initializers.xavier_uniform()
        init = xavier if cfg.fused_qkv_init else xavier_fused(3)
        self.qkv = Linear(d, (3, heads, d // heads), kernel_init=init, dtype=cfg.dtype, rngs=rngs)
        self.out = Linear((heads, d // heads), d, kernel_init=xavier, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], dropout_keys: Key[Array, " b"] | None) -> Float[Array, "b n d"]:
        qkv = constrain(self.qkv(x), "batch", None, None, "heads", None)
        query, key, value = jnp.split(qkv, 3, axis=2)
        y = attend(
            query[:, :, 0],
            key[:, :, 0],
            value[:, :, 0],
            implementation=self.cfg.attention,
            dropout_rate=self.cfg.attention_dropout_rate,
            dropout_keys=dropout_keys,
        )
        return self.out(y)


class Mlp(nnx.Module):
    """Dense, GELU, dense."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        xavier = nnx.initializers.xavier_uniform()
        bias = nnx.initializers.normal(cfg.mlp_bias_std) if cfg.mlp_bias_std else nnx.initializers.zeros_init()
        d, m = cfg.hidden_size, cfg.mlp_dim
        self.fc1 = Linear(d, m, kernel_init=xavier, bias_init=bias, dtype=cfg.dtype, rngs=rngs)
        self.fc2 = Linear(m, d, kernel_init=xavier, bias_init=bias, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], dropout_keys: Key[Array, " b"] | None) -> Float[Array, "b n d"]:
        hidden = ACTIVATIONS[self.cfg.activation](constrain(self.fc1(x), "batch", None, "mlp"))
        return self.fc2(dropout(hidden, self.cfg.dropout_rate, dropout_keys))
