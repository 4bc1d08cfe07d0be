"""The one training loop. Read it from top to bottom; the method decides what is learned, this file never does.

prepare (devices, data, model and optimiser, where we begin) -> loop (evaluate? save? draw, step, log?) -> last words
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import configuration, processes, sharding
from vit_jax.bucket_lock import lock_of
from vit_jax.contracts import Batch, Config, UserError, check_batch
from vit_jax.methods import method_of
from vit_jax.models.registry import pair
from vit_jax.places import Mirror, Where, place
from vit_jax.preparing import prepare
from vit_jax.run import Draw, Run
from vit_jax.training import skipped
from vit_jax.training.best import FOLDER as BEST
from vit_jax.training.flops import jaxpr_flops
from vit_jax.training.forecast import measured
from vit_jax.training.progress import STEPS_AHEAD, Progress, Window
from vit_jax.training.tracker import Tracker
from vit_jax.watchdog import QUIET_SECONDS, SLOW, Watchdog


class Result(NamedTuple):
    """How a run ended: the last evaluation, the step reached, and whether it was told to stop early."""

    metrics: dict[str, float]
    step: int
    stopped: bool


def run(
    config: Config,
    workdir: Where,
    draw: Draw | None = None,
    typed: frozenset[str] = frozenset(),
    recipe: str | None = None,
) -> Result:
    """Train as `config` says; continue where `workdir` left off.

    Args:
      config: every field of configs/common.py.
      workdir: folder of checkpoints, metrics and figures, on a disk or in a bucket; made if missing.
      draw: called with (workdir, config, model, a few test pictures, frozen networks) at `figures_every` and at the end.
      typed: fields that the user set by hand, which the weights of `init_from` do not decide.
      recipe: FILE:ARG that `config` was made from, for the record.

    Raises:
      UserError: bad data or settings, a workdir of another configuration, a full disk, or a loss that stays non-finite.
      KeyboardInterrupt: after Ctrl-C, with the last step saved.
    """
    configuration.check(config)
    lock, mirror = lock_of(place(workdir)), Mirror(place(workdir))
    watch = Watchdog(mirror.local, config["hang_seconds"], speaks=jax.process_index() == 0)
    with (
        contextlib.closing(processes.Stop()) as stop,
        contextlib.closing(mirror),
        contextlib.closing(watch),
        contextlib.closing(lock),
    ):
        if jax.process_index() == 0:
            print(f"{config['dataset']} -> {workdir}", flush=True)
        with processes.together():
            held = prepare(config, mirror, draw, stop, lock, watch, typed, recipe)
        with contextlib.closing(held), processes.together():
            loop(held)
            metrics = finish(held)
    if stop.interrupted:
        raise KeyboardInterrupt
    return Result(metrics, held.step, stop.told)


def loop(run: Run) -> None:
    """Draw, step, log, evaluate, save: until the last step or a signal."""
    config, tracker, watch = run.config, run.tracker, run.watch
    batches = run.batches(run.step)
    compiled, window, seed = None, Window(), np.int32(config["seed"])
    every = {name: config[f"{name}_every"] for name in ("eval", "figures", "checkpoint")}
    progress = Progress(run.total_steps, every)
    said = saved = time.perf_counter()
    if 0 < run.step < run.total_steps and _due(run.step, config["eval_every"]) and run.judged() is None:
        run.judge()  # an earlier start was stopped in the middle of it
    try:
        while not run.done and not run.stop():
            waiting = time.perf_counter()
            watch.waits_for("training pictures")
            batch = next(batches, None)
            if batch is None:  # told to stop while waiting
                continue
            if compiled is None:
                check_batch(batch, pair(config["pp"]["crop"]), config["pp"]["channels"], run.num_classes)
                compiled = _compile(run, batch, seed)
                run.stop.listen()  # there is something to save now
                window = Window()
                waiting = said = saved = time.perf_counter()
            watch.waits_for(run.devices)
            on_device = sharding.put(batch, run.mesh)
            window.waited += time.perf_counter() - waiting
            run.state, report = compiled(run.state, on_device, seed, *run.program.frozen)
            window.reports.append(report)
            run.step += 1
            if len(window.reports) > STEPS_AHEAD:
                jax.block_until_ready(window.reports[-1 - STEPS_AHEAD].finite)
            watch.step(run.step)
            run.checkpoints.check()
            if told := progress.forecast(run.step):
                tracker.say(measured(*told))

            last = run.step == run.total_steps
            if _due(run.step, config["progress_every"]) or last:
                reports = jax.device_get(window.reports)
                progress.add(window)
                _log(tracker, config, window, reports, run.step, progress)
                _guard(run, reports)
                window, said = Window(), time.perf_counter()
            elif time.perf_counter() - said > QUIET_SECONDS:
                said = time.perf_counter()
                tracker.say(f"step {run.step}/{run.total_steps}, {window.seconds / window.steps:.1f} s a step")
            if not last and _due(run.step, config["eval_every"]):
                with progress.pause("eval", window):
                    run.judge()
            if not last and _due(run.step, config["figures_every"]) and not run.stop.told:
                with progress.pause("figures", window):
                    run.picture()
            if not last and (_due(run.step, config["checkpoint_every"]) or _late(run, saved)):
                with progress.pause("checkpoint", window):
                    run.save()
                saved = time.perf_counter()
    finally:
        batches.close()


def finish(run: Run) -> dict[str, float]:
    """Last words: a stopped run is saved where it is, a finished one is judged."""
    run.save()
    run.checkpoints.wait()
    if not run.stop.told and (in_row := int(run.state.skipped_in_row)):
        words = skipped.remedy(run.checkpoints, run.step, in_row)
        raise UserError(f"Expected a finite loss, the last step ({run.step}) had none: {words}.")
    metrics = run.judged() if run.done else None
    if metrics is None and not run.stop.told:
        metrics = run.judge()
    if run.config["keep_best"] and run.best.step >= 0:
        run.best_checkpoints.wait()
        run.tracker.say(
            f"best {run.config['keep_best']} {run.best.value:.4g} at step {run.best.step}, kept in {run.workdir / BEST}"
        )
    if run.step < run.total_steps and not run.stop.told:
        run.tracker.say(f"ended early, {run.best.since} evaluations without a better one (config.patience)")
    if run.stop.told:
        saved = run.checkpoints.latest()
        words = (
            "saved" if saved == run.step else f"not saved as its loss was not finite; the last checkpoint is {saved}"
        )
        run.tracker.say(f"stopped at step {run.step}, {words}; the same command continues")
    else:
        run.stop.close()  # figures alone are left, and the same command draws them
        run.picture()
    run.mirror.push()
    return metrics or {}


def _compile(run: Run, batch: Batch, seed: Any) -> Any:
    """Compile the step before the clock starts; say how long that took, and note with which settings it goes on."""
    began = time.perf_counter()
    run.tracker.say("compiling the step ...")
    run.watch.waits_for("the step to be compiled", SLOW)
    traced = run.program.step.trace(run.state, sharding.put(batch, run.mesh), seed, *run.program.frozen)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    run.tracker.say(f"compiled in {seconds:.1f} s")
    processes.meet()
    remedies = {field: float(run.config[field] or 0.0) for field in configuration.REMEDIES}  # they may change meanwhile
    work = {"compile_seconds": round(seconds, 2), "gflop_a_step": round(jaxpr_flops(traced.jaxpr.jaxpr) / 1e9, 3)}
    run.tracker.record("run", run.step, work | remedies)
    return compiled


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _late(run: Run, saved: float) -> bool:
    """Whether `checkpoint_minutes` have passed. Several processes go by the first one's clock, and ask for it at progress
    lines only: it costs an exchange."""
    minutes = run.config["checkpoint_minutes"]
    if not minutes:
        return False
    late = time.perf_counter() - saved > 60 * minutes
    if jax.process_count() == 1:
        return late
    return _due(run.step, run.config["progress_every"] or 50) and bool(processes.gather(int(late))[0])


def _log(tracker: Tracker, config: Config, window: Window, reports: list[Any], step: int, progress: Progress) -> None:
    values = method_of(config).summary(window.values(config["batch"], reports))
    tracker.record("train", step, values)
    tracker.line(step, values, progress)


def _guard(run: Run, reports: list[Any]) -> None:
    """Report skipped steps, keep their batch for a replay, and stop when too many come in a row."""
    kept = skipped.keep_first(run.mirror.local, run.step, reports, run.batches)
    if max(int(report.skipped_in_row) for report in reports) >= run.config["max_skipped_steps"]:
        in_row = int(reports[-1].skipped_in_row)
        raise UserError(
            f"Expected a finite loss, {in_row} steps in a row up to {run.step} had none: "
            f"{skipped.remedy(run.checkpoints, run.step, in_row)}; the batch is in {kept}."
        )
