"""The figures that a run leaves in its workdir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from matplotlib.figure import Figure

from vit_jax.contracts import Batch, Config, UserError, first_line
from vit_jax.methods import method_of
from vit_jax.training.tracker import read_metrics
from vit_jax.visualisation import curves, reconstructions

# Of training, measured on pictures that may be mixed (methods/classification.py).
METRICS = {"classes": ("accuracy", "top5"), "multilabel": ("f1", "exact"), "regression": ("abs_error", "baseline")}


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all.

    Raises:
      UserError: a place that cannot be written.
    """
    temporary = path.with_suffix(".tmp.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, dpi=figure.dpi)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"Expected a place to draw to, {path} cannot be written ({first_line(error)}): give another folder or free it."
        ) from error


def draw_run(workdir: Path, config: Config, model: Any, batch: Batch, networks: dict[str, Any]) -> None:
    """Curves of any run; reconstructions of `batch`, a few pictures, where its method has any to show."""
    rows = read_metrics(workdir)
    if any(row["kind"] == "train" for row in rows):
        save(curves.draw(rows, trained_under(config)), workdir / "figures" / "curves.png")
    picture = method_of(config).picture
    if picture is not None and len(batch.image):
        found = picture(model, jnp.asarray(batch.image), config, **networks)
        save(reconstructions.draw(*found), workdir / "figures" / "reconstructions.png")


def trained_under(config: Config) -> dict[str, str]:
    """What makes training metrics another number than the tests' of the same name: mixed pictures, smoothed targets."""
    if not method_of(config).labels:
        return {}
    mixed = [name for name in ("mixup", "cutmix") if config[name]]
    smoothed = ["smoothing"] if config["label_smoothing"] and config["task"] != "regression" else []
    words = {"loss": mixed + smoothed} | dict.fromkeys(METRICS[config["task"]], mixed)
    return {name: ", ".join(found) for name, found in words.items() if found}
