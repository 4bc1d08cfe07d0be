"""`vit-jax demo`: what masked pre-training is good for, on real handwritten digits, in minutes on a CPU.

For three seeds: a masked autoencoder learns from 1,437 unlabelled digits, its encoder is fine-tuned on 100 labels, and
the same classifier is trained from scratch on the same 100 labels with the same settings.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from vit_jax import configuration, train
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.contracts import UserError
from vit_jax.run_figures import draw_run

SEEDS = (0, 1, 2)


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax demo", description=__doc__)
    parser.add_argument("--workdir", type=filled, default="runs/demo", help="folder of its runs (default runs/demo)")
    parser.add_argument("--seeds", type=whole(1, 1000), default=len(SEEDS), help="how many (default 3)")
    args = parser.parse_args(argv)

    root, began = Path(args.workdir), time.perf_counter()
    if root.exists() and not (root / "demo.txt").exists() and any(root.iterdir()):
        raise UserError(f"Expected a new folder or an earlier demo's, {root} holds something else: give --workdir.")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "demo.txt").write_text("made by `vit-jax demo`; run again, it is made anew\n")

    rows = [one_seed(root / f"seed{seed}", seed) for seed in range(args.seeds)]
    summary: dict[str, Any] = {
        "labels": 100,
        "test_pictures": 360,
        "seeds": rows,
        "pretrained_accuracy": statistics.mean(row["finetune"] for row in rows),
        "scratch_accuracy": statistics.mean(row["scratch"] for row in rows),
        "seconds": round(time.perf_counter() - began, 1),
    }
    (root / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(report(summary, root))
    if summary["pretrained_accuracy"] <= summary["scratch_accuracy"]:
        print("error: pre-training did not win; this should not happen, please report it with summary.json")
        return 1
    return 0


def one_seed(folder: Path, seed: int) -> dict[str, float]:
    """Three runs; test accuracies of the two classifiers, and the masked autoencoder's test loss."""
    results: dict[str, float] = {"seed": seed}
    for stage in ("pretrain", "finetune", "scratch"):
        print(f"\n--- seed {seed}: {stage}", flush=True)
        recipe = f"digits.py:{stage}"
        config = configuration.load(recipe)
        config.seed = seed
        if stage == "finetune":
            config.init_from = str(folder / "pretrain")
        ended = train.run(config, folder / stage, draw=draw_run, recipe=recipe)
        if ended.stopped:
            raise UserError(f"The demo was stopped at {folder / stage}: run it again.")
        results[stage] = ended.metrics["loss" if stage == "pretrain" else "accuracy"]
    return results


def report(summary: dict[str, Any], root: Path) -> str:
    lines = [
        "",
        f"Test accuracy on {summary['test_pictures']} digits, {summary['labels']} labels to learn from:",
        f"{'seed':>6s}  {'pre-trained by MAE':>18s}  {'from scratch':>12s}",
    ]
    lines += [f"{row['seed']:6d}  {row['finetune']:18.1%}  {row['scratch']:12.1%}" for row in summary["seeds"]]
    lines += [
        f"{'mean':>6s}  {summary['pretrained_accuracy']:18.1%}  {summary['scratch_accuracy']:12.1%}",
        "",
        f"{summary['seconds']:.0f} seconds; the numbers are in {root / 'summary.json'}. Open:",
        f"  {root / 'seed0/pretrain/figures/reconstructions.png'}   what the autoencoder makes of masked digits",
        f"  {root / 'seed0/finetune/figures/curves.png'}            loss, accuracy, learning rate",
        "",
        "Next, your own pictures (a folder a class, or without labels for pre-training):",
        "  vit-jax train --workdir=runs/mine-mae --config=folder.py:pretrain,YOUR_FOLDER",
        "  vit-jax train --workdir=runs/mine --config=folder.py:finetune,YOUR_FOLDER --config.init_from=runs/mine-mae",
        "  vit-jax predict runs/mine SOME_PICTURE.jpg",
    ]
    return "\n".join(lines)
