"""A folder of pictures -> a TFDS data set in ArrayRecord files, without TensorFlow.

The encoded bytes go in as they are; any program that reads TFDS can read the result.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.contracts import Record, UserError
from vit_jax.data.decoding import UnreadablePicture, decode, open_picture, printable
from vit_jax.data.folders import Folder, folder_records
from vit_jax.data.labels import Labels, has_table, table_records
from vit_jax.data.shards import (
    Shard,
    growing,
    remove,
    serialised,
    set_splits,
    shards_of,
    shuffled,
    unfinished_of,
    write_shards,
)

NAME, VERSION = "pictures", "1.0.0"
MAX_UNREADABLE = 0.01
KEPT_FORMATS = ("JPEG", "PNG")  # what TFDS's image feature can hold; others are written as PNG


def prepare(
    folder: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    metadata: dict[str, int] | None = None,
    labels: Labels | None = None,
) -> dict[str, Any]:
    """Write the train and test pictures of `folder` into `out` and tell what was written.

    Args:
      folder: any layout that `open_source` takes.
      out: a folder that does not exist yet, or is empty, or holds what a start with the same arguments left.
      seed: of the split, where `folder` has none.
      metadata: numbers to keep with it, in TFDS's metadata.json.
      labels: what a labels.csv holds, where there is one; None: a class a picture.

    Returns:
      {"splits": {name: count}, "classes": names (of the numbers in a regression) or None, "unreadable": names}.

    Raises:
      UserError: no pictures, labels that mean nothing, too many unreadable pictures, or an `out` that holds something or
        lies in `folder`. `out` is then as it was.
    """
    out, folder, labels = Path(out), Path(folder), labels or Labels()
    place = out / NAME / VERSION
    if out.exists() and (not out.is_dir() or not _left_by_a_start(out, place)):
        raise UserError(f"Expected a new or empty folder to write to, {out} holds something: give another OUT.")
    if not folder.is_dir():
        raise UserError(f"Expected a folder of pictures, {folder} is none: fix the path.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"Expected a folder to write to outside {folder}, {out} would be taken for one of its classes: give another OUT."
        )
    splits = {name: _pictures(folder, name, seed, labels) for name in ("train", "test")}
    names = splits["train"].class_names
    if odd := [name for name in names or () if printable(name) != name]:
        raise UserError(
            f"Expected classes whose names can be printed, which TFDS keeps line by line, got {odd}: rename them."
        )
    info = _info(place, names, labels.task, metadata or {})
    with growing(place, {split: _fingerprint(source) for split, source in splits.items()}) as growth:
        shards = [shard for split, source in splits.items() for shard in _shards(split, source, info.features)]
        written = write_shards(growth, NAME, shards)
        unreadable = sorted(name for entry in written for name in entry.said)
        total = sum(len(source) for source in splits.values())
        if len(unreadable) > MAX_UNREADABLE * total:
            remove(growth)
            raise UserError(
                f"Expected at most {MAX_UNREADABLE:.0%} unreadable pictures of {total}, found {len(unreadable)}: "
                f"{', '.join(unreadable[:5])}; repair or remove them."
            )
        set_splits(info, growth, written)
    counts = {split: sum(entry.records for entry in written if entry.split == split) for split in splits}
    return {"splits": counts, "classes": None if names is None else list(names), "unreadable": unreadable}


def _left_by_a_start(out: Path, place: Path) -> bool:
    """Whether `out` holds nothing but an unfinished data set."""
    unfinished = unfinished_of(place)
    return all(path == unfinished.parent or path.is_relative_to(unfinished) for path in out.rglob("*"))


def _pictures(folder: Path, split: str, seed: int, labels: Labels) -> Folder:
    if has_table(folder):
        return table_records(folder, split, seed, labels)
    if labels != Labels():
        raise UserError(f"Expected a labels.csv in {folder} for --task or --label_columns, there is none: add it.")
    return folder_records(folder, split, seed)


def _info(place: Path, names: tuple[str, ...] | None, task: str, metadata: dict[str, int]) -> Any:
    """TFDS's description of the data set. Labels are kept as `data.tfds_labels` finds them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_info

    features = {"image": tfds.features.Image(shape=(None, None, None)), "name": tfds.features.Text()}
    if names is not None and task == "classes":
        features["label"] = tfds.features.ClassLabel(names=list(names))
    elif names is not None and task == "multilabel":
        features["labels"] = tfds.features.Sequence(tfds.features.ClassLabel(names=list(names)))
    elif names is not None:
        features["labels"] = tfds.features.FeaturesDict(dict.fromkeys(names, np.float32))

    identity = dataset_info.DatasetIdentity(NAME, tfds.core.Version(VERSION), str(place), module_name="")
    info = dataset_info.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format("array_record")
    return info


def _fingerprint(source: Folder) -> str:
    """sha256 of the names and labels of the pictures, and of the sizes and times of their files."""
    digest = hashlib.sha256()
    for path, label in zip(source.paths, source.labels, strict=True):
        status = path.stat() if path.exists() else None
        seen = (str(path), np.asarray(label).tolist(), status and (status.st_size, status.st_mtime_ns))
        digest.update(json.dumps(seen).encode())
    return digest.hexdigest()


def _shards(split: str, source: Folder, features: Any) -> list[Shard]:
    order = shuffled([f"{index:09d}" for index in range(len(source))], split)
    size = sum(map(_size, source.paths))
    return shards_of(split, order, size, lambda places, said: _records(source, places, features, said))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _records(source: Folder, places: list[int], features: Any, said: list[str]) -> Iterator[bytes]:
    for place in places:
        record = source[place]
        try:
            encoded = as_png_or_jpeg(record)
        except UnreadablePicture as error:
            said.append(str(error))
            continue
        example = {"image": io.BytesIO(encoded), "name": printable(Path(record.name).name)}
        yield serialised(features, example | _label(record.label, source.class_names, features))


def _label(label: Any, names: tuple[str, ...] | None, features: Any) -> dict[str, Any]:
    """As the features of `_info` hold it."""
    if names is None:
        return {}
    if "label" in features:
        return {"label": int(label)}
    numbers = hasattr(features["labels"], "items")
    return {"labels": dict(zip(names, label, strict=True)) if numbers else np.flatnonzero(label).tolist()}


def as_png_or_jpeg(record: Record) -> bytes:
    """The bytes themselves where they decode and are JPEG or PNG, else the picture as PNG."""
    assert isinstance(record.image, bytes)
    picture = open_picture(record, 3)
    kept = picture.format in KEPT_FORMATS
    upright = decode(picture, 3, record.name)
    if kept:
        return record.image
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG")
    return buffer.getvalue()
