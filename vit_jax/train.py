"""The one training loop. Read it from top to bottom; the objective decides what is learned, this file never does.

devices -> data -> model and optimiser -> where we begin -> loop (evaluate? save? draw, step, log?) -> last words
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vit_jax import configuration, sharding
from vit_jax.contracts import Batch, Config, UserError, check_batch
from vit_jax.data.loader import eval_batches, train_batches
from vit_jax.data.sources import Source, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.models.registry import count_params, flat_params, pair, path_name
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.objectives import make_objective
from vit_jax.training.optimizer import print_table, settings_table
from vit_jax.training.schedules import in_steps, make_schedule
from vit_jax.training.step import Program, State, make_program
from vit_jax.training.tracker import Tracker, Window
from vit_jax.training.transfer import transfer

Draw = Callable[[Path, Config, Any, Batch], None]


class Result(NamedTuple):
    """How a run ended: the last evaluation, the step reached, and whether it was told to stop early."""

    metrics: dict[str, float]
    step: int
    stopped: bool


def run(config: Config, workdir: str | Path, draw: Draw | None = None) -> Result:
    """Train as `config` says; continue where `workdir` left off.

    Args:
      config: every field of configs/common.py.
      workdir: folder of checkpoints, metrics and figures; made if missing.
      draw: called with (workdir, config, model, an evaluation batch) at `figures_every` and at the end.

    Raises:
      UserError: bad data or settings, a workdir of another configuration, a full disk, or a loss that stays non-finite.
    """
    configuration.check_fields(config)
    stop = _stop_on_sigterm()

    # Devices
    use_compilation_cache()
    mesh = _mesh(config)
    process, processes = jax.process_index(), jax.process_count()

    # Data
    source = _open(config, config["pp"]["train"])
    test = _open(config, config["pp"]["test"])
    if config["objective"] == "classify" and source.class_names != test.class_names:
        raise UserError("Expected the same classes in pp.train and pp.test, they differ: check the folders' names.")
    preprocess = Preprocess.from_config(config["pp"])
    num_classes = None if config["objective"] == "mae" else len(source.class_names or ())
    steps_per_epoch = len(source) / config["batch"]
    total_steps = in_steps(config, "total", steps_per_epoch)
    _check_eval_batch(config, mesh)

    # Model and optimiser
    objective = make_objective(config, num_classes)
    schedule = make_schedule(config, total_steps, in_steps(config, "warmup", steps_per_epoch))
    try:
        program = make_program(config, objective, schedule, num_classes, mesh)
    except ValueError as error:
        raise UserError(str(error)) from error
    eval_step = make_eval_step(objective, program.graph, program.layout.params, mesh)

    # Where we begin: 1 this workdir's own last checkpoint, 2 another run's weights, 3 from scratch
    workdir = Path(workdir)
    _make_folder(workdir)
    checkpoints = Checkpoints(workdir, keep=config["keep_checkpoints"])
    state, begin_note = begin(config, program, checkpoints)
    metadata = _metadata(config, source, num_classes)
    _write_once(workdir, config, program)

    step = int(state.step)
    batches = train_batches(
        source, preprocess, batch=config["batch"], seed=config["seed"], start=step, process=process,
        processes=processes, num_workers=config["num_workers"], num_threads=config["num_threads"],
        prefetch=config["prefetch"], max_unreadable=config["max_unreadable"],
    )  # fmt: skip
    tracker = Tracker(workdir, step=step, total_steps=total_steps, writes=process == 0)
    tracker.say(
        f"{begin_note}; {count_params(state.params):,} parameters on {describe_devices(mesh)}; "
        f"{len(source):,} training and {len(test):,} test pictures; {total_steps - step} steps to go"
    )

    def tests() -> Iterator[Batch]:
        return eval_batches(source=test, preprocess=preprocess, batch=config["batch_eval"], process=process,
                            processes=processes, num_threads=config["num_threads"])  # fmt: skip

    def judge(step: int) -> dict[str, float] | None:
        params = state.params if state.ema is None else state.ema
        metrics = evaluate(eval_step, params, tests(), mesh, stop=lambda: bool(stop))
        if metrics is not None:
            tracker.record("eval", step, metrics)
            tracker.say(f"step {step}  test  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics

    def picture() -> None:
        if draw is not None and process == 0:
            params = state.params if state.ema is None else state.ema
            draw(workdir, config, nnx.merge(program.graph, params), next(iter(tests())))

    # Loop
    compiled, window, seed = None, Window(), np.int32(config["seed"])
    try:
        while step < total_steps and not stop:
            waiting = time.perf_counter()
            batch = next(batches)
            if compiled is None:
                check_batch(batch, preprocess_size(config), config["pp"]["channels"], num_classes)
                compiled = _compile(program, state, batch, seed, mesh, tracker, step)
                window = Window()
                waiting = time.perf_counter()
            on_device = sharding.put(batch, mesh)
            window.waited += time.perf_counter() - waiting
            state, report = compiled(state, on_device, seed)
            window.reports.append(report)
            step += 1
            checkpoints.check()

            last = step == total_steps
            if _due(step, config["progress_every"]) or last:
                reports = jax.device_get(window.reports)
                _log(tracker, config, window, reports, step, total_steps)
                _guard(config, reports, step, workdir, source, preprocess)
                window = Window()
            if not last and _due(step, config["eval_every"]):
                judge(step)
                window = _restarted(window)
            if not last and _due(step, config["figures_every"]):
                picture()
                window = _restarted(window)
            if not last and _due(step, config["checkpoint_every"]):
                checkpoints.save(state, configuration.plain(config), metadata)

        # Last words: a stopped run is saved where it is, a finished one is judged
        checkpoints.save(state, configuration.plain(config), metadata)
        checkpoints.wait()
        metrics = judge(step) if not stop else None
        if not stop:
            picture()
        elif step < total_steps:
            tracker.say(f"stopped at step {step}, saved; the same command continues")
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()
        tracker.close()
        checkpoints.close()
    return Result(metrics or {}, step, bool(stop))


def begin(config: Config, program: Program, checkpoints: Checkpoints) -> tuple[State, str]:
    """The first state of this run, and a sentence that says where it came from."""
    own = checkpoints.latest()
    if own is not None:
        stored, _ = checkpoints.read(own)
        configuration.check_same(config, stored, str(checkpoints.folder.parent))
        return checkpoints.restore(own, program.abstract, program.layout), f"continuing at step {own}"
    state = program.init(np.int32(config["seed"]))
    if config["init_from"]:
        other = Checkpoints(config["init_from"], read_only=True)
        step = other.latest()
        if step is None:
            raise UserError(f"Expected a checkpoint in init_from={config['init_from']}, it has none.")
        theirs, _ = other.read(step)
        shapes = {path: leaf.shape for path, leaf in flat_params(state.params).items()}
        moved = transfer(other.params(step), theirs, shapes, config)
        other.close()
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.device_put(moved.params.get(path_name(path), leaf), leaf.sharding), state.params
        )
        ema = state.ema if state.ema is None else jax.tree.map(lambda leaf: leaf.copy(), params)
        return state._replace(params=params, ema=ema), f"from {config['init_from']} step {step}: {moved.summary()}"
    return state, "from scratch"


def _open(config: Config, split: str) -> Source:
    return open_source(config["dataset"], split, tfds_data_dir=config["tfds_data_dir"], seed=config["seed"])


def preprocess_size(config: Config) -> tuple[int, int]:
    return pair(config["pp"]["crop"])


def describe_devices(mesh: Any) -> str:
    devices = mesh.devices.reshape(-1)
    return f"{devices.size} x {devices[0].device_kind} ({devices[0].platform})"


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user chose a place (or none) by JAX's own variables."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(home) / "vit_jax" / "xla"))


def _stop_on_sigterm() -> list[int]:
    """A list that SIGTERM fills: schedulers send it before they take a machine away."""
    received: list[int] = []
    with contextlib.suppress(ValueError):  # not the main thread: whoever owns the signals decides
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    return received


def _mesh(config: Config) -> Any:
    try:
        return sharding.make_mesh(dict(config["mesh"]))
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_eval_batch(config: Config, mesh: Any) -> None:
    ways = sharding.batch_ways(mesh)
    if config["batch_eval"] % ways:
        raise UserError(
            f"Expected batch_eval divisible by {ways} devices, got {config['batch_eval']}: change batch_eval."
        )


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Expected a workdir that can be written, {workdir} cannot ({error.strerror}).") from error


def _metadata(config: Config, source: Source, num_classes: int | None) -> dict[str, Any]:
    return {
        "class_names": list(source.class_names) if num_classes and source.class_names else None,
        "num_classes": num_classes,
        "dataset": source.name,
        "image_size": list(preprocess_size(config)),
    }


def _write_once(workdir: Path, config: Config, program: Program) -> None:
    """config.json and the table of rates and decays, for people."""
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(configuration.plain(config), indent=2) + "\n")
        (workdir / "parameters.txt").write_text(print_table(settings_table(program.abstract.params, config)))


def _compile(program: Program, state: State, batch: Batch, seed: Any, mesh: Any, tracker: Tracker, step: int) -> Any:
    """Compile the step before the clock starts, and note how long that took."""
    began = time.perf_counter()
    compiled = program.step.lower(state, sharding.put(batch, mesh), seed).compile()
    seconds = time.perf_counter() - began
    tracker.record("run", step, {"compile_seconds": round(seconds, 2)})
    return compiled


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _restarted(window: Window) -> Window:
    """The same window after an interruption that is not training: its clock starts again if it is still empty."""
    return Window() if not window.reports else window


def _log(tracker: Tracker, config: Config, window: Window, reports: list[Any], step: int, total_steps: int) -> None:
    values = window.values(config["batch"], reports)
    eta = (total_steps - step) * (time.perf_counter() - window.began) / len(reports)
    tracker.record("train", step, values)
    tracker.line(step, values, eta)


def _guard(
    config: Config, reports: list[Any], step: int, workdir: Path, source: Source, preprocess: Preprocess
) -> None:
    """Report skipped steps, keep their batch for a replay, and stop when too many come in a row."""
    first = step - len(reports)
    bad = [first + place for place, report in enumerate(reports) if not report.finite]
    if not bad:
        return
    folder = workdir / "skipped"
    folder.mkdir(exist_ok=True)
    # The data is a function of (seed, step): the batch is made again rather than kept all the time.
    batch = next(train_batches(source, preprocess, batch=config["batch"], seed=config["seed"], start=bad[0],
                               process=jax.process_index(), processes=jax.process_count()))  # fmt: skip
    kept = folder / f"batch_{bad[0]}.npz"
    np.savez(kept, **batch._asdict())
    print(f"\nskipped {len(bad)} steps with a loss or gradient that is not finite, first at {bad[0]}; batch in {kept}")
    if max(int(report.skipped_in_row) for report in reports) >= config["max_skipped_steps"]:
        raise UserError(
            f"Expected a finite loss, {int(reports[-1].skipped_in_row)} steps in a row up to {step} had none: lower "
            f"base_lr or set grad_norm_clip; the batch is in {kept}, the last checkpoint is untouched."
        )
