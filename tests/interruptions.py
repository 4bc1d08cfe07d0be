"""A run interrupted at random moments, continued to its end, and compared with the run that was left alone.

    python -m tests.interruptions --signal INT --count 100 --at-a-time 2

Each trial starts `python -m vit_jax.main` on a tiny model, sends one signal at a moment drawn uniformly between the
process's start and its usual end, and then starts the same command until it has finished. What counts: how it ended,
what it said, and whether parameters (sha256) and the `eval` rows of metrics.jsonl are those of the run left alone.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds from a signal after which a trial is a hang
LAST_WORDS = 5.0  # seconds from a signal within which a run that was at its end may end as if nothing had come
ENDS = {"INT": (130, 0), "TERM": (143, 0), "KILL": (-9, 0)}  # exit statuses; 0: saved (TERM), or it was finished
FIELDS = {
    "total_steps": 150, "warmup_steps": 5, "batch": 8, "batch_eval": 90, "model.hidden_size": 16, "eval_every": 35,
    "model.transformer.num_layers": 1, "model.transformer.num_heads": 2, "model.transformer.mlp_dim": 32,
    "checkpoint_every": 25, "progress_every": 20, "num_threads": 1, "ema": 0.9, "mixup": 0.2,
}  # fmt: skip
READING = threading.Lock()


class Trial(NamedTuple):
    """One interrupted process: when it was told, how it ended, and what is wrong with that."""

    at: float
    early: bool  # while Python itself was starting: nothing of ours had run yet, whatever happens is Python's doing
    status: int | None  # None: it hung
    took: float  # seconds from the signal to the end
    wrong: list[str]


def command(workdir: Path) -> list[str]:
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    return [sys.executable, "-m", "vit_jax.main", f"--workdir={workdir}", "--config=digits.py:scratch", *fields]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "agg",
    }


def finish(workdir: Path, folder: Path) -> float:
    """Run the command to its end; seconds."""
    began = time.monotonic()
    done = subprocess.run(command(workdir), env=environment(folder), capture_output=True, text=True, timeout=900)
    if done.returncode or "Traceback" in done.stderr:
        raise RuntimeError(f"the command that continues ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - began


def outcome(workdir: Path) -> dict[str, Any]:
    """What must not depend on interruptions: the parameters' sha256, the evaluations."""
    from vit_jax.commands.inspect import digest
    from vit_jax.training.checkpoints import Checkpoints
    from vit_jax.training.tracker import read_metrics

    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest()
        digests = {name: digest(checkpoints.params(step, averaged=name == "ema")) for name in ("params", "ema")}
    rows = [{**row, "time": 0} for row in read_metrics(workdir) if row["kind"] == "eval"]
    return {"step": step, "digests": digests, "eval": rows}


def hears(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process catches SIGTERM, which is the first thing that our commands do."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next(line for line in status if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


def interrupt(name: str, at: float, workdir: Path, folder: Path) -> Trial | None:
    """Start the command, send the signal after `at` seconds, see how it ends. None: it had ended before."""
    with (workdir.parent / f"{workdir.name}.log").open("w+") as log:
        process = subprocess.Popen(
            command(workdir), env=environment(folder), stdout=log, stderr=log, start_new_session=True
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(at)
            return None
        early, told = name != "KILL" and not hears(process), time.monotonic()
        process.send_signal(getattr(signal, f"SIG{name}"))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        status, took = process.returncode, time.monotonic() - told
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        words = log.read()
    wrong = ["hung"] if status is None else []
    if not early:
        wrong += [f"status {status}"] if status is not None and status not in ENDS[name] else []
        wrong += ["ran on to the end"] if status == 0 and name == "INT" and took > LAST_WORDS else []
        wrong += ["traceback"] if "Traceback" in words or "Fatal Python error" in words else []
    return Trial(at, early, status, took, wrong)


def trial(name: str, at: float, number: int, folder: Path, whole: dict[str, Any]) -> Trial:
    """An interruption, then the same command to the end, compared with the run left alone."""
    workdir = folder / f"{name}{number}"
    while (found := interrupt(name, at, workdir, folder)) is None:  # the machine is less busy than it was
        shutil.rmtree(workdir)
        at *= 0.8
    try:
        finish(workdir, folder)
        with READING:
            ours = outcome(workdir)
        wrong = [f"other {part}" for part in whole if ours[part] != whole[part]]
    except Exception as error:
        wrong = [f"not continued: {error}"]
    if not (found.wrong or wrong):
        shutil.rmtree(workdir)
    return found._replace(wrong=found.wrong + wrong)


def run(name: str, count: int, *, at_a_time: int = 1, seed: int = 0, folder: Path) -> list[Trial]:
    """`count` trials of one signal. What went wrong stays in `folder`, with a log each."""
    for old in ("warm", "whole"):
        shutil.rmtree(folder / old, ignore_errors=True)
    finish(folder / "warm", folder)  # fills the cache of compiled programs
    seconds = finish(folder / "whole", folder) * (1 + 0.6 * (at_a_time - 1))
    whole = outcome(folder / "whole")
    print(
        f"the run left alone: {seconds:.1f} s, {json.dumps(whole['digests'])}, {len(whole['eval'])} evaluations",
        flush=True,
    )
    rng = random.Random(f"{name} {seed}")
    moments = [rng.uniform(0.0, seconds) for _ in range(count)]
    trials = []
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        jobs = [pool.submit(trial, name, at, number, folder, whole) for number, at in enumerate(moments)]
        for number, job in enumerate(jobs):
            found = job.result()
            trials.append(found)
            print(
                f"{name} {number}: at {found.at:.2f} s, status {found.status} after {found.took:.2f} s "
                f"{'; '.join(found.wrong) or 'as it should'}{' (Python was starting)' * found.early}",
                flush=True,
            )
    return trials


def summary(trials: list[Trial]) -> str:
    statuses = collections.Counter(str(found.status) for found in trials)
    wrong = collections.Counter(words for found in trials for words in found.wrong)
    slowest = max((found.took for found in trials), default=0.0)
    early = sum(found.early for found in trials)
    return (
        f"{len(trials)} trials, {early} while Python was starting; exit statuses {dict(statuses)}; "
        f"wrong {dict(wrong) or 'nothing'}; slowest end {slowest:.1f} s after the signal"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=sorted(ENDS), default="INT")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--at-a-time", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs are made and failures stay; a new temporary one")
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of this process, which reads checkpoints
    # A shell starts what it puts into the background deaf to Ctrl-C, and so would be the runs that are sent it here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="interruptions-"))
    folder.mkdir(parents=True, exist_ok=True)
    trials = run(args.signal, args.count, at_a_time=args.at_a_time, seed=args.seed, folder=folder)
    print(f"{args.signal}: {summary(trials)}; failures stay in {folder}")
    return int(any(found.wrong for found in trials))


if __name__ == "__main__":
    sys.exit(main())
