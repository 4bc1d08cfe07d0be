"""A folder for one at a time, of threads and of processes. Whoever ends gives it back, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(folder: Path, wait: bool) -> Iterator[bool]:
    """Whether the folder is ours, until the end of the `with`; with `wait` it is, as soon as others leave it."""
    handle = os.open(folder, os.O_RDONLY)
    ours = True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            ours = False
        except OSError:
            pass  # a disk that knows no locks
        yield ours
    finally:
        os.close(handle)
