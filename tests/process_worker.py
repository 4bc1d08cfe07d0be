"""Run by test_processes.py in several processes: evaluates data sets of every length and prints the metrics."""

import json
import sys

import jax
import numpy as np

from vit_jax import configuration, processes, sharding
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program


def metrics_of_every_length(config, lengths):
    """Metrics on the first n pictures of the data set, for each n."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": -1})
    objective = method_of(config).objective(config, 10)
    program = make_program(config, objective, make_schedule(config, 10, 1), 10, mesh)
    judge, params = make_eval_step(objective, program.graph, program.layout.params, mesh), program.init(0).params
    rows = sharding.local_rows(config.batch_eval, mesh)
    found = []
    for length in lengths:
        source = open_source("fake", f"test[:{length}]")
        assert len(source) == length
        batches = eval_batches(
            source, Preprocess.from_config(config.pp), batch=config.batch_eval, rows=rows, num_threads=1
        )
        found.append(evaluate(judge, params, batches, mesh))
    return found


if __name__ == "__main__":
    processes.join(timeout=60)
    configuration.use_recipes()
    small = configuration.load("digits.py:scratch")
    small.update_from_flattened_dict(json.loads(sys.argv[1]))
    found = metrics_of_every_length(small, range(1, 2 * small.batch_eval + 2))
    if jax.process_index() == 0:
        print(json.dumps([{name: float(np.float64(value)) for name, value in row.items()} for row in found]))
