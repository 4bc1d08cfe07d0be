"""A run whose workdir lies in a bucket, killed in the middle of an upload, continued, and compared with the run left alone.

    python -m tests.bucket_kills --count 50

Each trial starts `python -m vit_jax.main --workdir=gs://...` and sends SIGKILL while the server holds an upload in its
hands, which then happens or does not: one drawn of all uploads of a run, checkpoints, metrics and lock alike. Then the same
command goes on to its end. Every start is a fresh machine: it finds nothing of what the one before kept on a local disk.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.buckets import Bucket
from tests.interruptions import Trial, command, environment, finish, outcome, summary


def killed(bucket: Bucket, workdir: str, number: int, happens: bool, folder: Path) -> Trial | None:
    """Start the command and kill it in its upload `number` (from 0). None: it had fewer."""
    began, seen = time.monotonic(), []

    def kill(name: str) -> bool:
        seen.append(name)
        if len(seen) <= number:
            return True
        if len(seen) == number + 1:
            process.send_signal(signal.SIGKILL)
        return happens and len(seen) == number + 1

    with (folder / "log").open("w") as log:
        bucket.on_upload = kill
        process = subprocess.Popen(command(workdir), env=environment(folder), stdout=log, stderr=log)
        status = process.wait(240)
    bucket.on_upload = lambda name: True
    if len(seen) <= number:
        return None
    return Trial(
        time.monotonic() - began, False, status, 0.0, [] if status == -signal.SIGKILL else [f"status {status}"]
    )


def run(count: int, *, seed: int = 0, folder: Path) -> list[Trial]:
    """`count` trials, each in a workdir of its own."""
    rng, trials = random.Random(seed), []
    os.environ["TMPDIR"] = str(folder)  # of the runs: their local files
    with Bucket() as bucket:
        finish("gs://bucket/warm", folder)
        before = len(bucket.uploads)
        finish("gs://bucket/whole", folder)
        uploads, whole = len(bucket.uploads) - before, outcome("gs://bucket/whole")
        print(f"the run left alone: {uploads} uploads, {whole['digests']}", flush=True)
        while len(trials) < count:
            workdir, number, happens = f"gs://bucket/run{len(trials)}", rng.randrange(uploads), rng.random() < 0.5
            found = killed(bucket, workdir, number, happens, folder)
            if found is None:
                bucket.storage.wipe(keep_buckets=True)
                continue
            during = bucket.uploads[-1].partition("/")[2]
            try:
                finish(workdir, folder)
                ours = outcome(workdir)
                wrong = [f"other {part}" for part in whole if ours[part] != whole[part]]
            except Exception as error:
                wrong = [f"not continued: {error}"]
            trials.append(found._replace(wrong=found.wrong + wrong))
            print(
                f"{len(trials)}: killed in upload {number} ({during}), which {'happened' if happens else 'did not'}: "
                f"{'; '.join(trials[-1].wrong) or 'as it should'}",
                flush=True,
            )
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # of this process, which reads checkpoints
    with tempfile.TemporaryDirectory(prefix="bucket-kills-") as folder:
        trials = run(args.count, seed=args.seed, folder=Path(folder))
    print(f"KILL in an upload: {summary(trials)}")
    return int(any(found.wrong for found in trials))


if __name__ == "__main__":
    sys.exit(main())
