"""What a workdir says of its run, and the lock that keeps it to one run at a time.

`.lock` in the workdir names its holder, who touches it every few seconds. On one machine the system knows who lives. A
holder on another machine lives if the file is touched while we look: no clocks are compared, and it works on network
disks that lock nothing. POSIX's own lock on the file makes taking it one step wherever the disk knows such locks; it is
not inherited by worker processes, which may outlive a killed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import operator
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import jax

from vit_jax import configuration, processes
from vit_jax.contracts import Config, UserError
from vit_jax.data.sources import MADE_UP

PATHS = ("dataset", "tfds_data_dir", "init_from", "pretrained_dir")  # fields that may hold one
log = logging.getLogger(__name__)
LOCK = ".lock"
BEAT_SECONDS = 10  # between two touches
PATIENCE_SECONDS = 60  # without a touch for so long another machine's run is dead; longer than a network disk caches
_held: set[str] = set()  # by this process: POSIX's locks do not tell its threads apart


def lasting(config: Config) -> dict[str, Any]:
    """The configuration as it is stored: paths are made absolute, so that they mean the same from any folder."""
    stored = configuration.plain(config)
    for field in (*PATHS, *configuration.frozen_fields(config)):
        *sections, last = field.split(".")
        place = functools.reduce(operator.getitem, sections, stored)
        path = Path(place[last] or "").expanduser()
        if place[last] and place[last] not in MADE_UP and path.exists():
            place[last] = str(path.absolute())
    return stored


def lasting_recipe(recipe: str, config: Config) -> str:
    """FILE:ARG with the path of the pictures in ARG made absolute, where it is one."""
    file, colon, argument = recipe.partition(":")
    stored = lasting(config)["dataset"]
    return file + colon + ",".join(stored if part == config["dataset"] else part for part in argument.split(","))


def describe(workdir: Path, config: Config, table: str) -> None:
    """config.json and the table of rates and decays, for people. The first process writes."""
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(json.dumps(lasting(config), indent=2) + "\n")
        (workdir / "parameters.txt").write_text(table)


class Lock:
    """The right to write into a workdir. Of several processes the first one holds it for all."""

    def __init__(self, workdir: str | Path):
        self.workdir = Path(workdir).absolute()
        self.path = self.workdir / LOCK
        self._file: int | None = None
        self._words = b""
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="workdir lock", daemon=True)

    def take(self) -> None:
        """Take the lock, from the dead if need be. All processes of a run ask together; refused, nothing is touched.

        Raises:
          UserError: another run holds it, or the folder cannot be written.
        """
        refusal = self._refusal() if jax.process_index() == 0 else None
        if any(processes.gather(int(refusal is not None))):
            raise UserError(
                refusal or f"Expected the workdir {self.workdir} to be free, process 0 says that it is not."
            )

    def check(self) -> None:
        """Raise `UserError` where the workdir has gone, or another run took this one for dead."""
        if self._file is None:
            return
        try:
            there = os.stat(self.path).st_ino == os.fstat(self._file).st_ino
        except OSError:
            there = False
        if not there:
            raise UserError(
                f"Expected the workdir {self.workdir} to stay where it is, it was removed or moved while the run went on: "
                "put it back, or start again."
            )
        if (words := self._read(self._file)) != self._words:
            raise UserError(
                f"Expected the workdir {self.workdir} to be this run's alone, {_named(words)} has taken it, as this one "
                "gave no sign of life: this run ends here."
            )

    def close(self) -> None:
        """Give the lock back. The file stays, empty: who removes it may remove the next holder's."""
        if self._file is None:
            return
        self._ended.set()
        self._beating.join()
        with contextlib.suppress(OSError):
            if self._read(self._file) == self._words:
                os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = None
        _held.discard(os.path.realpath(self.path))

    def _refusal(self) -> str | None:
        """Why the lock is not to be had, or None with it taken."""
        name = os.path.realpath(self.path)
        if name in _held:
            return f"Expected the workdir {self.workdir} to be free, this process uses it: wait, or give another --workdir."
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if holder := self._holder(file):
                    return (
                        f"Expected the workdir {self.workdir} to be free, {_named(holder)} uses it: wait for that run or "
                        "end it, or give another --workdir."
                    )
                self._words = json.dumps(_who()).encode()
                os.ftruncate(file, 0)
                os.pwrite(file, self._words, 0)
                os.fsync(file)
                self._file = file
            finally:
                if self._file is None:
                    os.close(file)
        except OSError as error:
            return f"Expected a workdir that can be written, {self.workdir} cannot ({error.strerror})."
        _held.add(name)
        self._beating.start()
        return None

    def _holder(self, file: int) -> bytes | None:
        """What a living holder wrote, or None."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return self._read(file) or b"{}"
        except OSError:
            pass  # a disk that knows no locks: what is written has to do
        words = self._read(file)
        if not words:
            return None
        holder, here = _parsed(words), _who()
        if holder.get("machine") == here["machine"]:
            alive = _started(holder.get("pid")) == holder.get("started") is not None
        else:
            log.warning(
                "%s has used %s: waiting up to %d s for a sign of life", _named(words), self.workdir, PATIENCE_SECONDS
            )
            alive = self._shows_life(file)
        if not alive:
            log.warning("%s is dead: its workdir %s is taken over", _named(words), self.workdir)
        return words if alive else None

    def _shows_life(self, file: int) -> bool:
        """Whether the file is touched while we look; a holder that gives it back is as good as dead."""
        before, deadline = os.fstat(file).st_mtime_ns, time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(1, PATIENCE_SECONDS / 10))
            if not self._read(file):
                return False
            if os.fstat(file).st_mtime_ns != before:
                return True
        return False

    def _read(self, file: int) -> bytes:
        # Through the one descriptor that there is: closing any other on this file would give POSIX's lock away.
        return os.pread(file, 4096, 0)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                assert self._file is not None
                os.utime(self._file)


def _who() -> dict[str, Any]:
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": _machine(),
        "token": uuid.uuid4().hex,
    }  # fmt: skip


def _machine() -> str:
    """Where a process number means the same process: one start of one system, and one container of it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{uuid.getnode():x}"


def _started(pid: Any) -> str | None:
    """When a process began, as its system counts, so that its number used again is not it; None if there is none."""
    if not isinstance(pid, int):
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return "unknown"


def _parsed(words: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(words)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {}


def _named(words: bytes) -> str:
    holder = _parsed(words)
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"
