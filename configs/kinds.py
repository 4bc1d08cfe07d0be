"""What a field may hold: a type and a range, in words that a user reads and as a test that a program runs.

`words` completes the sentence "Expected config.batch to be ...". `usual` is False for what is possible but odd, which a
run says in a line of its own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

LARGEST = sys.float_info.max  # NaN and infinity are not between it and its negative


def _always(value: Any) -> bool:
    return True


class Kind(NamedTuple):
    """A type and a range."""

    words: str
    holds: Callable[[Any], bool]
    type: type  # how a command line reads it: int, float, bool, str or tuple; object: any literal, else text
    usual: Callable[[Any], bool] = _always


def whole(low: int | None = None, high: int | None = None, *, usual: tuple[int, int] | None = None) -> Kind:
    """A whole number from `low` to `high`."""
    bound = _between(low, high)

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and bound(value)

    lowest, highest = "" if low is None else f" from {low:,}", "" if high is None else f" to {high:,}"
    return Kind(f"a whole number{lowest}{highest}", holds, int, _between(*usual) if usual else _always)


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
    usual: tuple[float, float] | None = None,
) -> Kind:
    """A finite number from `low` to `high`, or strictly `above` and `below`."""
    bound = _between(low, high)
    lowest = [f"from {low:g}"] if low is not None else [f"above {above:g}"] if above is not None else []
    highest = [f"at most {high:g}"] if high is not None else [f"below {below:g}"] if below is not None else []

    def holds(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST <= value <= LARGEST:
            return False
        return bound(value) and (above is None or value > above) and (below is None or value < below)

    words = " ".join(["a number", ", ".join(lowest + highest)]).strip()
    return Kind(words, holds, float, _between(*usual) if usual else _always)


def one_of(*names: str) -> Kind:
    """One of a few words."""
    return Kind(f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names, str)


def flag() -> Kind:
    """True or False."""
    return Kind("True or False", lambda value: isinstance(value, bool), bool)


def text(what: str = "text", pattern: str = r"[^\0]*", check: Callable[[str], bool] = _always) -> Kind:
    """Text that `pattern` matches as a whole; `what` says it for people."""
    return Kind(what, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)) and check(value), str)


def several(kind: Kind, *counts: int, what: str = "") -> Kind:
    """A tuple of one kind, of one of these lengths (none given: any length, also none)."""

    def holds(value: Any) -> bool:
        sized = isinstance(value, tuple | list) and (not counts or len(value) in counts)
        return sized and all(kind.holds(part) for part in value)

    lengths = f" of {' or '.join(map(str, counts))}" if counts else ""
    return Kind(what or f"a tuple{lengths}, each {kind.words}", holds, tuple, lambda value: all(map(kind.usual, value)))


def ascending(kind: Kind) -> Kind:
    """(low, high) of one kind."""
    both = several(kind, 2)
    return Kind(
        f"(low, high), low not above high, each {kind.words}",
        lambda value: both.holds(value) and value[0] <= value[1],
        tuple,
        both.usual,
    )


def either(*kinds: Kind) -> Kind:
    """Any of several kinds."""

    def usual(value: Any) -> bool:
        return all(kind.usual(value) for kind in kinds if kind.holds(value))

    return Kind(
        " or ".join(kind.words for kind in kinds),
        lambda value: any(kind.holds(value) for kind in kinds),
        object,
        usual,
    )


def optional(kind: Kind) -> Kind:
    """A kind, or None."""
    return either(Kind("None", lambda value: value is None, object), kind)


def size(low: int = 1, high: int = 65_535) -> Kind:
    """Pixels or cells: one number for a square, or (height, width)."""
    one = whole(low, high)
    return either(one, several(one, 2, what=f"(height, width), each from {low} to {high}"))


def split() -> Kind:
    """Part of a data set, as TFDS writes it."""

    def inside(value: str) -> bool:
        return all(int(percent) <= 100 for percent in re.findall(r"(\d+)%", value))

    return text('a split such as "train" or "train[:98%]"', r"\w+(\[(\d{1,12}%?)?:(\d{1,12}%?)?\])?", inside)


def rules() -> Kind:
    """((regular expression, factor), ...), first match wins."""
    factor = number(0)

    def rule(value: Any) -> bool:
        if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str)):
            return False
        try:
            re.compile(value[0])
        except re.error:
            return False
        return factor.holds(value[1])

    return Kind(
        'pairs (regular expression, factor from 0) such as (("bias$", 0.0), ("", 1.0))',
        lambda value: isinstance(value, tuple | list) and bool(value) and all(map(rule, value)),
        tuple,
    )


def _between(low: float | None, high: float | None) -> Callable[[Any], bool]:
    return lambda value: (low is None or value >= low) and (high is None or value <= high)
