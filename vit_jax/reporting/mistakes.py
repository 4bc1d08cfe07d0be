"""The pictures that a model is most wrong about, in words for a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

SHOWN = 12
NAMED = 4  # labels or numbers of one picture
NOTHING = 1e-30  # a probability that counts as none


class Mistake(NamedTuple):
    """One picture: where it is among those asked about, what it is and what was said."""

    row: int
    label: str
    said: str
    image: np.ndarray | None = None


def worst(
    config: dict[str, Any], said: Float[np.ndarray, "n c"], labels: Num[np.ndarray, "..."], names: Sequence[str]
) -> list[Mistake]:
    """Wrong answers, the worst first: the label had the lowest probability, or the number was furthest off."""
    found = {"classes": _classes, "multilabel": _multilabel, "regression": _regression}[config["task"]]
    return found(said.astype(np.float64), labels, names, config)


def _classes(
    said: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"], names: Sequence[str], config: dict[str, Any]
) -> list[Mistake]:
    broken, answer = np.isnan(said).any(axis=1), np.argmax(said, axis=1)
    given = said[np.arange(len(said)), np.maximum(labels, 0)]
    wrong = (labels >= 0) & ((answer != labels) | broken)

    def caption(row: int) -> Mistake:
        chosen, label = answer[row].item(), labels[row].item()
        words = "no number" if broken[row] else f"{names[chosen]} ({said[row, chosen]:.0%})"
        return Mistake(row, f"{names[label]} ({given[row]:.1%})", words)

    return _first(np.where(broken, np.inf, -np.log(np.maximum(given, NOTHING))), wrong, caption)


def _multilabel(
    said: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"], names: Sequence[str], config: dict[str, Any]
) -> list[Mistake]:
    there, answer = labels > 0.5, said >= config["threshold"]
    given = np.where(there, said, 1.0 - said)  # probability of the truth of each class

    def listed(chosen: np.ndarray) -> str:
        few = [names[place] for place in np.flatnonzero(chosen).tolist()]
        return ", ".join(few[:NAMED]) + (f" and {len(few) - NAMED} more" if len(few) > NAMED else "") or "none"

    def caption(row: int) -> Mistake:
        return Mistake(row, listed(there[row]), listed(answer[row]))

    loss = -np.log(np.maximum(np.nan_to_num(given, nan=0.0), NOTHING)).sum(axis=1)
    return _first(loss, (there != answer).any(axis=1), caption)


def _regression(
    said: Float[np.ndarray, "n c"], labels: Float[np.ndarray, "n c"], names: Sequence[str], config: dict[str, Any]
) -> list[Mistake]:
    off = np.abs(said - labels) / np.asarray(config["target_std"] or 1.0)

    def listed(row: np.ndarray) -> str:
        pairs = [f"{name} {value:.4g}" for name, value in zip(names, row, strict=True)]
        return ", ".join(pairs[:NAMED]) + (f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else "")

    def caption(row: int) -> Mistake:
        return Mistake(row, listed(labels[row]), listed(said[row]))

    return _first(np.nan_to_num(off, nan=np.inf).mean(axis=1), np.ones(len(said), bool), caption)


def _first(badness: np.ndarray, wrong: np.ndarray, caption: Callable[[int], Mistake]) -> list[Mistake]:
    order = np.argsort(-badness, kind="stable")
    return [caption(int(row)) for row in order if wrong[row]][:SHOWN]
