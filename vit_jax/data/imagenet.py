"""ImageNet's official tars -> TFDS's data set `imagenet2012` in ArrayRecord files, without TensorFlow and without unpacking.

Headers are read first, so that every picture's place is known; then shard after shard takes its pictures out of the tars, in
the order in which TFDS would write them. Names, classes and the validation labels come with TFDS. As TFDS does, pictures
that are no JPEG of three colours or of greys (a PNG, some CMYK) are written as such.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vit_jax.contracts import Record, UserError
from vit_jax.data.decoding import UnreadablePicture, decode, open_picture
from vit_jax.data.shards import Shard, growing, serialised, set_splits, shards_of, shuffled, unfinished_of, write_shards
from vit_jax.data.tars import Member, members
from vit_jax.progress import Progress

NAME = "imagenet2012"
COUNTS = {"train": 1_281_167, "validation": 50_000}
GIVEN = "give ILSVRC2012_img_train.tar first and ILSVRC2012_img_val.tar second"
OVERHEAD = 90  # bytes that a record is longer than its picture, about: it is for the number of shards
AHEAD = 64  # pictures of which the disk is told before they are read
QUALITY = 100  # of the JPEGs that are written anew; as TFDS


class Pictures(NamedTuple):
    """The pictures of a split, in the order of their tar."""

    path: Path
    members: list[Member]
    labels: list[int]


def prepare_imagenet(train: str | Path, validation: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the pictures of both tars into `out`/imagenet2012/VERSION, or go on with what is there of it.

    Args:
      train: ILSVRC2012_img_train.tar: a tar of JPEGs for every class.
      validation: ILSVRC2012_img_val.tar: 50,000 JPEGs. Of both tars some classes or pictures may be missing.
      out: where TFDS data sets lie (`config.tfds_data_dir`).

    Returns:
      {"splits": {name: count}, "classes": those that have training pictures, "rewritten": names, "folder": where it lies}.

    Raises:
      UserError: other tars, damaged ones, a picture that is none, or a disk that does not take the data set.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(NAME, data_dir=Path(out), file_format="array_record")
    place, info = Path(builder.data_dir), builder.info
    if place.exists():
        raise UserError(f"Expected a new data set to write, {place} is there already: remove it, or give another OUT.")
    number_of = {synset: number for number, synset in enumerate(info.features["label"].names)}
    labels = Path(tfds.core.tfds_path(f"datasets/{NAME}/validation_labels.txt")).read_text().split()
    found = {
        "train": training_pictures(Path(train), number_of),
        "validation": validation_pictures(Path(validation), [number_of[synset] for synset in labels]),
    }
    plan = {split: _fingerprint(pictures) for split, pictures in found.items()}
    _check_space(place, found)
    with growing(place, plan) as folder:
        shards = [shard for split, pictures in found.items() for shard in _shards(split, pictures, info.features)]
        written = write_shards(folder, NAME, shards)
        set_splits(info, folder, written)
    return {
        "splits": {split: len(pictures.members) for split, pictures in found.items()},
        "classes": len(set(found["train"].labels)),
        "rewritten": sorted(name for entry in written for name in entry.said),
        "folder": place,
    }


def training_pictures(path: Path, number_of: dict[str, int]) -> Pictures:
    """Those of a tar of tars, one a class."""
    found = Pictures(path, [], [])
    with _Tar(path) as tar:
        for inner in members(tar.handle, path, 0, tar.size):
            synset = inner.name.removesuffix(".tar")
            if synset not in number_of or synset == inner.name:
                raise UserError(
                    f"Expected tars of ImageNet-1k's classes such as n01440764.tar in {path}, got {inner.name[:80]}: {GIVEN}."
                )
            for member in members(tar.handle, path, inner.offset, inner.offset + inner.size, tar.show):
                found.members.append(member)
                found.labels.append(number_of[synset])
    return _checked(found)


def validation_pictures(path: Path, labels: list[int]) -> Pictures:
    """Those of a flat tar, whose labels follow from their numbers."""
    found = Pictures(path, [], [])
    with _Tar(path) as tar:
        for member in members(tar.handle, path, 0, tar.size, tar.show):
            number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", member.name)
            if not number or not 1 <= int(number[1]) <= len(labels):
                raise UserError(
                    f"Expected pictures such as ILSVRC2012_val_00000001.JPEG in {path}, got {member.name[:80]}: {GIVEN}."
                )
            found.members.append(member)
            found.labels.append(labels[int(number[1]) - 1])
    return _checked(found)


class _Tar:
    """An open file that says how far it is read."""

    def __init__(self, path: Path):
        try:
            self.handle = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self.handle).st_size
            os.pread(self.handle, 1, 0)
        except OSError as error:
            raise UserError(f"Expected a tar, {path} cannot be read ({error.strerror}): {GIVEN}.") from error
        self.progress = Progress(f"looking through {path}", self.size)
        self.show = self.progress.show

    def __enter__(self) -> _Tar:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.progress.__exit__()
        os.close(self.handle)


def _checked(found: Pictures) -> Pictures:
    if not found.members:
        raise UserError(f"Expected pictures in {found.path}, it holds none: {GIVEN}.")
    return found


def _fingerprint(pictures: Pictures) -> str:
    """sha256 of what lies where in a tar."""
    digest = hashlib.sha256()
    for member in pictures.members:
        digest.update(f"{member.name} {member.offset} {member.size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _check_space(place: Path, found: dict[str, Pictures]) -> None:
    """Of the disk that is written to, less what a start before this one has written."""
    needed = sum(member.size for pictures in found.values() for member in pictures.members)
    there = unfinished_of(place)
    needed -= sum(path.stat().st_size for path in there.glob(f"{NAME}*")) if there.exists() else 0
    disk = next(parent for parent in place.absolute().parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        raise UserError(
            f"Expected {needed / 1e9:,.1f} GB free for {place}, {disk} has {free / 1e9:,.1f}: give an OUT on a larger disk."
        )


def _shards(split: str, pictures: Pictures, features: Any) -> list[Shard]:
    size = sum(member.size + OVERHEAD for member in pictures.members)
    order = shuffled([member.name for member in pictures.members], split)
    return shards_of(split, order, size, lambda places, said: _records(pictures, places, features, said))


def _records(pictures: Pictures, places: list[int], features: Any, said: list[str]) -> Iterator[bytes]:
    handle = os.open(pictures.path, os.O_RDONLY)
    try:
        for turn, place in enumerate(places):
            if hasattr(os, "posix_fadvise"):  # the disk may fetch many at once, in the order it likes
                for ahead in places[turn + AHEAD : turn + AHEAD + 1] if turn else places[: AHEAD + 1]:
                    coming = pictures.members[ahead]
                    os.posix_fadvise(handle, coming.offset, coming.size, os.POSIX_FADV_WILLNEED)
            member = pictures.members[place]
            encoded = os.pread(handle, member.size, member.offset)
            try:
                jpeg = as_jpeg(encoded, member.name)
            except UnreadablePicture as error:
                raise UserError(f"Expected pictures in {pictures.path}, {error}: download it again.") from error
            if jpeg is not encoded:
                said.append(member.name)
            example = {"image": io.BytesIO(jpeg), "label": pictures.labels[place], "file_name": member.name}
            yield serialised(features, example)
    finally:
        os.close(handle)


def as_jpeg(encoded: bytes, name: str) -> bytes:
    """The bytes themselves if their header is a grey or RGB JPEG's, else the picture as one.

    Raises:
      UnreadablePicture: none, or one that would have to be written anew and is damaged.
    """
    picture: Image.Image = open_picture(Record(encoded, -1, name), 3)
    if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
        return encoded
    buffer = io.BytesIO()
    decode(picture, 3, name).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()
