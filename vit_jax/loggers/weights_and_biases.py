"""Weights & Biases: the same W&B run for a workdir, however often it is stopped and continued.

W&B's own steps only rise, and what comes with a smaller one is thrown away. A run that goes on from a checkpoint takes the
steps after it once more, so our step is a number of its own, `step`, which all charts have as their axis; nothing is lost,
and what is repeated lies on what was there.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_jax.contracts import first_line
from vit_jax.loggers.logger import Begun, Logger

REMEMBERED = "wandb.json"  # in the workdir: the id of its W&B run
CONNECT_SECONDS = 30.0  # after which it is written to the disk only
FINISH_SECONDS = 30.0  # for what is not uploaded yet when the run ends


class WeightsAndBiases(Logger):
    """A thread of its own talks to W&B, so that training never waits for a network. Trouble is said once; the run goes on."""

    package, install = "wandb", "vit_jax[wandb]"

    def __init__(self, begun: Begun):
        self._begun, self._id = begun, remembered(begun.workdir)
        self._jobs: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="Weights & Biases", daemon=True)
        self._thread.start()

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{f"{kind}/{name}": float(value) for name, value in values.items()}}
        self._do(lambda run: run.log(row))

    def figures(self, step: int, files: Sequence[Path]) -> None:
        def log(run: Any) -> None:
            import wandb

            run.log({"step": step, **{f"figures/{file.stem}": wandb.Image(str(file)) for file in files}})

        self._do(log)

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join(CONNECT_SECONDS + FINISH_SECONDS)
        if self._thread.is_alive():
            self._begun.say("Weights & Biases does not answer: the run ends without waiting for it.")

    def _do(self, job: Callable[[Any], None]) -> None:
        if self._thread.is_alive():
            self._jobs.put(job)

    def _work(self) -> None:
        try:
            run = self._start()
            while job := self._jobs.get():
                job(run)
            run.finish()
        except BaseException as error:  # SystemExit, too: nothing that W&B does may end a run
            self._begun.say(
                f"NOTE: Weights & Biases failed ({type(error).__name__}: {first_line(error)}); the run goes on without "
                "it, and the numbers are in metrics.jsonl."
            )

    def _start(self) -> Any:
        """The W&B run; on the disk alone where the service is not to be had."""
        import wandb

        mode = wandb.setup().settings.mode
        try:
            if mode == "online" and not wandb.login(prompt=False):  # prompting would wait for an answer
                raise PermissionError("no key, `wandb login` or WANDB_API_KEY brings one")
            run = self._init(wandb, mode)
        except Exception as error:
            if mode != "online":
                raise
            self._begun.say(f"NOTE: Weights & Biases is not to be had ({first_line(error)}).")
            run = self._init(wandb, "offline")
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        if mode != "disabled":
            self._begun.say(f"Weights & Biases: {self._uploads(Path(run.dir).parent) if run.offline else run.url}")
        return run

    def _uploads(self, folder: Path) -> str:
        """How to upload what lies in `folder`, which goes when the run ends where the workdir is in a bucket."""
        if self._begun.bucket is None:
            return f"`wandb sync {folder}` uploads it"
        there = f"{self._begun.bucket}/wandb/{folder.name}"
        return f"copy {there} to a disk when the run has ended, `wandb sync {folder.name}` uploads it"

    def _init(self, wandb: Any, mode: str) -> Any:
        begun = self._begun
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vit_jax"),
            name=os.environ.get("WANDB_NAME", begun.workdir.name),
            id=self._id,
            resume="allow",
            mode=mode,
            dir=str(begun.workdir),
            config=begun.config,
            allow_val_change=True,  # fields that may differ when a run goes on
            settings=wandb.Settings(
                silent=True, console="off", reinit="create_new",  # a notebook may have a run of its own
                init_timeout=CONNECT_SECONDS, finish_timeout=FINISH_SECONDS,
            ),
        )  # fmt: skip


def remembered(workdir: Path) -> str:
    """The id of the workdir's W&B run, made up at its first start."""
    file = workdir / REMEMBERED
    try:
        return str(json.loads(file.read_text())["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        made = uuid.uuid4().hex[:8]
        file.write_text(json.dumps({"id": made}) + "\n")
        return made
