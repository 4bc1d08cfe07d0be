"""The best evaluation so far: which checkpoint to keep, and when to stop waiting for a better one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vit_jax.contracts import UserError

FOLDER = "best"  # in the workdir: a workdir of its own, which everything opens
LOWER = ("loss", "abs_error", "nll", "mse", "kl")  # metrics of which less is better


class Best(NamedTuple):
    """Of the evaluations so far."""

    step: int = -1
    value: float = float("nan")
    since: int = 0  # evaluations after it, none of them better

    def after(self, step: int, value: float | None, metric: str) -> Best:
        """With one more evaluation. A number that is none (null in the records) is never the best."""
        if value is None or value != value:
            return self._replace(since=self.since + 1)
        better = self.step < 0 or (value < self.value if metric in LOWER else value > self.value)
        return Best(step, value) if better else self._replace(since=self.since + 1)


NONE_YET = Best()


def best_of(rows: Iterable[Mapping[str, Any]], metric: str, until: int) -> Best:
    """From the lines of metrics.jsonl up to step `until`: a run that goes on knows what the one before it had seen."""
    found = NONE_YET
    for row in rows:
        if row["kind"] == "eval" and row["step"] <= until:
            found = found.after(row["step"], row.get(metric), metric)
    return found


def value_of(metrics: Mapping[str, float], metric: str) -> float:
    """The metric that `keep_best` names. Raises `UserError` where evaluation gives no such number."""
    if metric not in metrics:
        raise UserError(
            f"Expected keep_best to be one of {', '.join(sorted(set(metrics) - {'examples'}))}, got {metric!r}: change "
            "config.keep_best."
        )
    return metrics[metric]
