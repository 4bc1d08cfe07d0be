"""From a record to the uint8 picture that the model sees: crops, flips, resizing, RandAugment, erasing.

Pillow's resizing is antialiased for every filter, so torchvision's `antialias` has no setting here.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from vit_jax import derived
from vit_jax.contracts import Config, Record, UserError
from vit_jax.data.augment import ColorJitter, RandAugment, erase
from vit_jax.data.decoding import MODES, decode, open_picture

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pixels of a resized picture of which only a part is wanted; beyond, that part alone is made. 1 x 65,000 pixels with a
# short side of 256 would be 17 GB. Ordinary pictures stay far below: 256 times as wide as high at a short side of 256.
MAX_RESIZED = 2**24
TRAIN_CROPS = ("random_resized", "random_resized_once", "simple", "resize")
Array = UInt8[np.ndarray, "H W c"]
Box = tuple[float | int, float | int, float | int, float | int]  # left, top, right, bottom


class Views(NamedTuple):
    """What is seen of one picture."""

    image: Array
    second: Array | None  # the same part at another size, where `pp.second_share` asks for it


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The host's half of preprocessing, from `config.pp`."""

    crop: tuple[int, int]  # (height, width)
    resize: int | None = None
    train_crop: str = "random_resized"
    crop_area: tuple[float, float] = (0.05, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    randaugment: RandAugment | None = None
    erasing: float = 0.0
    interpolation: str = "bilinear"
    channels: int = 3
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    color_jitter: ColorJitter | None = None
    second: tuple[int, int] | None = None  # (height, width) of the second view
    second_interpolation: str = "lanczos"

    @classmethod
    def from_config(cls, pp: Config) -> Preprocess:
        """Read the section `pp`; raises `UserError` for values it cannot use."""
        crop = (pp["crop"], pp["crop"]) if isinstance(pp["crop"], int) else tuple(pp["crop"])
        if pp["interpolation"] not in FILTERS:
            raise UserError(f"Expected pp.interpolation of {sorted(FILTERS)}, got {pp['interpolation']!r}.")
        if pp["train_crop"] not in TRAIN_CROPS:
            raise UserError(f"Expected pp.train_crop of {TRAIN_CROPS}, got {pp['train_crop']!r}.")
        if min(crop) < 1 or (pp["resize"] is not None and pp["resize"] < 1):
            raise UserError(f"Expected positive sizes, got pp.crop {crop} and pp.resize {pp['resize']}.")
        channels = pp["channels"]
        for field in ("mean", "std"):
            if len(pp[field]) not in (1, channels):
                raise UserError(
                    f"Expected 1 or {channels} numbers in pp.{field} for pp.channels={channels}, got {pp[field]}."
                )
        for field in ("crop_area", "crop_aspect"):
            if len(pp[field]) != 2 or not 0 < pp[field][0] <= pp[field][1]:
                raise UserError(f"Expected a lower and an upper bound above 0 in pp.{field}, got {pp[field]}.")
        for field in ("randaugment", "color_jitter"):
            if pp[field] and channels not in MODES:
                raise UserError(
                    f"Expected pp.channels of {', '.join(map(str, MODES))} for pp.{field}, got {channels}: change either."
                )
        second = derived.second_crop(pp)
        if second and (pp["randaugment"] or pp["erasing"]):
            raise UserError(
                "Expected no pp.randaugment and no pp.erasing with pp.second_share, as they would change one of two views: "
                "leave them out."
            )
        fill = tuple(round(255 * value) for value in np.broadcast_to(pp["mean"], (channels,)))
        return cls(
            crop=crop,
            resize=derived.resize(pp),
            train_crop=pp["train_crop"],
            crop_area=tuple(pp["crop_area"]),
            crop_aspect=tuple(pp["crop_aspect"]),
            flip=pp["flip"],
            randaugment=RandAugment.parse(pp["randaugment"], fill) if pp["randaugment"] else None,
            erasing=pp["erasing"],
            interpolation=pp["interpolation"],
            channels=channels,
            mean=tuple(pp["mean"]),
            std=tuple(pp["std"]),
            color_jitter=ColorJitter(pp["color_jitter"]) if pp["color_jitter"] else None,
            second=second,
            second_interpolation=pp["second_interpolation"],
        )

    def train(self, record: Record, rng: np.random.Generator) -> Views:
        """A randomly cropped, flipped and distorted view; and the second one of the same part."""
        array, second = self._train_views(record, rng)
        if self.flip and rng.random() < 0.5:
            array, second = mirrored(array), second if second is None else mirrored(second)
        if self.randaugment is not None:
            picture = self.randaugment(_as_picture(array), rng, FILTERS[self.interpolation])
            array = _as_array(picture)
        if self.erasing and rng.random() < self.erasing:
            array = erase(array, rng, self.mean, self.std)
        return Views(array, second)

    def _train_views(self, record: Record, rng: np.random.Generator) -> Views:
        if self.train_crop.startswith("random_resized"):
            picture, box = self._random_box(open_picture(record, self.channels), record.name, rng)
            picture = picture if self.color_jitter is None else self.color_jitter(picture, rng)
            array = _as_array(picture.resize(self.crop[::-1], FILTERS[self.interpolation], box=box))
            return Views(array, self._second(picture, box))
        array = self._train_view(record, rng)
        return Views(array, self._second(_as_picture(array)) if self.second else None)

    def _train_view(self, record: Record, rng: np.random.Generator) -> Array:
        raw = record.image
        if isinstance(raw, np.ndarray) and raw.shape == (*self.crop, self.channels) and self.color_jitter is None:
            return shifted(raw, self.crop, rng) if self.train_crop == "simple" else raw  # nothing to do for Pillow
        picture = decode(open_picture(record, self.channels), self.channels, record.name)
        picture = picture if self.color_jitter is None else self.color_jitter(picture, rng)
        if self.train_crop == "resize":
            return _as_array(self._resized(picture))
        size = self._covering(picture, max(self.crop))
        rows, columns = window((size[1], size[0]), self.crop, rng)
        left, top = int(columns.min()), int(rows.min())
        part = self._part(picture, size, (left, top, int(columns.max()) + 1, int(rows.max()) + 1))
        return part[(rows - top)[:, None], (columns - left)[None, :]]

    def evaluate(self, record: Record) -> Views:
        """Short side to `resize` and the centre crop, or resized to the crop; and the second view of the same part."""
        picture = decode(open_picture(record, self.channels), self.channels, record.name)
        if self.resize is None:
            return Views(_as_array(self._resized(picture)), self._second(picture))
        size = self._covering(picture, self.resize)
        height, width = self.crop
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        box = (left, top, left + width, top + height)
        return Views(self._part(picture, size, box), self._second(picture, before_resizing(picture, size, box)))

    def seen(self, record: Record) -> Array:
        """What `evaluate` shows of a picture, at the picture's own resolution: all of it, or the centre crop's part."""
        picture = decode(open_picture(record, self.channels), self.channels, record.name)
        if self.resize is None:
            return _as_array(picture)
        scale = self._scale(picture, self.resize)
        width, height = (round(wanted / scale) for wanted in self.crop[::-1])
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        box = (max(left, 0), max(top, 0), min(left + width, picture.width), min(top + height, picture.height))
        return _as_array(picture.crop(box))

    def _second(self, picture: Image.Image, box: Box | None = None) -> Array | None:
        """The second view of the box of a picture, or of all of it."""
        if self.second is None:
            return None
        return _as_array(picture.resize(self.second[::-1], FILTERS[self.second_interpolation], box=box))

    def _random_box(self, picture: Image.Image, name: str, rng: np.random.Generator) -> tuple[Image.Image, Box]:
        height, width = (max(sides) for sides in zip(self.crop, self.second or self.crop, strict=True))
        stored = picture.size
        box = None
        box_of = random_resized_box_once if self.train_crop == "random_resized_once" else random_resized_box
        if picture.format == "JPEG" and "exif" not in picture.info:
            box = box_of(stored, self.crop_area, self.crop_aspect, rng)
            shrink = min((box[2] - box[0]) / width, (box[3] - box[1]) / height)
            if shrink >= 2:  # decode fewer pixels; the resize still has at least its target's resolution
                picture.draft(None, (int(stored[0] / shrink) + 1, int(stored[1] / shrink) + 1))
        picture = decode(picture, self.channels, name)
        if box is None:
            box = box_of(picture.size, self.crop_area, self.crop_aspect, rng)
        elif picture.size != stored:
            x, y = picture.width / stored[0], picture.height / stored[1]
            box = (box[0] * x, box[1] * y, min(box[2] * x, picture.width), min(box[3] * y, picture.height))
        return picture, box

    def _resized(self, picture: Image.Image) -> Image.Image:
        height, width = self.crop
        if picture.size == (width, height):
            return picture
        return picture.resize((width, height), FILTERS[self.interpolation])

    def _scale(self, picture: Image.Image, short_side: int) -> float:
        return max(short_side / min(picture.size), self.crop[1] / picture.width, self.crop[0] / picture.height)

    def _covering(self, picture: Image.Image, short_side: int) -> tuple[int, int]:
        """(width, height) with that short side, and at least as large as the crop."""
        scale = self._scale(picture, short_side)
        return max(round(picture.width * scale), self.crop[1]), max(round(picture.height * scale), self.crop[0])

    def _part(self, picture: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Array:
        """The box of the picture resized to `size`; of a very long one nothing else is ever made."""
        method = FILTERS[self.interpolation]
        if size[0] * size[1] <= MAX_RESIZED:
            return _as_array((picture if size == picture.size else picture.resize(size, method)).crop(box))
        left, top, right, bottom = box
        within = before_resizing(picture, size, box)
        return _as_array(picture.resize((right - left, bottom - top), method, box=within))


def before_resizing(picture: Image.Image, size: tuple[int, int], box: Box) -> Box:
    """Where a box of the picture resized to `size` lies in the picture itself."""
    x, y = picture.width / size[0], picture.height / size[1]
    return box[0] * x, box[1] * y, min(box[2] * x, picture.width), min(box[3] * y, picture.height)


def random_resized_box(
    size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Inception's crop as torchvision's RandomResizedCrop draws it: whole pixels, ten tries, then the centre."""
    width, height = size
    log_low, log_high = math.log(aspect[0]), math.log(aspect[1])
    draws = rng.random(40).tolist()
    for start in range(0, 40, 4):
        share, shape, across, down = draws[start : start + 4]
        target = width * height * (area[0] + (area[1] - area[0]) * share)
        ratio = math.exp(log_low + (log_high - log_low) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    ratio = width / height
    w = max(round(height * aspect[1]), 1) if ratio > aspect[1] else width
    h = max(round(width / aspect[0]), 1) if ratio < aspect[0] else height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_box_once(
    size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> Box:
    """MAE's linear probe (util/crop.py, after TensorFlow): one draw, its sides cut to the picture's."""
    width, height = size
    share, shape, across, down = rng.random(4).tolist()
    target = width * height * (area[0] + (area[1] - area[0]) * share)
    ratio = math.exp(math.log(aspect[0]) + (math.log(aspect[1]) - math.log(aspect[0])) * shape)
    # torchvision has no such case: of a picture of a few pixels the share can be less than one of them.
    w, h = (
        min(max(round(side), 1), whole)
        for side, whole in ((math.sqrt(target * ratio), width), (math.sqrt(target / ratio), height))
    )
    left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
    return left, top, left + w, top + h


def shifted(
    array: UInt8[np.ndarray, "H W c"], crop: tuple[int, int], rng: np.random.Generator
) -> UInt8[np.ndarray, "..."]:
    """A random window of the picture with an eighth of the crop mirrored on to each side (CIFAR's usual 4 of 32)."""
    rows, columns = window(array.shape[:2], crop, rng)
    return array[rows[:, None], columns[None, :]]


def window(
    size: tuple[int, ...], crop: tuple[int, int], rng: np.random.Generator
) -> tuple[Int[np.ndarray, " H"], Int[np.ndarray, " W"]]:
    """The rows and columns of `shifted`, in a picture of size (height, width)."""
    margin = max(1, max(crop) // 8)
    places = []
    for whole, wanted in zip(size, crop, strict=True):
        first = int(rng.integers(-margin, whole - wanted + margin + 1))
        place = np.arange(first, first + wanted)
        place = np.where(place < 0, -1 - place, place)
        places.append(np.where(place >= whole, 2 * whole - 1 - place, place))
    return places[0], places[1]


def mirrored(array: UInt8[np.ndarray, "H W c"]) -> UInt8[np.ndarray, "H W c"]:
    """Left and right exchanged, copied a channel at a time: NumPy copies three bytes backwards four times as slowly."""
    out = np.empty_like(array)
    for channel in range(array.shape[-1]):
        out[:, :, channel] = array[:, ::-1, channel]
    return out


def _as_picture(array: UInt8[np.ndarray, "H W c"]) -> Image.Image:
    return Image.fromarray(array[:, :, 0] if array.shape[-1] == 1 else np.ascontiguousarray(array))


def _as_array(picture: Image.Image) -> UInt8[np.ndarray, "H W c"]:
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array
