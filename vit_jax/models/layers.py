"""The dense layer, the layer norm and the MLP that every model is made of, and how they are initialised.

Parameters are float32; they are cast to the compute dtype where they are used. Norm statistics are float32 always.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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


def xavier_fused(parts: int) -> Initializer:
    """Xavier-uniform for `parts` square kernels side by side, each with its own fan (Flax initialises q, k, v apart)."""

    def init(key: Key[Array, ""], shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        one = nnx.initializers.xavier_uniform()
        keys = jax.random.split(key, parts)
        return jnp.concatenate([one(k, (shape[0], shape[1] // parts), dtype) for k in keys], axis=1)

    return init


class Init(NamedTuple):
    """Initial values by origin."""

    qkv: Initializer
    kernel: Initializer  # the blocks' other kernels
    patch: Initializer
    token: Initializer  # class token
    mlp_bias: Initializer = ZEROS
    by_depth: bool = False  # whether what leaves block l (from 1) is divided by sqrt(2 l)


XAVIER = nnx.initializers.xavier_uniform()
CUT = nnx.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)  # at one deviation, not rescaled
INITS = {
    "google": Init(  # models_vit.py
        xavier_fused(3), XAVIER, nnx.initializers.lecun_normal(), ZEROS, nnx.initializers.normal(1e-6)
    ),
    "mae": Init(XAVIER, XAVIER, XAVIER, nnx.initializers.normal(0.02)),  # models_mae.py: over the fused (d, 3d)
    "beit": Init(CUT, CUT, CUT, CUT, by_depth=True),  # unilm/beit modeling_pretrain.py; SimMIM's ViT
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
    init: str = "google"  # see INITS
    key_bias: bool = True  # False: biases of queries and values alone (BEiT; a key's would change no softmax)
    relative_positions: str = "none"  # "shared": one table of biases for all blocks; "block": one a block (BEiT)
    grid: tuple[int, int] | None = None  # of the patches, for relative positions
    num_prefix: int = 0  # tokens before them
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
        for field, known, where in (
            ("attention", tuple(MULTIPLE_OF_TOKENS), "config.attention"),
            ("remat", ("none", "dots", "full"), "config.remat"),
            ("init", tuple(INITS), "model.init"),
            ("relative_positions", ("none", "shared", "block"), "model.relative_positions"),
        ):
            if getattr(self, field) not in known:
                raise ValueError(f"Expected {field} of {known}, got {getattr(self, field)!r}: change {where}.")
        if self.relative_positions != "none" and self.num_prefix > 1:
            raise ValueError(
                "Expected relative positions with one token before the patches at most, got a distillation token, too: "
                "change model.relative_positions or model.dist_token."
            )
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
        bias_init: Initializer | None = ZEROS,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.inputs = (inputs,) if isinstance(inputs, int) else inputs
        self.outputs = (outputs,) if isinstance(outputs, int) else outputs
        self.dtype = dtype
        flat = (math.prod(self.inputs), math.prod(self.outputs))
        self.kernel = nnx.Param(kernel_init(rngs.params(), flat, jnp.float32).reshape(*self.inputs, *self.outputs))
        if bias_init is not None:
            self.bias = nnx.Param(bias_init(rngs.params(), self.outputs, jnp.float32))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(*leading, *inputs) -> (*leading, *outputs)."""
        leading = x.ndim - len(self.inputs)
        y = project(x.astype(self.dtype), self.kernel[...].astype(self.dtype), len(self.inputs))
        if not hasattr(self, "bias"):
            return y
        return y + self.bias[...].astype(self.dtype).reshape((1,) * leading + self.outputs)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis: statistics in float32, result in the compute dtype."""

    def __init__(self, width: int, *, eps: float, dtype: Any = jnp.float32):
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    @jax.named_scope("norm")
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


class Mlp(nnx.Module):
    """Dense, GELU, dense."""

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        d, m, init = cfg.hidden_size, cfg.mlp_dim, INITS[cfg.init]
        self.fc1 = Linear(d, m, kernel_init=init.kernel, bias_init=init.mlp_bias, dtype=cfg.dtype, rngs=rngs)
        self.fc2 = Linear(m, d, kernel_init=init.kernel, bias_init=init.mlp_bias, dtype=cfg.dtype, rngs=rngs)

    @jax.named_scope("mlp")
    def __call__(self, x: Float[Array, "b n d"], dropout_keys: Key[Array, " b"] | None) -> Float[Array, "b n d"]:
        hidden = ACTIVATIONS[self.cfg.activation](constrain(self.fc1(x), "batch", None, "mlp"))
        return self.fc2(dropout(hidden, self.cfg.dropout_rate, dropout_keys))
