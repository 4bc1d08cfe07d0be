"""`vit-jax eval WORKDIR`: exact metrics of the last checkpoint, on any data set."""

from __future__ import annotations

import jax
from flax import nnx

from vit_jax import sharding
from vit_jax.api import load
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.contracts import UserError, to_json
from vit_jax.data.loader import eval_batches
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax eval", description=__doc__)
    parser.add_argument("workdir", type=filled, help="or a file of weights that `vit-jax convert` reads")
    parser.add_argument("--dataset", type=filled, help="another data set than the run's: a folder or a TFDS name")
    parser.add_argument("--split", type=filled, help="default: the run's pp.test")
    parser.add_argument("--batch", type=whole(1, 2**20), help="default: the run's batch_eval")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_given(parser)
    args = parser.parse_args(argv)

    trained = load(args.workdir, **given_of(args))
    config = trained.config
    source = open_source(
        args.dataset or config["dataset"],
        args.split or config["pp"]["test"],
        tfds_data_dir=config["tfds_data_dir"],
        seed=config["seed"],
    )
    method = method_of(config)
    classes = trained.encoder.cfg.num_classes if method.labels else None
    found = len(source.class_names or ())
    if classes and not trained.class_names and found != classes:
        raise UserError(f"Expected pictures of {classes} classes, {source.name} has {found}: give another --dataset.")
    if trained.class_names and source.class_names != trained.class_names:
        raise UserError(
            f"Expected the classes of the run ({len(trained.class_names)}: {', '.join(trained.class_names[:5])} ...), "
            f"got those of {source.name}: give --dataset with the same classes."
        )
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    graph, params = nnx.split(trained.model)
    objective = method.objective(config, classes)
    step = make_eval_step(objective, graph, None, mesh)
    batch = args.batch or config["batch_eval"]
    metrics = evaluate(step, params, eval_batches(source, Preprocess.from_config(config["pp"]), batch=batch), mesh)
    assert metrics is not None
    metrics = method.summary(metrics)
    if args.json:
        print(to_json({"step": trained.step, **metrics}))
    else:
        print(f"step {trained.step} on {source.name}: " + "  ".join(f"{k} {v:.6g}" for k, v in metrics.items()))
    return 0
