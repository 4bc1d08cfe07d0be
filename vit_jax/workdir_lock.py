"""The lock that keeps a workdir to one run at a time.

`.lock` in the workdir names its holder, who touches it every few seconds. On one machine the system knows who lives. A
holder on another machine lives if the file is touched while we look: no clocks are compared, and it works on network
disks that lock nothing. POSIX's own lock on the file makes taking it one step wherever the disk knows such locks; it is
not inherited by worker processes, which may outlive a killed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from vit_jax import processes
from vit_jax.contracts import UserError
from vit_jax.places import Where

log = logging.getLogger(__name__)
LOCK = ".lock"
BEAT_SECONDS = 10  # between two touches
PATIENCE_SECONDS = 60  # without a touch for so long another machine's run is dead; longer than a network disk caches
_held: set[str] = set()  # by this process: POSIX's locks do not tell its threads apart


class Lock:
    """The right to write into a workdir. Of several processes the first one holds it for all."""

    def __init__(self, workdir: Where):
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
            raise UserError(lost(self.workdir, parsed(words)))

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
                    return taken(self.workdir, parsed(holder))
                self._words = json.dumps(who()).encode()
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
        holder = parsed(words)
        alive = lives_here(holder)
        if alive is None:
            waiting(self.workdir, holder)
            alive = self._shows_life(file)
        if not alive:
            dead(self.workdir, holder)
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


def who() -> dict[str, Any]:
    """Who asks, so that anybody on any machine can tell whether it still lives."""
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


def parsed(words: bytes) -> dict[str, Any]:
    """What a holder wrote of itself; empty where nobody did, or not whole."""
    try:
        holder = json.loads(words)
    except ValueError:
        holder = None
    return holder if isinstance(holder, dict) else {}


def lives_here(holder: Mapping[str, Any]) -> bool | None:
    """Whether a holder on this machine lives; None where it is on another one."""
    if holder.get("machine") != _machine():
        return None
    return _started(holder.get("pid")) == holder.get("started") is not None


# What is said of a holder.


def _named(holder: Mapping[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def taken(workdir: Where, holder: Mapping[str, Any]) -> str:
    return (
        f"Expected the workdir {workdir} to be free, {_named(holder)} uses it: wait for that run or end it, or give another "
        "--workdir."
    )


def lost(workdir: Where, holder: Mapping[str, Any]) -> str:
    return (
        f"Expected the workdir {workdir} to be this run's alone, {_named(holder)} has taken it, as this one gave no sign of "
        "life: this run ends here."
    )


def waiting(workdir: Where, holder: Mapping[str, Any]) -> None:
    log.warning("%s has used %s: waiting up to %d s for a sign of life", _named(holder), workdir, PATIENCE_SECONDS)


def dead(workdir: Where, holder: Mapping[str, Any]) -> None:
    log.warning("%s is dead: its workdir %s is taken over", _named(holder), workdir)
