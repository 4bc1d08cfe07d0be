"""Batches in an order that is a pure function of (seed, epoch), by Grain.

Batch number g holds the stream's positions [g * batch, (g + 1) * batch). A position decides the record (Grain's index
shuffle, anew every epoch) and the random numbers of its transforms, so workers, threads and processes never change a
batch, and a run resumes at any batch at once.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from vit_jax.contracts import Batch, Record, UserError, blank_labels
from vit_jax.data.decoding import UnreadablePicture, check_channels
from vit_jax.data.sources import Source
from vit_jax.data.transforms import Preprocess, Views

log = logging.getLogger("vit_jax")
ENDLESS = 2**40  # positions of a stream: more than any run draws
ASK_SECONDS = 0.1  # between two questions whether to stop, while a batch is waited for
CLOSE_SECONDS = 2.0  # for worker processes to end by themselves


class Unreadable:
    """Counts distinct unreadable pictures, and stops the run past a share. Counted per worker process."""

    def __init__(self, size: int, limit: float):
        self.size, self.limit = size, limit
        self.names: dict[str, None] = {}
        self.lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"size": self.size, "limit": self.limit, "names": self.names}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    def add(self, error: UnreadablePicture) -> None:
        with self.lock:
            new = error.name not in self.names
            self.names[error.name] = None
            count = len(self.names)
        if new:
            log.warning("unreadable picture %d: %s", count, error)
        if count > self.limit * self.size:
            raise UserError(
                f"Expected at most {self.limit:.1%} unreadable pictures of {self.size}, found {count}: "
                f"{', '.join(list(self.names)[:5])}; repair or remove them, or raise max_unreadable."
            )


class TrainRows:
    """Makes the rows of one global batch that belong to this process."""

    def __init__(
        self, source: Source, preprocess: Preprocess, seed: int, batch: int, rows: Sequence[int], unreadable: Unreadable
    ):
        self.source, self.preprocess, self.seed, self.batch = source, preprocess, seed, batch
        self.rows, self.unreadable = rows, unreadable
        self.like = source[0].label
        self.order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()

    def __call__(self, number: int) -> Batch:
        first, batch = number * self.batch, blank_batch(self.preprocess, self.like, len(self.rows))
        for place, row in enumerate(self.rows):
            fill(batch, place, *self._example(first + row))
        return batch

    def _example(self, position: int) -> tuple[Views, int | np.ndarray]:
        index = self.order[position]
        for offset in range(len(self.source)):
            record = self.source[(index + offset) % len(self.source)]
            rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
            try:
                return self.preprocess.train(record, rng), record.label
            except UnreadablePicture as error:  # the next record takes its place
                self.unreadable.add(error)
        raise UserError("Expected a readable picture, found none: check config.dataset.")


class EvalRows:
    """Makes one batch of consecutive records; rows past the end, or unreadable, have weight 0."""

    def __init__(self, source: Source, preprocess: Preprocess, batch: int, rows: Sequence[int], unreadable: Unreadable):
        self.source, self.preprocess, self.batch = source, preprocess, batch
        self.rows, self.unreadable = rows, unreadable
        self.like = source[min(rows[0], len(source) - 1)].label if len(source) and len(rows) else -1

    def __call__(self, number: int) -> Batch:
        batch = blank_batch(self.preprocess, self.like, len(self.rows))
        for place, row in enumerate(self.rows):
            index = number * self.batch + row
            if index >= len(self.source):
                break
            record: Record = self.source[index]
            try:
                fill(batch, place, self.preprocess.evaluate(record), record.label)
            except UnreadablePicture as error:
                self.unreadable.add(error)
        return batch


def blank_batch(preprocess: Preprocess, like: int | np.ndarray, rows: int) -> Batch:
    """Rows of black pictures with weight 0, and labels `like` this one."""

    def pictures(sides: tuple[int, int]) -> np.ndarray:
        return np.zeros((rows, *sides, preprocess.channels), np.uint8)

    second = pictures(preprocess.second) if preprocess.second else None
    return Batch(pictures(preprocess.crop), blank_labels(like, rows), np.zeros(rows, np.float32), second)


def fill(batch: Batch, place: int, views: Views, label: int | np.ndarray) -> None:
    """Write one example into a batch."""
    batch.image[place], batch.label[place], batch.weight[place] = views.image, label, 1.0
    if batch.second is not None:
        batch.second[place] = views.second


def useful_threads(source: Source) -> int:
    """A thread a core to decode files; one for pictures in memory, whose Python work holds the interpreter lock."""
    if isinstance(source[0].image, np.ndarray):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Batches(Iterator[Batch]):
    """Batches drawn by a thread of their own: whoever waits for one asks meanwhile whether to stop.

    Ends early when `stop` says so and no batch is ready. An error of the thread is raised where its batch is asked for.
    """

    def __init__(self, draw: Callable[[], Any], stop: Callable[[], bool]):
        self._stop = stop
        self._ready: queue.Queue[Any] = queue.Queue(1)
        self._closed = threading.Event()
        arguments = draw, self._ready, self._closed
        self._thread = threading.Thread(target=_draw_ahead, args=arguments, name="batches", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._closed.set)

    def __next__(self) -> Batch:
        while True:
            try:
                batch = self._ready.get(timeout=ASK_SECONDS)
            except queue.Empty:
                if self._closed.is_set() or self._stop():
                    raise StopIteration from None
                continue
            if isinstance(batch, BaseException):
                self._ready.put(batch)  # for whoever asks again
                raise batch
            return batch

    def close(self) -> None:
        """End the thread and the worker processes; those that are stuck in a read are left behind and killed."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            for child in multiprocessing.active_children():
                if child.name.startswith("grain-"):
                    child.kill()


def _draw_ahead(draw: Callable[[], Any], ready: queue.Queue[Any], closed: threading.Event) -> None:
    def put(item: Any) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=ASK_SECONDS)

    try:
        batches = draw()
        try:
            while not closed.is_set():
                put(next(batches))
        finally:
            batches.close()
    except BaseException as error:  # StopIteration too
        put(error)


def _deaf() -> None:
    """Processes started by this thread hear no signal: a terminal sends them Ctrl-C and Slurm SIGTERM, we decide."""
    multiprocessing.resource_tracker.ensure_running()  # it unblocks signals: not after this
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def end_with_parent(*_: int) -> None:
    """In a worker process: end when the parent has, also by `kill -9`, which tells nobody."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, name="end_with_parent", daemon=True).start()


def _stream(
    make: Callable[[int], Batch],
    numbers: range,
    num_threads: int,
    prefetch: int,
    num_workers: int,
    stop: Callable[[], bool],
) -> Batches:
    """Batches made ahead by threads, or by worker processes of Grain."""
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(make)
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads absl flags when it starts workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=prefetch)
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        ahead = batches.to_iter_dataset(read).mp_prefetch(options, worker_init_fn=end_with_parent)

        def draw() -> Any:
            _deaf()
            return iter(ahead)

        return Batches(draw, stop)
    read = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    ahead = batches.to_iter_dataset(read)
    return Batches(lambda: iter(ahead), stop)


def train_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    num_workers: int = 0,
    num_threads: int = 0,
    prefetch: int = 2,
    rows: Sequence[int] | None = None,
    max_unreadable: float = 0.01,
    stop: Callable[[], bool] = lambda: False,
) -> Batches:
    """Endless batches from batch number `start` on.

    Args:
      batch: of all processes together.
      num_workers: decoding processes; 0 decodes in `num_threads` threads of this one (0: as many as help).
      prefetch: batches ahead, per worker or in all.
      rows: of each batch, those this process needs (sharding.local_rows); None: all of them.
      max_unreadable: share of unreadable pictures at which a `UserError` names them.
      stop: asked again and again while a batch is waited for; True ends the batches.
    """
    check_channels(source[0], preprocess.channels)
    make = TrainRows(source, preprocess, seed, batch, rows or range(batch), Unreadable(len(source), max_unreadable))
    threads = num_threads or useful_threads(source)
    return _stream(make, range(start, ENDLESS // batch), threads, prefetch, num_workers, stop)


def eval_batches(
    source: Source,
    preprocess: Preprocess,
    *,
    batch: int,
    rows: Sequence[int] | None = None,
    num_threads: int = 0,
    prefetch: int = 2,
    max_unreadable: float = 0.01,
    stop: Callable[[], bool] = lambda: False,
) -> Batches:
    """Every record once, in order. The last batch is filled up with rows of weight 0.

    Whatever `rows` are asked for, the number of batches is the same: processes stay in step.
    """
    if not len(source):
        raise UserError(f"Expected pictures in {source.name}, the split is empty: change pp.test or the data set.")
    check_channels(source[0], preprocess.channels)
    make = EvalRows(source, preprocess, batch, rows or range(batch), Unreadable(len(source), max_unreadable))
    return _stream(make, range(-(-len(source) // batch)), num_threads or useful_threads(source), prefetch, 0, stop)


def spread_batch(source: Source, preprocess: Preprocess, count: int = 8) -> Batch:
    """A few pictures from all over `source`, of different classes as far as there are, always the same ones.

    Eight times as many are asked for their labels, and no others are read. Fewer come out where pictures are few or
    unreadable.
    """

    def evenly(indices: Sequence[int], wanted: int) -> list[int]:
        wanted = min(wanted, len(indices))
        return [indices[(2 * place + 1) * len(indices) // (2 * wanted)] for place in range(wanted)]

    candidates = evenly(range(len(source)), 8 * count)
    first_of_class = {np.asarray(source[index].label).tobytes(): index for index in reversed(candidates)}
    chosen = evenly(sorted(first_of_class.values()), count)
    chosen += evenly([index for index in candidates if index not in chosen], count - len(chosen))
    batch = EvalRows(source, preprocess, len(source), sorted(chosen), Unreadable(len(source), limit=1.0))(0)
    return Batch(*(None if part is None else part[batch.weight > 0] for part in batch))  # type: ignore[arg-type]
