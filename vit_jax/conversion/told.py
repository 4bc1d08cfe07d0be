"""What a JSON file, or the user, tells of a model: every value is checked for kind and range when it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vit_jax.contracts import UserError

LARGEST_JSON = 2**22  # bytes; 21,000 class names take one million
# Far beyond every published model, and small enough to be multiplied.
MOST_PIXELS, MOST_HEADS = 2**14, 2**10
SMALLEST_STD = 1e-6


class Told(Mapping[str, Any]):
    """Values by name out of `place`. A value of null counts as none."""

    def __init__(self, values: Mapping[str, Any], place: str):
        self.told, self.place = values, place

    def __getitem__(self, name: str) -> Any:
        return self.told[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.told)

    def __len__(self) -> int:
        return len(self.told)

    def _wrong(self, name: str, expected: str) -> UserError:
        got = self.told.get(name)
        shown = f"{type(got).__name__} of {len(got)}" if isinstance(got, dict | list) else repr(got)[:60]
        return UserError(f"Expected {name} in {self.place} to be {expected}, got {shown}: correct it.")

    def whole(self, name: str, default: int | None, *, most: int, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = default if self.told.get(name) is None else self.told[name]
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(name, f"a whole number from {least} to {most:,}")
        return value

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """A finite number from `least` to `most`."""
        value = default if self.told.get(name) is None else self.told[name]
        if type(value) not in (int, float) or not least <= value <= most:
            raise self._wrong(name, f"a number from {least:g} to {most:g}")
        return value

    def numbers(self, name: str, default: tuple[float, ...], *, count: int, least: float) -> tuple[float, ...]:
        """One finite number for all channels, or one for each of `count`."""
        value = default if self.told.get(name) is None else self.told[name]
        if not isinstance(value, list | tuple) or len(value) not in (1, count):
            raise self._wrong(name, f"{count} numbers")
        if not all(type(part) in (int, float) and math.isfinite(part) and least <= part <= 1000 for part in value):
            raise self._wrong(name, f"{count} finite numbers from {least:g} to 1000")
        return tuple(value)

    def sides(self, name: str, default: int | tuple[int, int], *, most: int = MOST_PIXELS) -> tuple[int, int]:
        """(height, width) in pixels, given as one number or two."""
        value = default if self.told.get(name) is None else self.told[name]
        both = value if isinstance(value, list | tuple) else (value, value)
        if len(both) != 2 or not all(type(side) is int and 1 <= side <= most for side in both):
            raise self._wrong(name, f"pixels from 1 to {most:,}, or two such numbers (height, width)")
        return both[0], both[1]

    def word(self, name: str, default: str | None = None) -> str:
        """Text."""
        value = default if self.told.get(name) is None else self.told[name]
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def truth(self, name: str, default: bool) -> bool:
        """True or false."""
        value = default if self.told.get(name) is None else self.told[name]
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def section(self, name: str) -> Told:
        """Values inside of one; none where it is missing."""
        value = self.told.get(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "an object {...}")
        return Told(value or {}, f"{name} of {self.place}")

    def agree(self, name: str, tensors: int | bool) -> None:
        """Refuse a size, or a yes or no, that is not that of the tensors."""
        if self.told.get(name) is None:
            return
        said = self.truth(name, False) if isinstance(tensors, bool) else self.whole(name, None, most=2**31)
        if said != tensors:
            raise self._wrong(name, f"{json.dumps(tensors)}, which the tensors have")


NOTHING_TOLD = Told({}, "nothing")


def read_told(path: Path) -> Told:
    """The object in a JSON file; nothing told where there is none.

    Raises:
      UserError: a file that is no JSON.
    """
    if not path.is_file():
        return NOTHING_TOLD
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON:,} bytes")
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("not an object {...}")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Expected JSON in {path}, it cannot be read ({error}).") from error
    return Told(content, str(path))
