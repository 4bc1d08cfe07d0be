"""What crosses between rooms: axis letters, the batch, and the one error a user is meant to read.

Axis letters, used in every shape of the project (index axes from the right):

    b  examples of a batch        n  tokens or patches      k  patches kept visible
    d  width of a token           h  attention heads        e  width of one head
    p  numbers in a patch (rows * columns * channels)       c  channels or classes
    H  picture height in pixels   W  picture width in pixels
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32, UInt8

if TYPE_CHECKING:
    from PIL.Image import Image


@runtime_checkable
class Config(Protocol):
    """Settings by name: a `ConfigDict` of configs/, or the plain dict that a checkpoint holds of one."""

    def __getitem__(self, field: str, /) -> Any: ...

    def __iter__(self) -> Iterator[str]: ...


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was expected, what came and which setting to change.

    Commands print it as one sentence without a traceback and exit with status 2.
    """


class Record(NamedTuple):
    """One example as a source holds it: an encoded or decoded picture, and its label.

    The label is a class id (-1: none), or a vector: 1 for every class that is there and 0 for the others, or numbers.
    """

    image: bytes | UInt8[np.ndarray, "H W c"] | Image
    label: int | Float32[np.ndarray, " c"]
    name: str  # where it came from, for messages: a path, or "dataset[index]"


class Batch(NamedTuple):
    """What the host hands to the device. `weight` is 0 for rows that only fill up the last batch, else 1."""

    image: UInt8[np.ndarray, "b H W c"]
    label: Int32[np.ndarray, " b"] | Float32[np.ndarray, "b c"]
    weight: Float32[np.ndarray, " b"]
    second: UInt8[np.ndarray, "b H2 W2 c"] | None = None  # the same views at `pp.second_share` of the size


def blank_labels(
    like: int | Float32[np.ndarray, " c"], rows: int
) -> Int32[np.ndarray, " b"] | Float32[np.ndarray, "b c"]:
    """Zeros for the labels of a batch whose records have labels `like` this one."""
    return np.zeros((rows, *np.shape(like)), np.float32 if np.ndim(like) else np.int32)


def label_like(config: Config, num_classes: int | None) -> int | Float32[np.ndarray, " c"]:
    """A label such as the task of `config` has, where no data set is asked: for plans and benchmarks."""
    return 0 if config["task"] == "classes" or num_classes is None else np.zeros(num_classes, np.float32)


def check_batch(batch: Batch, image_size: tuple[int, int], channels: int, num_classes: int | None) -> None:
    """Raise `UserError` where a batch is not what the model was built for. Cheap: shapes and label range only."""
    expected = (*image_size, channels)
    if batch.image.dtype != np.uint8 or batch.image.shape[1:] != expected:
        raise UserError(
            f"Expected uint8 pictures of (height, width, channels) {expected}, got {batch.image.dtype} "
            f"{batch.image.shape[1:]}: change pp.crop or pp.channels."
        )
    if num_classes is None:
        return
    real = batch.label[batch.weight > 0]
    if batch.label.ndim == 2:
        if batch.label.shape[1] != num_classes or not np.isfinite(real).all():
            raise UserError(
                f"Expected {num_classes} finite numbers a label, got {batch.label.shape[1]}, or some that are not finite: "
                "repair the labels."
            )
        return
    if real.size and (real.min() < 0 or real.max() >= num_classes):
        raise UserError(
            f"Expected labels from 0 to {num_classes - 1}, got {int(real.min())}..{int(real.max())}: "
            "change num_classes, or use a data set with labels for this objective."
        )


def first_line(error: BaseException) -> str:
    """Of somebody else's message, for a sentence of ours; the error's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def to_json(values: Any) -> str:
    """One line of JSON for any reader: the format has no NaN and no infinity, numbers that are not finite become null."""

    def readable(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: readable(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [readable(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(readable(values), allow_nan=False)


def json_lines(path: Path | epath.Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that holds one a line. A line that is none (cut off by a crash, damaged) is left out."""
    if not path.exists():
        return
    for line in path.read_bytes().decode(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
