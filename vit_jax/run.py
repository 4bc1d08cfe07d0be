"""What one run holds, and what it can do beside stepping: draw batches, evaluate, make figures, save."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from vit_jax import configuration, processes, sharding, workdirs
from vit_jax.contracts import Batch, Config, UserError
from vit_jax.data.loader import Batches, eval_batches, spread_batch, train_batches
from vit_jax.data.sources import Source
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.evaluators import evaluate
from vit_jax.methods import method_of
from vit_jax.methods.method import Networks
from vit_jax.places import Mirror
from vit_jax.training.best import FOLDER as BEST
from vit_jax.training.best import NONE_YET, Best, best_of, value_of
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.integrity import Damaged
from vit_jax.training.step import Program, State
from vit_jax.training.tracker import Tracker, read_metrics
from vit_jax.watchdog import SLOW, Watchdog
from vit_jax.workdir_lock import Lock

Draw = Callable[[Path, Config, Any, Batch, dict[str, Any]], None]


@dataclasses.dataclass
class Run:
    """What one run holds; `state` and `step` move, the rest stays."""

    config: Config
    mirror: Mirror
    draw: Draw | None
    stop: processes.Stop
    lock: Lock
    watch: Watchdog
    mesh: Mesh
    source: Source
    test: Source
    preprocess: Preprocess
    num_classes: int | None
    total_steps: int
    networks: Networks
    program: Program
    eval_step: Any
    checkpoints: Checkpoints
    metadata: dict[str, Any]
    tracker: Tracker
    state: State
    step: int
    best: Best = NONE_YET

    def __post_init__(self) -> None:
        if metric := self.config["keep_best"]:
            found = best_of(read_metrics(self.mirror.local), metric, self.step)
            if self._kept(found, metric):
                self.best = found
            elif found.step == self.step:  # nobody had asked for it, or its writing was cut off
                self.best = found
                self.keep_best()
            elif found.step >= 0:
                self.tracker.say(
                    f"  the best {metric} so far, {found.value:.4g} at step {found.step}, was not kept: looking for the best "
                    "from here on"
                )

    @property
    def workdir(self) -> epath.Path:
        """Where the checkpoints are; everything else is written into `mirror.local`."""
        return self.mirror.workdir

    @functools.cached_property
    def best_checkpoints(self) -> Checkpoints:
        """Where the best evaluation's checkpoint is kept, by a run that keeps one."""
        return Checkpoints(self.workdir / BEST, keep=1)

    @property
    def done(self) -> bool:
        """Whether the last step was taken, or `patience` is over."""
        patience = self.config["patience"]
        return self.step == self.total_steps or (patience is not None and self.best.since >= patience)

    def batches(self, start: int) -> Batches:
        """Training batches from number `start` on: the data is a function of (seed, step)."""
        config = self.config
        return train_batches(
            self.source, self.preprocess, batch=config["batch"], seed=config["seed"], start=start,
            rows=sharding.local_rows(config["batch"], self.mesh), num_workers=config["num_workers"],
            num_threads=config["num_threads"], prefetch=config["prefetch"], max_unreadable=config["max_unreadable"],
            stop=self.stop.told_here,
        )  # fmt: skip

    def tests(self) -> Iterator[Batch]:
        """The evaluation pictures, every one once; fewer when told to stop meanwhile."""
        config = self.config
        batches = eval_batches(
            self.test, self.preprocess, batch=config["batch_eval"],
            rows=sharding.local_rows(config["batch_eval"], self.mesh), num_threads=config["num_threads"],
            max_unreadable=config["max_unreadable"], stop=self.stop.told_here,
        )  # fmt: skip
        with contextlib.closing(batches):
            self.watch.waits_for("test pictures")
            for batch in batches:
                self.watch.waits_for(f"the evaluation on {self.devices}", SLOW)
                yield batch
                self.watch.waits_for("test pictures")

    @property
    def devices(self) -> str:
        """What is waited for, in words: nobody can tell a slow device from a slow process in the same sum."""
        return "the device" if jax.process_count() == 1 else "the devices or another process"

    @property
    def best_params(self) -> Any:
        """The moving average where there is one."""
        return self.state.params if self.state.ema is None else self.state.ema

    def judge(self) -> dict[str, float] | None:
        """Evaluate and record; None when told to stop meanwhile."""
        metrics = evaluate(self.eval_step, self.best_params, self.tests(), self.mesh, stop=self.stop)
        if metrics is not None:
            metrics = method_of(self.config).summary(metrics)
            self.tracker.record("eval", self.step, metrics)
            words = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.tracker.say(f"step {self.step}  test  {words}")
            self.compare(metrics)
        return metrics

    def compare(self, metrics: dict[str, float]) -> None:
        """Keep this step where its evaluation is the best so far."""
        if metric := self.config["keep_best"]:
            self.best = self.best.after(self.step, value_of(metrics, metric), metric)
            if self.best.step == self.step:
                self.keep_best()

    def keep_best(self) -> None:
        """Save this step as the best one, in place of what a run that went back may have left of it and of later ones."""
        if int(self.state.skipped_in_row) == 0:
            self.watch.waits_for(f"a checkpoint in {self.workdir / BEST} to be written", SLOW)
            self.best_checkpoints.remove_from(self.step)
            self.best_checkpoints.save(self.state, workdirs.lasting(self.config), self.metadata)

    def _kept(self, best: Best, metric: str) -> bool:
        """Whether `best/` holds it, or what was better still in steps that this run will take again."""
        step = self.best_checkpoints.latest()
        if step is None:
            return False
        try:
            stored, _ = self.best_checkpoints.read(step)
        except Damaged:
            return False
        now = configuration.plain(self.config)
        again = step > self.step and all(stored[field] == now[field] for field in configuration.REMEDIES)
        return stored["keep_best"] == metric and (step == best.step or again)

    def judged(self) -> dict[str, float] | None:
        """What an earlier start recorded of this step's evaluation: it may have ended before or after that."""
        found: dict[str, float] | None = None
        for row in read_metrics(self.mirror.local):
            if (row["kind"], row["step"]) == ("eval", self.step):
                found = {name: value for name, value in row.items() if name not in ("kind", "step", "time")}
        there = processes.gather(int(found is not None))[0]  # the first process writes them
        return (found or {}) if there else None

    def picture(self) -> None:
        """Draw what the caller asked for."""
        if self.draw is None:
            return
        self.watch.waits_for("figures to be drawn", SLOW)
        params = processes.to_host(self.best_params)
        if jax.process_index() == 0:
            model, pictures = nnx.merge(self.program.graph, params), spread_batch(self.test, self.preprocess)
            self.draw(self.mirror.local, self.config, model, pictures, self.networks.whole())
            self.tracker.figures(self.step)

    def save(self) -> None:
        """State, clock and data position together; nothing from a streak of steps that were not finite."""
        self.watch.waits_for(f"an answer of {self.workdir}")
        self.lock.check()
        self.watch.waits_for(f"a checkpoint in {self.workdir} to be written", SLOW)
        self.mirror.push()  # before it: whoever goes on from this step finds what was recorded until then
        if int(self.state.skipped_in_row) == 0:
            self.checkpoints.save(self.state, workdirs.lasting(self.config), self.metadata)

    def close(self) -> None:
        self.tracker.close()
        with contextlib.suppress(UserError):  # `finish` has said so, or what ended the run is said
            self.mirror.push()
        self.checkpoints.close()
        if "best_checkpoints" in self.__dict__:
            self.best_checkpoints.close()
