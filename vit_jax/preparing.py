"""Everything before a run's first step, in the order in which it can fail: devices, data, model, where it begins."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath

from vit_jax import configuration, derived, frozen, loggers, processes, sharding, starts, workdirs
from vit_jax.beginning import begin, begun_with, with_weights
from vit_jax.contracts import Config, UserError
from vit_jax.data.decoding import check_channels
from vit_jax.data.labels import labels_of, settled
from vit_jax.data.sources import Source, check_classes, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import describe_devices, make_mesh, use_compilation_cache
from vit_jax.evaluation.evaluators import make_eval_step
from vit_jax.methods import method_of
from vit_jax.models.registry import count_params, pair
from vit_jax.places import Mirror, contact
from vit_jax.run import Draw, Run
from vit_jax.training import continuing
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.forecast import cpu_forecast
from vit_jax.training.optimizer import print_table, settings_table
from vit_jax.training.schedules import schedule_of
from vit_jax.training.step import make_program
from vit_jax.training.tracker import Tracker
from vit_jax.watchdog import SLOW, Watchdog
from vit_jax.workdir_lock import Lock


def prepare(
    config: Config,
    mirror: Mirror,
    draw: Draw | None,
    stop: processes.Stop,
    lock: Lock,
    watch: Watchdog,
    typed: frozenset[str] = frozenset(),
    recipe: str | None = None,
) -> Run:
    """Everything before the first step, in the order in which it can fail; nothing is written before it all fits."""
    workdir = mirror.workdir
    # Devices
    use_compilation_cache()
    mesh = make_mesh(config)
    _check_evaluation(config, mesh)
    loggers.check(config["loggers"])

    # A workdir in a bucket that does not answer
    watch.waits_for(f"an answer of {workdir}", SLOW)
    contact(workdir)

    # Data
    watch.waits_for("the data set to be opened", SLOW)
    source, test = _open(config, config["pp"]["train"]), _open(config, config["pp"]["test"])
    method = method_of(config)
    if method.labels and source.class_names != test.class_names:
        raise UserError("Expected the same classes in pp.train and pp.test, they differ: check the folders' names.")

    # Given weights bring the fields of their encoder, the size and channels of pictures among them
    notes = configuration.odd(config)
    config, weights = with_weights(config, workdir, typed, notes)
    preprocess = Preprocess.from_config(config["pp"])
    for pictures in (source, test):
        check_channels(pictures[0], preprocess.channels)
        processes.check_same(f"the number of pictures of {pictures.name}", len(pictures), "give each the same data")
    num_classes = check_classes(source, config["task"]) if method.labels else None
    config = settled(config, source) if method.labels else config
    if config["batch"] > len(source):
        raise UserError(
            f"Expected a batch of at most the {len(source)} pictures to train on, got {config['batch']}: lower config.batch."
        )
    steps_per_epoch = len(source) / config["batch"]
    total_steps = derived.total_steps(config, steps_per_epoch)

    # Model, networks that it learns from, and optimiser
    watch.waits_for("the weights of networks to learn from", SLOW)
    config, networks = frozen.opened(frozen.remembered(config, begun_with(workdir)))
    objective = method.objective(config, num_classes)
    try:
        program = make_program(
            config, objective, schedule_of(config, steps_per_epoch), num_classes, mesh, networks.asked
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    eval_step = make_eval_step(objective, program.graph, program.layout.params, mesh, networks.asked, program.frozen)

    watch.waits_for("a checkpoint, or first weights", SLOW)
    # Where we begin: 1 this workdir's own last checkpoint, 2 given weights, ours or converted, 3 from scratch
    processes.make_shared_folder(workdir)
    lock.take()
    mirror.pull()
    checkpoints = Checkpoints(workdir, keep=config["keep_checkpoints"])
    length = continuing.Data(steps_per_epoch, num_classes)
    metadata = _metadata(config, source, test, num_classes)
    state, note = begin(config, program, checkpoints, weights, length, metadata)
    step = int(state.step)
    workdirs.describe(mirror.local, config, print_table(settings_table(program.abstract.params, config)))
    starts.record(
        mirror.local, mesh, recipe and workdirs.lasting_recipe(recipe, config), step=step, total_steps=total_steps,
        parameters=count_params(state.params), training_pictures=len(source), test_pictures=len(test),
    )  # fmt: skip
    tracker = Tracker(
        mirror.local, step=step, total_steps=total_steps, writes=jax.process_index() == 0, loggers=config["loggers"],
        config=workdirs.lasting(config), bucket=str(workdir) if mirror.remote else None,
    )  # fmt: skip
    beginning = f"{note}; {count_params(state.params):,} parameters on {describe_devices(mesh)}"
    counted = f"{len(source):,} training and {len(test):,} test pictures"
    forecast = cpu_forecast(config, num_classes, program, mesh, total_steps - step)
    tracker.say(f"{beginning}; {counted}; {total_steps - step} steps to go{forecast}")
    if step >= total_steps:
        notes.append(_finished(config, length, workdir))
    for line in notes + method.in_words(config) + derived.in_words(config, steps_per_epoch):
        tracker.say(f"  {line}")
    return Run(config, mirror, draw, stop, lock, watch, mesh, source, test, preprocess, num_classes, total_steps, networks,
               program, eval_step, checkpoints, metadata, tracker, state, step)  # fmt: skip


def _open(config: Config, split: str) -> Source:
    labels = labels_of(config) if method_of(config).labels else None
    return open_source(
        config["dataset"], split, tfds_data_dir=config["tfds_data_dir"], seed=config["seed"], labels=labels
    )


def _check_evaluation(config: Config, mesh: Any) -> None:
    if config["patience"] is not None and not (config["keep_best"] and config["eval_every"]):
        raise UserError(
            "Expected a metric to be patient about, and evaluations, got keep_best "
            f"{config['keep_best']} and eval_every {config['eval_every']}: set both, or patience to None."
        )
    ways = sharding.batch_ways(mesh)
    if config["batch_eval"] % ways:
        raise UserError(
            f"Expected batch_eval divisible by {ways} devices, got {config['batch_eval']}: change batch_eval."
        )


def _metadata(config: Config, source: Source, test: Source, num_classes: int | None) -> dict[str, Any]:
    return {
        "class_names": list(source.class_names) if num_classes and source.class_names else None,
        "num_classes": num_classes,
        "dataset": source.name,
        "training_pictures": len(source),
        "test_pictures": len(test),
        "image_size": list(pair(config["pp"]["crop"])),
    }


def _finished(config: Config, length: continuing.Data, workdir: epath.Path) -> str:
    longer = (
        "a larger --config.total_steps or --config.total_epochs trains on, as if it had been so long from the start"
        if continuing.grows(config, length)
        else "its schedule ends here, so to train on from what it learned give another --workdir and "
        f"--config.init_from={workdir}"
    )
    return f"this run is finished; {longer}"
