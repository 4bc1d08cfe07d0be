"""The figures that a run leaves in its workdir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from matplotlib.figure import Figure

from vit_jax.contracts import Batch, Config
from vit_jax.evaluation.reconstructions import reconstruct
from vit_jax.models.mae import MAE
from vit_jax.training.tracker import read_metrics
from vit_jax.visualisation import curves, reconstructions


def save(figure: Figure, path: Path) -> None:
    """As PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


def draw_run(workdir: Path, config: Config, model: Any, batch: Batch) -> None:
    """Curves of any run; reconstructions of a masked autoencoder."""
    rows = read_metrics(workdir)
    if any(row["kind"] == "train" for row in rows):
        save(curves.draw(rows), workdir / "figures" / "curves.png")
    if isinstance(model, MAE):
        pp = config["pp"]
        found = reconstruct(model, jnp.asarray(batch.image[:8]), pp["mean"], pp["std"])
        figure = reconstructions.draw(found[:4], true_statistics=found.true_statistics)
        save(figure, workdir / "figures" / "reconstructions.png")
