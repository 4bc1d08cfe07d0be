"""A data set that TFDS has prepared in TFRecord -> the same records in ArrayRecord, which can be read in any order.

A TFRecord file is one record after another: its length in eight bytes, their checksum, its bytes, their checksum. A
checksum is a CRC-32C, rotated and shifted by a constant ("masked"). Records are copied as they are.
"""

from __future__ import annotations

import functools
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.contracts import UserError, first_line
from vit_jax.data.shards import Shard, growing, write_shards

EXTRA = "pip install 'vit_jax[tfrecord]'"
MASK = 0xA282EAD8
INFO = "dataset_info.json"


def prepare_tfrecord(folder: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the data set of `folder` into `out`/NAME/[CONFIG/]VERSION, or go on with what is there of it.

    Args:
      folder: what holds `dataset_info.json` and the files of records.
      out: where TFDS data sets lie (`config.tfds_data_dir`).

    Returns:
      {"splits": {name: count}, "dataset": "NAME" or "NAME/CONFIG", "folder": where it lies}.

    Raises:
      UserError: no such data set, one in another format, files that are damaged or missing, or a disk that does not take it.
    """
    folder = Path(folder)
    info = _opened(folder)
    if (form := info.file_format.value) != "tfrecord":
        raise UserError(
            f"Expected a data set in TFRecord, {folder} is in {form}: "
            f"{'it can be trained from as it is' if form == 'array_record' else 'prepare it again with `tfds build`'}."
        )
    try:
        import google_crc32c  # noqa: F401
    except ImportError as error:
        raise UserError(f"Expected google-crc32c, which checks the records of TFRecord files: {EXTRA}.") from error
    shards = [shard for name, split in sorted(info.splits.items()) for shard in _shards(folder, name, split)]
    dataset = info.name if info.config_name in (None, "", "default_config") else f"{info.name}/{info.config_name}"
    place = Path(out) / dataset / str(info.version)
    with growing(place, {"folder": str(folder.absolute()), "info": json.loads((folder / INFO).read_text())}) as growth:
        write_shards(growth, info.name, shards)
        _copy_metadata(folder, growth)
    return {
        "splits": {name: split.num_examples for name, split in info.splits.items()},
        "dataset": dataset,
        "folder": place,
    }


def _opened(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    if not (folder / INFO).is_file():
        inside = sorted(folder.glob(f"*/{INFO}")) + sorted(folder.glob(f"*/*/{INFO}")) if folder.is_dir() else []
        hint = f"give {inside[-1].parent}" if inside else "give the folder of its version, such as imagenet2012/5.1.0"
        raise UserError(f"Expected a data set that TFDS has prepared, {folder} holds no {INFO}: {hint}.")
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as error:  # whatever TFDS makes of a damaged file
        raise UserError(
            f"Expected a data set that TFDS has prepared, {folder} cannot be opened ({first_line(error)[:160]})."
        ) from error


def _shards(folder: Path, name: str, split: Any) -> list[Shard]:
    """A shard for every file."""
    paths = [folder / Path(path).name for path in split.filepaths]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise UserError(
            f"Expected {len(paths)} files of the split {name} in {folder}, {len(missing)} are missing "
            f"({', '.join(missing[:3])}): copy them, too."
        )
    return [
        Shard(name, number, len(paths), count, functools.partial(_counted, path, count))
        for number, (path, count) in enumerate(zip(paths, split.shard_lengths, strict=True))
    ]


def _counted(path: Path, count: int, said: list[str]) -> Iterator[bytes]:
    found = 0
    for record in records(path):
        found += 1
        yield record
    if found != count:
        raise _damaged(path, f"{found:,} records of {count:,}")


def records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file.

    Raises:
      UserError: it ends in the middle of a record, or a checksum is another than that of its bytes.
    """
    from google_crc32c import value

    def masked(found: bytes) -> int:
        crc = value(found)
        return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF

    left = path.stat().st_size
    with path.open("rb") as file:
        while head := file.read(12):
            length, crc = struct.unpack("<QI", head) if len(head) == 12 else (0, -1)
            if masked(head[:8]) != crc or length + 16 > left:
                raise _damaged(path, f"at byte {file.tell() - len(head):,}")
            record, (crc,) = file.read(length), struct.unpack("<I", file.read(4))
            if masked(record) != crc:
                raise _damaged(path, f"in the record before byte {file.tell():,}")
            left -= length + 16
            yield record


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"Expected whole TFRecord files, {path} is damaged ({why}): copy or prepare it again.")


def _copy_metadata(folder: Path, growth: Path) -> None:
    """All that is no record, with the other format in it."""
    for path in folder.iterdir():
        if path.is_file() and ".tfrecord" not in path.name and path.name != INFO:
            shutil.copyfile(path, growth / path.name)
    info = json.loads((folder / INFO).read_text())
    info["fileFormat"] = "array_record"
    for split in info.get("splits", []):
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    (growth / INFO).write_text(json.dumps(info, indent=2))
