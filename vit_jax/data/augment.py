"""Colour jitter; RandAugment and random erasing as timm 0.3.2 defines them (timm/data/auto_augment.py, random_erasing.py)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from vit_jax.contracts import UserError

MAX_LEVEL = 10.0
JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
Fill = tuple[int, ...]
Operation = Callable[[Image.Image, float, np.random.Generator, Any, Fill], Image.Image]


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation times a factor within `strength` of 1 each, in any order (torchvision's)."""

    strength: float

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        factors = rng.uniform(max(0.0, 1.0 - self.strength), 1.0 + self.strength, len(JITTERED))
        for number in rng.permutation(len(JITTERED)):
            picture = JITTERED[number](picture).enhance(float(factors[number]))
        return picture


def _sign(rng: np.random.Generator) -> float:
    return -1.0 if rng.random() < 0.5 else 1.0


def _affine(matrix: Callable[[Image.Image, float], tuple], scale: float) -> Operation:
    def apply(picture: Image.Image, level: float, rng: np.random.Generator, resample: Any, fill: Fill) -> Image.Image:
        amount = level / MAX_LEVEL * scale * _sign(rng)
        color = fill[0] if len(fill) == 1 else fill
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix(picture, amount), resample=resample, fillcolor=color
        )

    return apply


def _rotate(picture: Image.Image, level: float, rng: np.random.Generator, resample: Any, fill: Fill) -> Image.Image:
    degrees = level / MAX_LEVEL * 30.0 * _sign(rng)
    return picture.rotate(degrees, resample=resample, fillcolor=fill[0] if len(fill) == 1 else fill)


def _enhance(kind: Any) -> Operation:
    def apply(picture: Image.Image, level: float, rng: np.random.Generator, resample: Any, fill: Fill) -> Image.Image:
        return kind(picture).enhance(1.0 + level / MAX_LEVEL * 0.9 * _sign(rng))

    return apply


def _colours(operation: Operation) -> Operation:
    """An operation on the colours alone: transparency stays as it is (Pillow refuses most of these for RGBA)."""

    def apply(picture: Image.Image, level: float, rng: np.random.Generator, resample: Any, fill: Fill) -> Image.Image:
        if picture.mode != "RGBA":
            return operation(picture, level, rng, resample, fill)
        changed = operation(picture.convert("RGB"), level, rng, resample, fill)
        changed.putalpha(picture.getchannel("A"))
        return changed

    return apply


def _plain(function: Callable[[Image.Image], Image.Image]) -> Operation:
    return lambda picture, level, rng, resample, fill: function(picture)


def _posterize(picture: Image.Image, level: float, *_: Any) -> Image.Image:
    """The "increasing" kind: 4 bits at level 0, none at 10."""
    bits = 4 - int(level / MAX_LEVEL * 4)
    return picture if bits >= 8 else ImageOps.posterize(picture, bits) if bits else picture.point(lambda _: 0)


def _solarize(picture: Image.Image, level: float, *_: Any) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(level / MAX_LEVEL * 256))


def _solarize_add(picture: Image.Image, level: float, *_: Any) -> Image.Image:
    amount = int(level / MAX_LEVEL * 110)
    return picture.point(
        [min(255, value + amount) if value < 128 else value for value in range(256)] * len(picture.getbands())
    )


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _colours(_plain(ImageOps.autocontrast)),
    "Equalize": _colours(_plain(ImageOps.equalize)),
    "Invert": _colours(_plain(ImageOps.invert)),
    "Rotate": _rotate,
    "Posterize": _colours(_posterize),
    "Solarize": _colours(_solarize),
    "SolarizeAdd": _colours(_solarize_add),
    "Color": _colours(_enhance(ImageEnhance.Color)),
    "Contrast": _colours(_enhance(ImageEnhance.Contrast)),
    "Brightness": _colours(_enhance(ImageEnhance.Brightness)),
    "Sharpness": _colours(_enhance(ImageEnhance.Sharpness)),
    "ShearX": _affine(lambda picture, amount: (1, amount, 0, 0, 1, 0), 0.3),
    "ShearY": _affine(lambda picture, amount: (1, 0, 0, amount, 1, 0), 0.3),
    "TranslateXRel": _affine(lambda picture, amount: (1, 0, amount * picture.width, 0, 1, 0), 0.45),
    "TranslateYRel": _affine(lambda picture, amount: (1, 0, 0, 0, 1, amount * picture.height), 0.45),
}
NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """`num_ops` operations drawn with replacement, each applied with `probability` at magnitude N(level, deviation)."""

    level: float
    num_ops: int = 2
    deviation: float = 0.0
    probability: float = 0.5
    fill: Fill = (128, 128, 128)

    @classmethod
    def parse(cls, text: str, fill: Fill) -> RandAugment:
        """timm's names: "rand-m9-mstd0.5-inc1", with m, n, mstd, p. inc1 (increasing severity) is the only kind here."""
        wrong = f'Expected pp.randaugment such as "rand-m9-mstd0.5-inc1", got {text!r}'
        values = {"m": 9.0, "n": 2.0, "mstd": 0.0, "p": 0.5}
        kind, *parts = text.split("-")
        if kind != "rand":
            raise UserError(f'{wrong}: it begins with "rand-".')
        for part in parts:
            if part == "inc1":
                continue
            found = re.fullmatch(r"(mstd|m|n|p)(\d+(?:\.\d+)?)", part)
            if not found:
                raise UserError(f"{wrong} (at {part!r}).")
            values[found[1]] = float(found[2])
        if values["m"] > MAX_LEVEL or values["p"] > 1 or not values["n"].is_integer():
            raise UserError(f"{wrong}: m is at most {MAX_LEVEL:.0f}, p at most 1 and n a whole number.")
        return cls(values["m"], int(values["n"]), values["mstd"], values["p"], fill)

    def __call__(self, picture: Image.Image, rng: np.random.Generator, resample: Any) -> Image.Image:
        for choice in rng.integers(len(NAMES), size=self.num_ops):
            if rng.random() >= self.probability:
                continue
            level = float(np.clip(rng.normal(self.level, self.deviation), 0.0, MAX_LEVEL))
            picture = OPERATIONS[NAMES[choice]](picture, level, rng, resample, self.fill)
        return picture


def erase(
    array: UInt8[np.ndarray, "H W c"], rng: np.random.Generator, mean: tuple[float, ...], std: tuple[float, ...]
) -> UInt8[np.ndarray, "H W c"]:
    """One rectangle of noise: area 2% to a third, aspect 0.3 to 1/0.3 (log-uniform), ten tries.

    timm draws N(0, 1) after normalising; pixels are not normalised yet here, so the same noise is
    mean + std * N(0, 1) in pixel units, clipped to what a byte holds.
    """
    height, width, channels = array.shape
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 1 / 3)
        aspect = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            noise = 255.0 * (np.asarray(mean) + np.asarray(std) * rng.normal(size=(h, w, channels)))
            array = array.copy()
            array[top : top + h, left : left + w] = np.rint(noise).clip(0, 255).astype(np.uint8)
            return array
    return array
