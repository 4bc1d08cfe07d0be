"""Run by test_stopping.py: `python -m vit_jax.main` where one thing never answers, the variable STUCK says which.

data (from batch 12 on, also in worker processes), disk (the last save), figures, exit (an atexit function). What is
stuck is stuck in C, like a compiler or a disk: no handler of Python's gets its turn. MARK names a file to which each
process that is stuck appends its number.
"""

import atexit
import ctypes
import os
import sys

from vit_jax import signals


def stuck(*_):
    with open(os.environ["MARK"], "a") as mark:
        mark.write(f"{os.getpid()}\n")
    libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)


if os.environ.get("STUCK") == "data":  # here, not below: worker processes import this file
    from vit_jax.data.loader import TrainRows

    answered = TrainRows.__call__
    TrainRows.__call__ = lambda self, number: stuck() if number >= 12 else answered(self, number)

if __name__ == "__main__":
    signals.end_at_once()
    from vit_jax import main, run_figures
    from vit_jax.training.checkpoints import Checkpoints

    if os.environ["STUCK"] == "disk":
        Checkpoints.wait = stuck
    elif os.environ["STUCK"] == "figures":
        run_figures.draw_run = stuck
    elif os.environ["STUCK"] == "exit":
        atexit.register(stuck)
    sys.argv[0] = "vit_jax"
    signals.command(main.main)
