"""The one training loop. Read it from top to bottom; the objective decides what is learned, this file never does.

devices -> data -> model and optimiser -> where we begin -> loop (evaluate? save? draw, step, log?) -> last words
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vit_jax import configuration, derived, processes, sharding, workdirs
from vit_jax.beginning import begin, with_weights
from vit_jax.contracts import Batch, Config, UserError, check_batch
from vit_jax.data.decoding import check_channels
from vit_jax.data.loader import eval_batches, spread_batch, train_batches
from vit_jax.data.sources import Source, check_classes, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import describe_devices, make_mesh, use_compilation_cache
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.models.registry import count_params, pair, vit_config
from vit_jax.training import skipped
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.forecast import cpu_forecast
from vit_jax.training.objectives import make_objective
from vit_jax.training.optimizer import print_table, settings_table
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import Program, State, make_program
from vit_jax.training.tracker import Tracker, Window

# Steps handed to the device beyond the one it works on. Without a bound the host runs ahead to the next log line, and a
# signal to stop is only heard once all of that is computed.
STEPS_AHEAD = 2
Draw = Callable[[Path, Config, Any, Batch], None]


class Result(NamedTuple):
    """How a run ended: the last evaluation, the step reached, and whether it was told to stop early."""

    metrics: dict[str, float]
    step: int
    stopped: bool


def run(config: Config, workdir: str | Path, draw: Draw | None = None, typed: frozenset[str] = frozenset()) -> Result:
    """Train as `config` says; continue where `workdir` left off.

    Args:
      config: every field of configs/common.py.
      workdir: folder of checkpoints, metrics and figures; made if missing.
      draw: called with (workdir, config, model, a few test pictures) at `figures_every` and at the end.
      typed: fields that the user set by hand, which the weights of `init_from` do not decide.

    Raises:
      UserError: bad data or settings, a workdir of another configuration, a full disk, or a loss that stays non-finite.
      KeyboardInterrupt: after Ctrl-C, with the last step saved.
    """
    configuration.check(config)
    with contextlib.closing(processes.Stop()) as stop, contextlib.closing(workdirs.Lock(workdir)) as lock:
        with processes.together():
            held = prepare(config, Path(workdir), draw, stop, lock, typed)
        with contextlib.closing(held), processes.together():
            loop(held)
            metrics = finish(held)
    if stop.interrupted:
        raise KeyboardInterrupt
    return Result(metrics, held.step, stop.told)


@dataclasses.dataclass
class Run:
    """What one run holds; `state` and `step` move, the rest stays."""

    config: Config
    workdir: Path
    draw: Draw | None
    stop: processes.Stop
    lock: workdirs.Lock
    mesh: Mesh
    source: Source
    test: Source
    preprocess: Preprocess
    num_classes: int | None
    total_steps: int
    program: Program
    eval_step: Any
    checkpoints: Checkpoints
    metadata: dict[str, Any]
    tracker: Tracker
    state: State
    step: int

    def batches(self, start: int) -> Iterator[Batch]:
        """Training batches from number `start` on: the data is a function of (seed, step)."""
        config = self.config
        return train_batches(
            self.source, self.preprocess, batch=config["batch"], seed=config["seed"], start=start,
            rows=sharding.local_rows(config["batch"], self.mesh), num_workers=config["num_workers"],
            num_threads=config["num_threads"], prefetch=config["prefetch"], max_unreadable=config["max_unreadable"],
        )  # fmt: skip

    def tests(self) -> Iterator[Batch]:
        """The evaluation pictures, every one once."""
        config = self.config
        return eval_batches(
            self.test, self.preprocess, batch=config["batch_eval"],
            rows=sharding.local_rows(config["batch_eval"], self.mesh), num_threads=config["num_threads"],
            max_unreadable=config["max_unreadable"],
        )  # fmt: skip

    @property
    def best_params(self) -> Any:
        """The moving average where there is one."""
        return self.state.params if self.state.ema is None else self.state.ema

    def judge(self) -> dict[str, float] | None:
        """Evaluate and record; None when told to stop meanwhile."""
        metrics = evaluate(self.eval_step, self.best_params, self.tests(), self.mesh, stop=self.stop)
        if metrics is not None:
            self.tracker.record("eval", self.step, metrics)
            words = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.tracker.say(f"step {self.step}  test  {words}")
        return metrics

    def picture(self) -> None:
        """Draw what the caller asked for."""
        if self.draw is None:
            return
        params = processes.to_host(self.best_params)
        if jax.process_index() == 0:
            model = nnx.merge(self.program.graph, params)
            self.draw(self.workdir, self.config, model, spread_batch(self.test, self.preprocess))

    def save(self) -> None:
        """State, clock and data position together; nothing from a streak of steps that were not finite."""
        self.lock.check()
        if int(self.state.skipped_in_row) == 0:
            self.checkpoints.save(self.state, workdirs.lasting(self.config), self.metadata)

    def close(self) -> None:
        self.tracker.close()
        self.checkpoints.close()


def prepare(
    config: Config,
    workdir: Path,
    draw: Draw | None,
    stop: processes.Stop,
    lock: workdirs.Lock,
    typed: frozenset[str] = frozenset(),
) -> Run:
    """Everything before the first step, in the order in which it can fail; nothing is written before it all fits."""
    # Devices
    use_compilation_cache()
    mesh = make_mesh(config)
    _check_eval_batch(config, mesh)

    # Data
    source, test = _open(config, config["pp"]["train"]), _open(config, config["pp"]["test"])
    if config["objective"] == "classify" and source.class_names != test.class_names:
        raise UserError("Expected the same classes in pp.train and pp.test, they differ: check the folders' names.")

    # Given weights bring the fields of their encoder, the size and channels of pictures among them
    notes = configuration.odd(config)
    config, weights = with_weights(config, workdir, typed, notes)
    preprocess = Preprocess.from_config(config["pp"])
    for pictures in (source, test):
        check_channels(pictures[0], preprocess.channels)
        processes.check_same(f"the number of pictures of {pictures.name}", len(pictures), "give each the same data")
    num_classes = None if config["objective"] == "mae" else check_classes(source)
    if config["batch"] > len(source):
        raise UserError(
            f"Expected a batch of at most the {len(source)} pictures to train on, got {config['batch']}: lower config.batch."
        )
    steps_per_epoch = len(source) / config["batch"]
    total_steps = derived.total_steps(config, steps_per_epoch)

    # Model and optimiser
    objective = make_objective(config, num_classes)
    schedule = make_schedule(config, total_steps, derived.warmup_steps(config, steps_per_epoch))
    try:
        program = make_program(config, objective, schedule, num_classes, mesh)
    except ValueError as error:
        raise UserError(str(error)) from error
    eval_step = make_eval_step(objective, program.graph, program.layout.params, mesh)

    # Where we begin: 1 this workdir's own last checkpoint, 2 given weights, ours or converted, 3 from scratch
    processes.make_shared_folder(workdir)
    lock.take()
    checkpoints = Checkpoints(workdir, keep=config["keep_checkpoints"])
    state, note = begin(config, program, checkpoints, weights)
    step = int(state.step)
    workdirs.describe(workdir, config, print_table(settings_table(program.abstract.params, config)))
    tracker = Tracker(workdir, step=step, total_steps=total_steps, writes=jax.process_index() == 0)
    tracker.say(
        f"{note}; {count_params(state.params):,} parameters on {describe_devices(mesh)}; "
        f"{len(source):,} training and {len(test):,} test pictures; {total_steps - step} steps to go"
        f"{cpu_forecast(config, program, mesh, total_steps - step)}"
    )
    if step >= total_steps:
        notes.append(
            f"this run is finished; to train on from what it learned give another --workdir and --config.init_from={workdir}"
        )
    notes += derived.in_words(config, vit_config(config, None).num_patches, steps_per_epoch)
    for line in notes:
        tracker.say(f"  {line}")
    metadata = _metadata(config, source, num_classes)
    return Run(config, workdir, draw, stop, lock, mesh, source, test, preprocess, num_classes, total_steps, program,
               eval_step, checkpoints, metadata, tracker, state, step)  # fmt: skip


def loop(run: Run) -> None:
    """Draw, step, log, evaluate, save: until the last step or a signal."""
    config, tracker = run.config, run.tracker
    batches = run.batches(run.step)
    compiled, window, seed = None, Window(), np.int32(config["seed"])
    try:
        while run.step < run.total_steps and not run.stop():
            waiting = time.perf_counter()
            batch = next(batches)
            if compiled is None:
                check_batch(batch, pair(config["pp"]["crop"]), config["pp"]["channels"], run.num_classes)
                compiled = _compile(run, batch, seed)
                run.stop.hear_ctrl_c()  # there is something to save now
                window = Window()
                waiting = time.perf_counter()
            on_device = sharding.put(batch, run.mesh)
            window.waited += time.perf_counter() - waiting
            run.state, report = compiled(run.state, on_device, seed)
            window.reports.append(report)
            run.step += 1
            if len(window.reports) > STEPS_AHEAD:
                jax.block_until_ready(window.reports[-1 - STEPS_AHEAD].finite)
            run.checkpoints.check()

            last = run.step == run.total_steps
            if _due(run.step, config["progress_every"]) or last:
                reports = jax.device_get(window.reports)
                _log(tracker, config, window, reports, run.step, run.total_steps)
                _guard(run, reports)
                window = Window()
            if not last and _due(run.step, config["eval_every"]):
                run.judge()
                window = _restarted(window)
            if not last and _due(run.step, config["figures_every"]):
                run.picture()
                window = _restarted(window)
            if not last and _due(run.step, config["checkpoint_every"]):
                run.save()
    finally:
        getattr(batches, "close", lambda: None)()


def finish(run: Run) -> dict[str, float]:
    """Last words: a stopped run is saved where it is, a finished one is judged."""
    run.save()
    run.checkpoints.wait()
    if not run.stop.told and (in_row := int(run.state.skipped_in_row)):
        words = skipped.remedy(run.checkpoints, run.step, in_row)
        raise UserError(f"Expected a finite loss, the last step ({run.step}) had none: {words}.")
    metrics = None if run.stop.told else run.judge()
    if not run.stop.told:
        run.picture()
    elif run.step < run.total_steps:
        saved = run.checkpoints.latest()
        words = (
            "saved" if saved == run.step else f"not saved as its loss was not finite; the last checkpoint is {saved}"
        )
        run.tracker.say(f"stopped at step {run.step}, {words}; the same command continues")
    return metrics or {}


def _open(config: Config, split: str) -> Source:
    return open_source(config["dataset"], split, tfds_data_dir=config["tfds_data_dir"], seed=config["seed"])


def _check_eval_batch(config: Config, mesh: Any) -> None:
    ways = sharding.batch_ways(mesh)
    if config["batch_eval"] % ways:
        raise UserError(
            f"Expected batch_eval divisible by {ways} devices, got {config['batch_eval']}: change batch_eval."
        )


def _metadata(config: Config, source: Source, num_classes: int | None) -> dict[str, Any]:
    return {
        "class_names": list(source.class_names) if num_classes and source.class_names else None,
        "num_classes": num_classes,
        "dataset": source.name,
        "image_size": list(pair(config["pp"]["crop"])),
    }


def _compile(run: Run, batch: Batch, seed: Any) -> Any:
    """Compile the step before the clock starts; note how long that took, and with which settings it goes on."""
    began = time.perf_counter()
    compiled = run.program.step.lower(run.state, sharding.put(batch, run.mesh), seed).compile()
    remedies = {field: float(run.config[field] or 0.0) for field in configuration.REMEDIES}  # they may change meanwhile
    run.tracker.record("run", run.step, {"compile_seconds": round(time.perf_counter() - began, 2), **remedies})
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


def _guard(run: Run, reports: list[Any]) -> None:
    """Report skipped steps, keep their batch for a replay, and stop when too many come in a row."""
    kept = skipped.keep_first(run.workdir, run.step, reports, run.batches)
    if max(int(report.skipped_in_row) for report in reports) >= run.config["max_skipped_steps"]:
        in_row = int(reports[-1].skipped_in_row)
        raise UserError(
            f"Expected a finite loss, {in_row} steps in a row up to {run.step} had none: "
            f"{skipped.remedy(run.checkpoints, run.step, in_row)}; the batch is in {kept}."
        )
