"""ArrayRecord files of a TFDS data set, written shard by shard so that a killed start goes on where it was.

A data set grows in `VERSION.unfinished`, which becomes `VERSION` when all of it is there. A shard is written beside its
place, counted, synced and renamed, then noted; what is noted is never written again. Records are functions of what the set is
made from, so the files are the same bytes however often their writing was interrupted. Their order is TFDS's own, that of
a hash of each record's key with the split's name as salt, in as many shards as TFDS would make.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_jax.contracts import UserError, first_line
from vit_jax.locks import alone
from vit_jax.progress import Progress

PLAN, NOTED = "plan.json", "noted.jsonl"  # of an unfinished folder alone
OPTIONS = "group_size:1"  # every record can be read by itself; as TFDS writes
PART = ".part"


class Shard(NamedTuple):
    """A file to be written. `records` gives the same ones whenever it is called, and adds to a list what is to be said."""

    split: str
    number: int
    of: int
    pictures: int
    records: Callable[[list[str]], Iterator[bytes]]

    def file(self, dataset: str) -> str:
        return f"{dataset}-{self.split}.array_record-{self.number:05d}-of-{self.of:05d}"


class Written(NamedTuple):
    """What a finished shard holds."""

    split: str
    records: int
    size: int  # of its records, in bytes
    said: list[str]


def serialised(features: Any, example: dict[str, Any]) -> bytes:
    """A record as TFDS keeps it, its features sorted by name: TFDS leaves their order to chance, anew in each process."""
    from tensorflow_datasets.proto import tf_example_pb2

    encoded = features.serialize_example(example)
    return tf_example_pb2.Example.FromString(encoded).SerializeToString(deterministic=True)


def shuffled(keys: Sequence[str], split: str) -> list[int]:
    """Places of the keys in TFDS's order.

    Raises:
      UserError: a key that occurs twice.
    """
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    hashed = [hasher.hash_key(key) for key in keys]
    order = sorted(range(len(keys)), key=hashed.__getitem__)
    if twice := [keys[b] for a, b in itertools.pairwise(order) if hashed[a] == hashed[b]]:
        raise UserError(f"Expected every picture of {split} once, {twice[0]} comes twice: give the original file.")
    return order


def shards_of(
    split: str, order: list[int], size: int, records: Callable[[list[int], list[str]], Iterator[bytes]]
) -> list[Shard]:
    """As many shards as TFDS makes of records of `size` bytes together. `records` gives those of a list of places."""
    from tensorflow_datasets.core.utils import shard_utils

    count = shard_utils.ShardConfig().get_number_shards(size, len(order))
    ends = shard_utils.get_shard_boundaries(len(order), count)
    return [
        Shard(split, number, count, high - low, functools.partial(records, order[low:high]))
        for number, (low, high) in enumerate(itertools.pairwise([0, *ends]))
    ]


def unfinished_of(place: Path) -> Path:
    """Where the data set of `place` grows."""
    return place.with_name(f"{place.name}.unfinished")


@contextlib.contextmanager
def growing(place: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The folder in which the data set of `place` grows; it takes its name at the end.

    Whatever interrupts it, the folder stays, for the next start.

    Args:
      plan: what the set is made from. A folder that was begun from something else is not continued.

    Raises:
      UserError: `place` is there, another process makes it, it was begun otherwise, or the disk does not take it.
    """
    if place.exists():
        raise UserError(f"Expected a new or empty folder to write to, {place} holds something: give another OUT.")
    unfinished = unfinished_of(place)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        with alone(unfinished, wait=False) as ours:
            if not ours:
                raise UserError(f"Expected one process at a time, another one writes to {unfinished}: wait for it.")
            _check_plan(unfinished / PLAN, plan)
            for part in unfinished.glob(f"*{PART}"):
                part.unlink()
            yield unfinished
            unfinished.rename(place)
            for own in (PLAN, NOTED):
                (place / own).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"Expected to write to {place}, it failed ({first_line(error)}): free space or give another OUT; what is "
            "written so far stays, and the same command goes on from it."
        ) from error


def remove(folder: Path) -> None:
    """A folder, and the two around it where they are empty then."""
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        for parent in list(folder.parents)[:2]:
            parent.rmdir()


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    text = json.dumps(plan, sort_keys=True)
    if path.exists():
        if path.read_text() != text:
            raise UserError(
                f"Expected {path.parent} to be continued with what it was begun from, that was something else: remove it, "
                "or give another OUT."
            )
        return
    part = path.with_name(path.name + PART)
    part.write_text(text)
    part.rename(path)


def write_shards(folder: Path, dataset: str, shards: Sequence[Shard]) -> list[Written]:
    """Write those that are not noted as written, and tell of all.

    Raises:
      OSError: the disk does not take them.
    """
    noted = _noted(folder)
    done = [noted[file] for file in (shard.file(dataset) for shard in shards) if file in noted]
    written, total = sum(entry.records for entry in done), sum(shard.pictures for shard in shards)
    with Progress("writing", total, lambda number: f"{number:,.0f} records", written) as progress:
        size = 0
        for shard in shards:
            file = shard.file(dataset)
            if file in noted:
                continue
            show = functools.partial(_show, progress, written, size)
            noted[file] = _write(folder / file, shard, show)
            written, size = written + shard.pictures, size + noted[file].size
            with (folder / NOTED).open("a") as notes:
                notes.write(json.dumps([file, *noted[file]]) + "\n")
                notes.flush()
                os.fsync(notes.fileno())
    return [noted[shard.file(dataset)] for shard in shards]


def _show(progress: Progress, written: int, size: int, new: int, new_size: int) -> None:
    progress.show(written + new, size + new_size)


def _noted(folder: Path) -> dict[str, Written]:
    """By file. The last line of a start that was killed may be half a line: its shard is written again."""
    found = {}
    lines = (folder / NOTED).read_text().splitlines(keepends=True) if (folder / NOTED).exists() else []
    if lines and not lines[-1].endswith("\n"):
        (folder / NOTED).write_text("".join(lines[:-1]))
    for line in lines:
        if line.endswith("\n"):
            file, *entry = json.loads(line)
            found[file] = Written(*entry)
    return {file: entry for file, entry in found.items() if (folder / file).exists()}


def _write(path: Path, shard: Shard, show: Callable[[int, int], None]) -> Written:
    """One file; `show` is told its records and bytes so far."""
    from array_record.python import array_record_module

    part = path.with_name(path.name + PART)
    said: list[str] = []
    count = size = 0
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), OPTIONS)
        for record in shard.records(said):
            writer.write(record)
            count, size = count + 1, size + len(record)
            show(count, size)
        writer.close()
        reader = array_record_module.ArrayRecordReader(str(part))
        held = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise OSError(first_line(error)) from error
    if held != count:
        raise OSError(f"{part} holds {held} of {count} records")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
    return Written(shard.split, count, size, said)


def set_splits(info: Any, folder: Path, written: Sequence[Written]) -> None:
    """Write TFDS's metadata of the shards into their folder."""
    from tensorflow_datasets.core import naming, splits

    template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=info.name, filetype_suffix="array_record")
    names = list(dict.fromkeys(entry.split for entry in written))
    parts = {name: [entry for entry in written if entry.split == name] for name in names}
    info.set_splits(
        splits.SplitDict(
            [
                splits.SplitInfo(name, [entry.records for entry in part], sum(entry.size for entry in part), template)
                for name, part in parts.items()
            ]
        )
    )
    info.write_to_directory(folder)
