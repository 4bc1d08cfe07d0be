"""The discrete VAE of DALL-E, which BEiT takes its targets from: pictures to codes on a grid, and back.

Ramesh et al. 2021, appendix A.1; layout and names of the layers: openai/DALL-E, encoder.py and decoder.py. Everything is a
convolution, so a trained one takes pictures of any size that its grid divides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vit_jax.contracts import Config
from vit_jax.models.registry import pair
from vit_jax.ops.logit_laplace import map_pixels, unmap_pixels
from vit_jax.sharding import constrain

# Kernel sizes of a block's four convolutions: the encoder ends in 1 x 1, the decoder begins with it.
ENCODER_KERNELS, DECODER_KERNELS = (3, 3, 3, 1), (1, 3, 3, 3)


@dataclasses.dataclass(frozen=True)
class DVAEConfig:
    """Group i is 2**i * width wide. `decoder_width` None: an encoder alone, which only gives codes."""

    image_size: tuple[int, int]
    channels: int = 3
    vocab_size: int = 8192
    num_groups: int = 4
    blocks_per_group: int = 2
    encoder_width: int = 256
    decoder_width: int | None = 256
    decoder_inputs: int = 128  # width of the map that codes are looked up into
    compute_dtype: str = "float32"
    remat: bool = False  # compute each block again in the backward pass

    def __post_init__(self) -> None:
        if self.encoder_width % 4 or (self.decoder_width or 0) % 4:  # a block is a quarter as wide inside
            raise ValueError(
                f"Expected widths divisible by 4, got {self.encoder_width} and {self.decoder_width}: change "
                "tokenizer.encoder_width or tokenizer.decoder_width."
            )
        self.grid_of(self.image_size)

    @property
    def factor(self) -> int:
        """Pixels of a code along each side: every group but the last halves the map."""
        return 2 ** (self.num_groups - 1)

    @property
    def gain(self) -> float:
        """Of every block's residual path, which keeps the sum over all blocks tame."""
        return 1.0 / (self.num_groups * self.blocks_per_group) ** 2

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_of(self.image_size)

    def grid_of(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Codes along (height, width) of a picture. Raises ValueError where they do not divide it."""
        if any(side % self.factor for side in image_size):
            raise ValueError(
                f"Expected a picture of a whole number of {self.factor}x{self.factor} codes, got "
                f"{image_size[0]}x{image_size[1]}: change pp.crop or tokenizer.num_groups."
            )
        return image_size[0] // self.factor, image_size[1] // self.factor


def dvae_config(config: Config) -> DVAEConfig:
    """The discrete VAE that the section `tokenizer` of a configuration describes."""
    section = config["tokenizer"]
    return DVAEConfig(
        image_size=pair(config["pp"]["crop"]),
        channels=config["pp"]["channels"],
        vocab_size=section["vocab_size"],
        num_groups=section["num_groups"],
        blocks_per_group=section["blocks_per_group"],
        encoder_width=section["encoder_width"],
        decoder_width=section["decoder_width"],
        decoder_inputs=section["decoder_inputs"],
        compute_dtype=config["compute_dtype"],
        remat=config["remat"] != "none",
    )


class Conv(nnx.Module):
    """A convolution with bias and stride 1 that keeps height and width; kernel (row, column, in, out)."""

    def __init__(self, size: int, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(dtype)
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")  # openai/DALL-E, utils.py (unchecked)
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c2"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias[None, None, None, :]


class Block(nnx.Module):
    """x (a 1x1 convolution of it where the width changes) + gain * four convolutions, a relu before each."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], cfg: DVAEConfig, *, rngs: nnx.Rngs):
        self.gain, self.depth = cfg.gain, len(kernels)
        if inputs != outputs:
            self.conv_skip = Conv(1, inputs, outputs, dtype=cfg.compute_dtype, rngs=rngs)
        widths = [inputs, *[outputs // 4] * (len(kernels) - 1), outputs]
        for number, size in enumerate(kernels):
            conv = Conv(size, widths[number], widths[number + 1], dtype=cfg.compute_dtype, rngs=rngs)
            setattr(self, f"conv{number + 1}", conv)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c2"]:
        kept = self.conv_skip(x) if hasattr(self, "conv_skip") else x
        y = x
        for number in range(self.depth):
            y = getattr(self, f"conv{number + 1}")(jax.nn.relu(y))
        return kept + self.gain * y


class Group(nnx.Module):
    """Blocks of one width; the first one changes it."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], cfg: DVAEConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        for number in range(cfg.blocks_per_group):
            block = Block(outputs if number else inputs, outputs, kernels, cfg, rngs=rngs)
            setattr(self, f"block{number + 1}", block)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H W c2"]:
        for number in range(self.cfg.blocks_per_group):
            block = getattr(self, f"block{number + 1}")
            x = constrain(jax.checkpoint(block)(x) if self.cfg.remat else block(x), "batch")
        return x


def halved(x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c"]:
    """The largest of each 2x2 window; of equal numbers the first gets the gradient, as in PyTorch."""
    return nnx.max_pool(x, (2, 2), (2, 2))


def doubled(x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c"]:
    """Every number four times, in a square."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Stack(nnx.Module):
    """A convolution, groups with `between` after each but the last, relu, a 1x1 convolution in float32."""

    def __init__(
        self,
        first: Conv,
        widths: list[int],
        outputs: int,
        kernels: tuple[int, ...],
        between: Callable[[Array], Array],
        cfg: DVAEConfig,
        *,
        rngs: nnx.Rngs,
    ):
        self.cfg, self.between = cfg, between
        self.conv_input = first
        for number in range(cfg.num_groups):
            setattr(self, f"group{number + 1}", Group(widths[number], widths[number + 1], kernels, cfg, rngs=rngs))
        self.conv_output = Conv(1, widths[-1], outputs, dtype="float32", rngs=rngs)

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        return self.from_map(self.conv_input(x))

    def from_map(self, x: Float[Array, "b H W c"]) -> Float[Array, "b H2 W2 c2"]:
        """What follows the first convolution."""
        for number in range(self.cfg.num_groups):
            x = getattr(self, f"group{number + 1}")(x)
            x = self.between(x) if number < self.cfg.num_groups - 1 else x
        return self.conv_output(jax.nn.relu(x))


def encoder(cfg: DVAEConfig, *, rngs: nnx.Rngs) -> Stack:
    """Pixels in [0.1, 0.9] "b H W c" -> logits over the codes "b h w v"."""
    width = cfg.encoder_width
    first = Conv(7, cfg.channels, width, dtype=cfg.compute_dtype, rngs=rngs)
    widths = [width, *(width * 2**number for number in range(cfg.num_groups))]
    return Stack(first, widths, cfg.vocab_size, ENCODER_KERNELS, halved, cfg, rngs=rngs)


def decoder(cfg: DVAEConfig, width: int, *, rngs: nnx.Rngs) -> Stack:
    """Shares of the codes "b h w v" -> mean and log scale of every colour value "b H W 2c", of their logits."""
    first = Conv(1, cfg.vocab_size, cfg.decoder_inputs, dtype=cfg.compute_dtype, rngs=rngs)
    widths = [cfg.decoder_inputs, *(width * 2**number for number in reversed(range(cfg.num_groups)))]
    return Stack(first, widths, 2 * cfg.channels, DECODER_KERNELS, doubled, cfg, rngs=rngs)


class DVAE(nnx.Module):
    """Both halves. Pixels are fractions in [0, 1]; they are moved inwards here."""

    def __init__(self, cfg: DVAEConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.encoder = encoder(cfg, rngs=rngs)
        if cfg.decoder_width is not None:
            self.decoder = decoder(cfg, cfg.decoder_width, rngs=rngs)

    def logits(self, pixels: Float[Array, "b H W c"]) -> Float[Array, "b h w v"]:
        """Over the codes at each place of the grid, float32."""
        self.cfg.grid_of((pixels.shape[1], pixels.shape[2]))
        return self.encoder(map_pixels(pixels))

    def decode(self, shares: Float[Array, "b h w v"]) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
        """(mean, log scale) of the logit-Laplace distribution; `shares` are one-hot, or relaxed in training."""
        return self._halves(self.decoder(shares))

    def decode_codes(self, codes: Int[Array, "b h w"]) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
        """The same of codes by number: the first convolution is a table, and one row a code is all that is read."""
        first = self.decoder.conv_input
        rows = jnp.take(first.kernel[...][0, 0], codes, axis=0) + first.bias[...][None, None, None, :]
        return self._halves(self.decoder.from_map(rows.astype(first.dtype)))

    def _halves(self, both: Float[Array, "b H W c2"]) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
        return both[..., : self.cfg.channels], both[..., self.cfg.channels :]


def tokens(model: DVAE, pixels: Float[Array, "b H W c"]) -> Int[Array, "b n"]:
    """The code of each place, row by row, of pictures as fractions in [0, 1]; n = H * W / factor**2.

    Raises:
      ValueError: a picture that is not a whole number of codes.
    """
    codes = jnp.argmax(model.logits(pixels), axis=-1)
    return codes.reshape(codes.shape[0], -1)


def most_likely(mean: Float[Array, "b H W c"]) -> Float[Array, "b H W c"]:
    """The picture in [0, 1] that a decoder's means stand for (openai/DALL-E, its notebook)."""
    return unmap_pixels(jax.nn.sigmoid(mean))
