"""The ResNet stem of the hybrids (R+Ti/16, R26+S/32, R50+B/16 ...): weight-standardised convolutions and GroupNorm.

Kolesnikov et al. 2020 (BiT) with the numbers of google-research/vision_transformer, vit_jax/models_resnet.py. Names of
the parameters are Google's.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

GROUPS, NORM_EPS, STANDARD_EPS = 32, 1e-6, 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Units of each stage (an empty tuple: the root alone, as in R+Ti/16); stage i is 64 * 2**i wide inside."""

    num_layers: tuple[int, ...]
    width_factor: int = 1
    channels: int = 3
    compute_dtype: str = "float32"

    @property
    def width(self) -> int:
        return 64 * self.width_factor

    @property
    def out_channels(self) -> int:
        return self.width * 4 * 2 ** (len(self.num_layers) - 1) if self.num_layers else self.width

    def out_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the map: halved by the root, its pooling, and each stage but the first."""
        height, width = image_size
        for _ in range(2 + max(0, len(self.num_layers) - 1)):
            height, width = -(-height // 2), -(-width // 2)
        return height, width


class StdConv(nnx.Module):
    """A convolution without bias whose kernel has mean 0 and deviation 1 over its inputs (eps joins the deviation)."""

    def __init__(self, size: int, inputs: int, outputs: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.stride, self.dtype = stride, dtype
        init = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        kernel = self.kernel[...]
        mean = jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        kernel = (kernel - mean) / (jnp.std(kernel, axis=(0, 1, 2), keepdims=True) + STANDARD_EPS)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride, self.stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip


class GroupNorm(nnx.Module):
    """Over height, width and the channels of each of 32 groups; statistics in float32."""

    def __init__(self, channels: int, *, zero_scale: bool = False):
        self.scale = nnx.Param(jnp.full((channels,), 0.0 if zero_scale else 1.0, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
        groups = x.astype(jnp.float32).reshape(*x.shape[:3], GROUPS, -1)
        centred = groups - jnp.mean(groups, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + NORM_EPS)).reshape(x.shape)
        scale, bias = self.scale[...][None, None, None, :], self.bias[...][None, None, None, :]
        return (normed * scale + bias).astype(x.dtype)


class Unit(nnx.Module):
    """A bottleneck: 1x1, 3x3 (with the stride), 1x1 to four times the width, on a residual path."""

    def __init__(self, inputs: int, width: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        outputs = 4 * width
        if inputs != outputs or stride != 1:
            self.conv_proj = StdConv(1, inputs, outputs, stride=stride, dtype=dtype, rngs=rngs)
            self.gn_proj = GroupNorm(outputs)
        self.conv1 = StdConv(1, inputs, width, dtype=dtype, rngs=rngs)
        self.gn1 = GroupNorm(width)
        self.conv2 = StdConv(3, width, width, stride=stride, dtype=dtype, rngs=rngs)
        self.gn2 = GroupNorm(width)
        self.conv3 = StdConv(1, width, outputs, dtype=dtype, rngs=rngs)
        self.gn3 = GroupNorm(outputs, zero_scale=True)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        kept = self.gn_proj(self.conv_proj(x)) if hasattr(self, "conv_proj") else x
        y = jax.nn.relu(self.gn1(self.conv1(x)))
        y = jax.nn.relu(self.gn2(self.conv2(y)))
        return jax.nn.relu(kept + self.gn3(self.conv3(y)))


class Stage(nnx.Module):
    """Units `unit1`, `unit2`, ...; the first changes width and resolution."""

    def __init__(self, inputs: int, width: int, units: int, *, stride: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.units = units
        for number in range(units):
            first = number == 0
            unit = Unit(inputs if first else 4 * width, width, stride=stride if first else 1, dtype=dtype, rngs=rngs)
            setattr(self, f"unit{number + 1}", unit)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        for number in range(self.units):
            x = getattr(self, f"unit{number + 1}")(x)
        return x


class ResNetStem(nnx.Module):
    """Pictures to the map that a ViT cuts into patches: root (convolution and pooling, 4 times smaller), then stages."""

    def __init__(self, cfg: ResNetConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        dtype, width = jnp.dtype(cfg.compute_dtype), cfg.width
        self.conv_root = StdConv(7, cfg.channels, width, stride=2, dtype=dtype, rngs=rngs)
        self.gn_root = GroupNorm(width)
        inputs = width
        for number, units in enumerate(cfg.num_layers):
            inner = width * 2**number
            stage = Stage(inputs, inner, units, stride=1 if number == 0 else 2, dtype=dtype, rngs=rngs)
            setattr(self, f"block{number + 1}", stage)
            inputs = 4 * inner

    def __call__(self, images: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        x = jax.nn.relu(self.gn_root(self.conv_root(images)))
        low = np.asarray(-np.inf, x.dtype)[()]  # a NumPy scalar: with an array, reduce_window cannot be linearised
        x = jax.lax.reduce_window(x, low, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        for number in range(len(self.cfg.num_layers)):
            x = getattr(self, f"block{number + 1}")(x)
        return x
