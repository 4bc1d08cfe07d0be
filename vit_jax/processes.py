"""Several processes, one run: joining them, agreeing with them, and going down with them.

Every process runs the same program on its own devices. What differs between them is only which rows of a batch they
read and that the first one writes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib.util
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from vit_jax import signals
from vit_jax.contracts import UserError, first_line
from vit_jax.places import reached

HEARTBEAT_SECONDS = 30  # a process that is silent for so long is taken for dead, and the others stop
ABORTED = 3  # exit status of a process that stopped because another one did

# Who started us: (name, variable of the number of processes, variable of this one's number, JAX's name for finding the
# first process's address, None where JAX_COORDINATOR_ADDRESS has to say it).
LAUNCHERS = (
    ("flags or JAX's variables", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", None),
    ("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "slurm"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "ompi"),
)


class Place(NamedTuple):
    """Which process of a run this one is to be, and who said so."""

    launcher: str
    coordinator: str | None  # host:port of process 0; None: JAX finds it by `method`
    processes: int | None  # None: JAX finds both (TPU slices)
    process: int | None
    method: str | None


def find_place(environment: Mapping[str, str]) -> Place | None:
    """What the environment says, or None for a process of its own.

    Raises:
      UserError: half an answer, such as a number of processes without an address.
    """
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    for launcher, count, number, method in LAUNCHERS:
        if count not in environment:
            continue
        if int(environment[count]) == 1:
            return None
        if number not in environment or not (address or method):
            raise UserError(
                f"Expected {count}, {number} and JAX_COORDINATOR_ADDRESS (host:port of process 0) together, got "
                f"{count}={environment[count]}, {number}={environment.get(number)}, JAX_COORDINATOR_ADDRESS={address}: "
                "give --coordinator, --num_processes and --process_id, or set all three."
            )
        return Place(launcher, address, int(environment[count]), int(environment[number]), method)
    if address:
        raise UserError("Expected --num_processes and --process_id beside the coordinator's address, got neither.")
    on_tpu = environment.get("TPU_WORKER_HOSTNAMES", "").count(",") or _has_tpu()
    if on_tpu and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Place("TPU slice", None, None, None, None)
    return None


def _has_tpu() -> bool:
    device = any(Path(name).exists() for name in ("/dev/accel0", "/dev/vfio/0"))
    return device and importlib.util.find_spec("libtpu") is not None


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None, *, timeout: int = 300
) -> None:
    """Join the run that the arguments or the environment describe, before anything touches a device.

    Alone, nothing happens.

    Args:
      coordinator: host:port of process 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: the others do not answer in time, or half of what is needed is given.
    """
    given = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": processes, "JAX_PROCESS_ID": process}
    place = find_place(os.environ | {name: str(value) for name, value in given.items() if value is not None})
    if place is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            cluster_detection_method=place.method,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Expected {place.processes or 'all'} processes to join (by {place.launcher}), they did not "
            f"({first_line(error)}): start the same command on every machine, and check that they reach "
            f"{place.coordinator or 'process 0'}."
        ) from error
    # When a peer dies JAX says so and aborts; Python's own dump of every thread would bury that.
    faulthandler.disable()
    if place.processes and jax.process_count() != place.processes:
        raise UserError(
            f"Expected {place.processes} processes (by {place.launcher}), JAX sees {jax.process_count()}: "
            "check that JAX was installed for these devices (vit-jax doctor)."
        )


class Stop:
    """Whether to stop. Any process's SIGTERM or Ctrl-C, once they are heard, stops all of them at the same step.

    Calling it asks; every process must ask equally often, at the same places. `told` remembers the answer.
    """

    def __init__(self) -> None:
        self.told = self.interrupted = False
        self._asked = 0
        self._give_back: dict[int, Callable[[], None]] = {}

    def listen(self) -> None:
        """From now on SIGTERM and the first Ctrl-C ask to stop; a second Ctrl-C goes to whoever had the signal before.

        Until then both end a command at once: there is nothing to save before the first step. Of several processes
        JAX hears SIGTERM, and tells all.
        """
        if jax.process_count() == 1:
            self._give_back[signal.SIGTERM] = signals.hear(signal.SIGTERM, self._terminated)
        self._give_back[signal.SIGINT] = signals.hear(signal.SIGINT, self._interrupted)

    def told_here(self) -> bool:
        """Whether this process was told, without asking the others: for waits that each has alone."""
        return self.told and jax.process_count() == 1

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        while self._give_back:
            _, give_back = self._give_back.popitem()
            give_back()

    def _terminated(self) -> None:
        self.told = True

    def _interrupted(self) -> None:
        if give_back := self._give_back.pop(signal.SIGINT, None):
            give_back()
        with contextlib.suppress(OSError):  # print is not safe in a handler
            os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")
        self.interrupted = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the others
        else:
            self.told = True

    def __call__(self) -> bool:
        if jax.process_count() > 1 and not self.told:
            from jax.experimental import multihost_utils

            self._asked += 1
            self.told = multihost_utils.reached_preemption_sync_point(self._asked)
        return self.told


@contextlib.contextmanager
def together() -> Iterator[None]:
    """With several processes an error ends this one at once.

    Its peers wait for it in the middle of a sum; they hear of it only when it is gone. Left to itself, Python would
    first wait for them on its way out.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        who = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            print(f"error: {who}: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print(f"{who}: interrupted", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            print(
                f"error: {who}: Expected the other processes to keep on, one has ended or cannot be reached "
                f"({first_line(error)}): read its last words; the same command, started on all, continues from the "
                "last checkpoint.",
                file=sys.stderr,
            )
        else:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else ABORTED)


def check_same(what: str, number: int, advice: str) -> None:
    """Raise `UserError` on every process unless all have the same number (a size, a checksum)."""
    found = gather(number)
    if len(set(found)) > 1:
        raise UserError(f"Expected {what} to be the same on every process, got {found}: {advice}.")


def gather(number: int) -> list[int]:
    """This number of every process, in order."""
    if jax.process_count() == 1:
        return [number]
    from jax.experimental import multihost_utils

    return [int(n) for n in multihost_utils.process_allgather(np.int32(number)).reshape(-1)]


def meet() -> None:
    """Wait until every process is here.

    A program's first exchange joins the devices that take part in it; Gloo gives up where they come 30 seconds apart, and
    compiling may take one process that much longer than another.
    """
    gather(0)


def make_shared_folder(folder: epath.Path) -> None:
    """Make the workdir; refuse one that is not the same folder for every process: checkpoints would be torn apart."""
    try:
        with reached(folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Expected a workdir that can be written, {folder} cannot ({error.strerror}).") from error
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token = int(multihost_utils.broadcast_one_to_all(np.int32(uuid.uuid4().int % 2**31)))
    mark = folder / f".shared-{token}"
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices("the mark is there")
    seen = gather(int(mark.exists()))
    multihost_utils.sync_global_devices("the mark was seen")
    if jax.process_index() == 0:
        mark.unlink()
    if not all(seen):
        blind = [number for number, found in enumerate(seen) if not found]
        raise UserError(
            f"Expected a workdir that all processes share, {folder} of process 0 is not seen by process "
            f"{', '.join(map(str, blind))}: give --workdir on a shared file system or in a bucket (gs://)."
        )


def to_host(tree: Any) -> Any:
    """Global arrays -> NumPy on every process. All processes must ask."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)
