"""`vit-jax train`: the same as `python -m vit_jax.main`."""

from __future__ import annotations

from vit_jax import configuration, main

HELP = """usage: vit-jax train --workdir=DIR --config=FILE[:ARG] [--config.field=value ...]

  --workdir   checkpoints, metrics.jsonl, TensorBoard events and figures; a run there is continued
  --config    a file of configs/ (digits.py:pretrain, mae.py:b16, folder.py:PATH, ...) or your own
  --config.X  any field of configs/common.py, e.g. --config.batch=256 --config.pp.crop=192

Several processes join by themselves on TPU slices, under Slurm and Open MPI; elsewhere:
  --coordinator=HOST:PORT --num_processes=N --process_id=I    (of process 0; how many; this one, from 0)"""


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    configuration.use_recipes()
    return main.main(["vit-jax train", *argv])
