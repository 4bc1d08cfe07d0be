"""Ctrl-C and SIGTERM of a command, heard at once from its first moment to its last.

Python calls a signal's handler between two steps of the main thread: not while that waits for a compiler, a device or a
disk. And KeyboardInterrupt, raised wherever that thread happens to be, is lost in callbacks and finalizers, and leaves
half-imported modules and other libraries' threads behind. So a thread of ours hears the signals: Python's C handler
writes each one's number to a pipe. Until a run wants to be told (`hear`), a signal ends the process at once: whatever is
half written is cleaned up by the next start.

Only the standard library is imported: this is in place before the slow imports.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
BROKEN_PIPE = 128 + 13  # exit status of a program whose reader has gone, as of one that SIGPIPE ended

Handler = Callable[[], None]
_handlers: dict[int, Handler] = {}  # of the signals that our thread hears


def end_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end this process, with one line and the status that shells expect.

    For commands, from the main thread. One that is ignored (nohup, a script's background job) stays ignored.
    """
    if _handlers:
        return
    for number in NAMES:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            _handlers[number] = functools.partial(_end, number)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), name="signals", daemon=True).start()
    for heard in _handlers:
        signal.signal(heard, _heard)


def hear(number: int, handler: Handler) -> Handler:
    """Call `handler` when the signal comes. Returns what gives it back to whoever had it; both may run in any thread.

    Outside commands it is Python's own handling, and a thread other than the main one hears nothing. A signal that is
    ignored stays ignored.
    """
    if number in _handlers:
        before = _handlers[number]
        _handlers[number] = handler
        return lambda: _handlers.update({number: before})
    owner = signal.getsignal(number)
    if owner is not signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not the main thread: whoever owns the signals decides
            signal.signal(number, lambda *_: handler())
            return lambda: _own(number, owner)
    return lambda: None


def command(main: Callable[[], int]) -> NoReturn:
    """Run a command, and end the process with the status that it returns.

    Left to itself Python would then wait for every thread, also one that will never return, and take signals for
    KeyboardInterrupt in the middle of taking itself apart.
    """
    end_at_once()
    status = 1
    try:
        status = main()
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BrokenPipeError:  # `vit-jax models | head`
        status = BROKEN_PIPE
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # gone, closed, or never there
            status = status or BROKEN_PIPE
    os._exit(status)


def _listen(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in _handlers:
                _handlers[number]()


def _end(number: int) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{NAMES[signal.Signals(number)]}\n".encode())  # print may wait for the main thread
    os._exit(128 + number)


def _heard(number: int, frame: Any) -> None:
    """For Python, which would otherwise raise KeyboardInterrupt or end; our thread has heard the signal already."""


def _own(number: int, owner: Any) -> None:
    signal.signal(number, signal.SIG_DFL if owner is None else owner)  # None: it was no Python function
