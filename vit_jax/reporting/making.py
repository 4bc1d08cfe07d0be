"""`vit_jax.report`: runs in, one page out, whole or not at all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from vit_jax.contracts import UserError
from vit_jax.places import Where
from vit_jax.reporting.runs import read_runs
from vit_jax.writing import written_whole

PICTURES, SECONDS = 1000, 60  # of the test set asked about, and for how long at most
LIBRARIES = ("plotly", "jinja2")
NO_MODEL = "The model was not asked for this page: what it takes and what it confuses is left out."


def report(
    runs: Where | Sequence[Where],
    out: str | Path = "report.html",
    *,
    model: bool = True,
    pictures: int = PICTURES,
    seconds: int | float = SECONDS,
) -> Path:
    """One self-contained page about one run or several: results, curves, time, mistakes, settings, versions.

    Args:
      runs: workdirs; runs that still go on are read as far as they are.
      out: the page, a name ending in .html; an earlier report of that name is replaced, any other file is left alone.
      model: open the last checkpoints for reconstructions, confusion, mistakes and attention. False: the page without them.
      pictures: of the test set that a model is asked about, a random sample where there are more.
      seconds: for each run, after which fewer pictures have to do.

    Raises:
      UserError: no run there, a place that cannot be written, or the `report` extra is not installed.
    """
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise UserError(f'Expected {" and ".join(missing)} for reports: pip install "vit_jax[report]".')
    from vit_jax.reporting.looks import look, without_model
    from vit_jax.reporting.page import page

    told = read_runs([runs] if isinstance(runs, str | os.PathLike) else runs)
    place = Path(out).expanduser()
    check_place(place)
    with written_whole(place) as file:
        looks = [look(each, pictures, seconds) if model else without_model(each, NO_MODEL) for each in told]
        file.write(page(told, looks).encode())
    return place


def check_place(out: Path) -> None:
    """Raise `UserError` for a name that no report has, or one that something else has."""
    from vit_jax.reporting.page import MARK

    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"Expected a file name ending in .html, got {str(out)!r}: change --out.")
    if out.is_file():
        with out.open(errors="replace") as file:
            if MARK not in file.read(1000):
                raise UserError(f"Expected a new file or an earlier report, {out} is something else: change --out.")
