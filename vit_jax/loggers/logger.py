"""What a logger is, and what it is opened with."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from vit_jax.contracts import Config


class Begun(NamedTuple):
    """A run that begins, or goes on."""

    workdir: Path
    config: Config
    step: int  # 0, or where it goes on: what an earlier start logged after it is logged again
    say: Callable[[str], None]  # a line for the user
    bucket: str | None = None  # where the files of `workdir` are copied, which is a temporary folder then


class Logger(abc.ABC):
    """A place for a run's numbers, opened once the workdir is the run's own. It imports what it needs when it is opened."""

    package: ClassVar[str]  # that it imports
    install: ClassVar[str]  # what pip brings it with

    @abc.abstractmethod
    def __init__(self, begun: Begun): ...

    @abc.abstractmethod
    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, `kind` being "train", "eval" or "run"."""

    @abc.abstractmethod
    def close(self) -> None: ...

    def figures(self, step: int, files: Sequence[Path]) -> None:  # noqa: B027
        """Pictures that were drawn at a step. They stay in the workdir, too, so a logger need not take them."""
