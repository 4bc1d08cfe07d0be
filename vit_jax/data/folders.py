"""A folder of pictures as a source: {train,test}/class/x.jpg, class/x.jpg, or x.jpg without labels."""

from __future__ import annotations

import collections
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.contracts import Record, UserError
from vit_jax.data.decoding import MAX_PIXELS, printable

log = logging.getLogger("vit_jax")
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"])
LABEL_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx")
TEST_NAMES = ("test", "val", "validation", "valid")
TEST_SHARE = 0.1
MAX_BYTES = 8 * MAX_PIXELS  # four channels of 16 bits, uncompressed: no picture that is decoded is larger


class Folder:
    """Paths and labels; a record's bytes are read when it is asked for."""

    def __init__(self, name: str, paths: list[Path], labels: Sequence[Any], class_names: tuple[str, ...] | None):
        self.name, self.paths, self.labels, self.class_names = name, paths, labels, class_names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        try:
            return Record(picture_bytes(path), self.labels[index], str(path))
        except OSError:
            return Record(b"", self.labels[index], str(path))  # decoding names it among the unreadable ones


def picture_bytes(path: Path) -> bytes:
    """What the file holds; see `check_file`."""
    check_file(path)
    return path.read_bytes()


def check_file(path: Path) -> None:
    """OSError for all but a regular file of bounded size: a pipe would be waited for, and a device has no end."""
    if not path.exists():
        raise FileNotFoundError(None, "a link to nothing" if path.is_symlink() else "no such file")
    if not path.is_file():
        raise OSError(None, "a folder" if path.is_dir() else "no regular file")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise OSError(None, f"{size / 2**30:.1f} GiB, more than any picture that is decoded")


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder and of all folders in it, sorted; what is hidden is left out.

    Links to folders are followed, but each folder is entered once, and none that `folder` lies in: links in circles end.

    Raises:
      UserError: a folder that cannot be listed.
    """
    found, odd, pending = [], [], [folder]
    entered = {_identity(place) for place in folder.resolve().parents}
    while pending:
        place = pending.pop()
        if (identity := _identity(place)) in entered:
            continue
        entered.add(identity)
        listed = _listed(place)
        pending += [path for path, kind in reversed(listed) if kind == "folder"]
        found += [path for path, kind in listed if kind == "file" and is_picture(path)]
        odd += [path.relative_to(folder) for path, kind in listed if kind == "odd" and is_picture(path)]
    _say_not_read(folder, sorted(odd), ODD)
    return sorted(found)


ODD = "links to nothing, or no regular files"


def _listed(folder: Path) -> list[tuple[Path, str]]:
    """What is not hidden in a folder, by name: each a "folder", a "file" or "odd", links followed."""

    def kind(entry: os.DirEntry[str]) -> str:
        try:
            return "folder" if entry.is_dir() else "file" if entry.is_file() else "odd"
        except OSError:  # a link to itself
            return "odd"

    try:
        with os.scandir(folder) as entries:
            return sorted((Path(x.path), kind(x)) for x in entries if not x.name.startswith("."))
    except OSError as error:
        raise _unlistable(folder, error) from error


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise _unlistable(folder, error) from error
    return status.st_dev, status.st_ino


def _unlistable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"Expected a folder of pictures, {printable(str(folder))} cannot be listed ({error.strerror}): change its "
        "permissions, or give another folder."
    )


def is_picture(path: Path) -> bool:
    """By its name alone."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def _say_not_read(folder: Path, names: Sequence[Path | str], why: str) -> None:
    """One line of warning about what lies in a folder and is left out, if anything does."""
    if names:
        some = ", ".join(map(str, names[:5])) + (" ..." if len(names) > 5 else "")
        say(f"{folder}: not read: {some} ({why})")


@functools.cache  # the training and the test split are made of the same folders
def say(line: str) -> None:
    log.warning("%s", printable(line))


def folder_records(root: Path, split: str, seed: int) -> Folder:
    """The pictures of "train" or "test" under `root`. A folder without a split gets a seeded one, 10% to test."""
    given = given_splits(root)
    wanted = "test" if split in TEST_NAMES else split
    if wanted not in ("train", "test"):
        raise UserError(f"Expected the split train or test of {root}, got {split!r}: change pp.train or pp.test.")
    if "train" in given and "test" in given:
        train, test = _classes(given["train"]), _classes(given["test"])
        if set(train) != set(test):
            odd = sorted(map(str, set(train) ^ set(test)))
            raise UserError(f"Expected the same classes in {root}/train and test, {odd[:5]} are only in one of them.")
        return _folder(f"{root} {wanted}", train if wanted == "train" else test)
    if "test" in given:
        if wanted == "train":
            raise UserError(f"Expected pictures to train on in {root}/train, there is only {given['test'].name}.")
        return _folder(f"{root} test", _classes(given["test"]))
    whole = _classes(given.get("train", root))
    parts = {name: split_paths(paths, seed, name)[wanted] for name, paths in whole.items()}
    if all(len(paths) == 1 for paths in whole.values()):  # one a class: hold out classes, or there is no test at all
        held_out = set(split_paths([paths[0] for paths in whole.values()], seed, None)["test"])
        parts = {
            name: [path for path in paths if (path in held_out) == (wanted == "test")] for name, paths in whole.items()
        }
    return _folder(f"{root} {wanted} (seeded split)", parts)


def given_splits(root: Path) -> dict[str, Path]:
    """The folders "train" and "test" of `root`, under whichever of their names, where it has them."""
    folders = [path for path, kind in _listed(root) if kind == "folder"]
    named = {name: [path for path in folders if path.name.lower() == name] for name in ("train", *TEST_NAMES)}
    for name, paths in named.items():
        if len(paths) > 1:
            raise UserError(
                f"Expected one folder {name} in {root}, got {' and '.join(path.name for path in paths)}: rename one."
            )
    train, test = named["train"], next((named[name] for name in TEST_NAMES if named[name]), [])
    alone = len(folders) == 1  # a folder of test pictures, to evaluate on
    given = {"train": train[0]} if train else {}
    if test and (train or alone):
        given["test"] = test[0]
    beside = [path for path in folders if path not in given.values()] if given else []
    if list(given) == ["train"] and not _has_folders(given["train"]) and any(map(_has_pictures, beside)):
        raise UserError(
            f"Expected {given['train']} to be a split, pictures lie in {beside[0].name} beside it: rename it where it is "
            "a class, or move the others."
        )
    _say_not_read(root, [path.name for path in beside], "folders beside the split")
    return given


def _has_folders(folder: Path) -> bool:
    return any(kind == "folder" for _, kind in _listed(folder))


def _has_pictures(folder: Path) -> bool:
    return any(kind == "file" and is_picture(path) for path, kind in _listed(folder))


def _classes(root: Path) -> dict[str | None, list[Path]]:
    """Sorted paths by class; {None: paths} for a flat folder."""
    listed = _listed(root)
    folders = [path for path, kind in listed if kind == "folder" and not _lies_in(root, path)]
    flat = [path for path, kind in listed if kind == "file" and is_picture(path)]
    _say_not_read(root, [path.name for path, kind in listed if kind == "odd"], ODD)
    _say_not_read(root, [path.name for path, _ in listed if _lies_in(root, path)], "links to a folder around it")
    if not folders and not flat:
        raise UserError(
            f"Expected pictures in {root}, found none: give a folder of {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    if not folders:
        labels = [path.name for path, _ in listed if path.suffix.lower() in LABEL_SUFFIXES]
        _say_not_read(
            root, labels, "labels are the names of folders, one a class; a labels.csv is read where labels are learned"
        )
        return {None: flat}
    _say_not_read(root, [path.name for path in flat], "pictures beside the folders of classes")
    classes: dict[str | None, list[Path]] = {folder.name: pictures_below(folder) for folder in folders}
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise UserError(
            f"Expected pictures in every class folder of {root}, {empty[:5]} have none: fill or remove them."
        )
    lower = collections.Counter(folder.name.lower() for folder in folders)
    if alike := [folder.name for folder in folders if lower[folder.name.lower()] > 1]:
        say(f"{root}: classes whose names differ in case alone: {', '.join(alike[:6])}")
    return classes


def _lies_in(root: Path, link: Path) -> bool:
    return link.is_symlink() and root.resolve().is_relative_to(link.resolve())


def split_paths(paths: list[Path], seed: int, name: str | None) -> dict[str, list[Path]]:
    """At least one of two or more pictures to each side; a function of (seed, class, sorted names)."""
    entropy = [seed, *os.fsencode(name or "")]
    order = np.random.default_rng(entropy).permutation(len(paths))
    held_out = min(max(1, round(TEST_SHARE * len(paths))), len(paths) - 1) if len(paths) > 1 else 0
    return {
        "test": [paths[place] for place in sorted(order[:held_out])],
        "train": [paths[place] for place in sorted(order[held_out:])],
    }


def _folder(name: str, classes: dict[str | None, list[Path]]) -> Folder:
    labelled = None not in classes
    names = sorted(classes, key=str)
    paths = [path for place in names for path in classes[place]]
    labels = [number if labelled else -1 for number, place in enumerate(names) for _ in classes[place]]
    if not paths:
        raise UserError(f"Expected pictures in {name}, there are too few to split: add a test folder.")
    return Folder(name, paths, labels, tuple(str(place) for place in names) if labelled else None)
