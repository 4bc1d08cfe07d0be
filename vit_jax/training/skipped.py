"""Steps that were left out as something in them was not finite: kept for a replay, with advice when they do not end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.contracts import Batch
from vit_jax.training.checkpoints import Checkpoints

FOLDER = "skipped"


def keep_first(workdir: Path, step: int, reports: list[Any], batches: Callable[[int], Iterator[Batch]]) -> Path | None:
    """Of the reports up to `step`, write the batch of the first step that was left out; say so and return its path."""
    first = step - len(reports)
    bad = [first + place for place, report in enumerate(reports) if not report.finite]
    if not bad:
        return None
    (workdir / FOLDER).mkdir(exist_ok=True)
    kept = workdir / FOLDER / f"batch_{bad[0]}.npz"
    batch = next(batches(bad[0]))._asdict()  # made again rather than kept all the time
    np.savez(kept, **{name: part for name, part in batch.items() if part is not None})
    what = "whose loss, gradient or new parameters are not finite"
    print(f"\nskipped {len(bad)} steps {what}, first at {bad[0]}; batch in {kept}")
    return kept


def remedy(checkpoints: Checkpoints, step: int, in_row: int) -> str:
    """What to do about `in_row` steps without a finite loss up to `step`.

    Nothing is saved from such a streak. What was saved just before it may still be its cause: finite numbers, too large.
    """
    checkpoints.wait()
    steps, before = checkpoints.steps(), step - in_row
    again = "lower base_lr or set grad_norm_clip, and give the same command again, which"
    if not steps:
        return f"{again} begins again, as nothing was saved yet"
    if steps[-1] < before:
        return f"{again} continues from step {steps[-1]}"
    rest = f"continues from step {steps[-2]}" if len(steps) > 1 else "begins again"
    place = checkpoints.folder / str(before)
    return f"{again} continues from step {before}; where that does not help, remove {place}, and it {rest}"
