"""A folder of pictures as a source: {train,test}/class/x.jpg, class/x.jpg, or x.jpg without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vit_jax.contracts import Record, UserError

PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"])
TEST_NAMES = ("test", "val", "validation", "valid")
TEST_SHARE = 0.1


class Folder:
    """Paths and labels; a record's bytes are read when it is asked for."""

    def __init__(self, name: str, paths: list[Path], labels: list[int], class_names: tuple[str, ...] | None):
        self.name, self.paths, self.labels, self.class_names = name, paths, labels, class_names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        try:
            return Record(path.read_bytes(), self.labels[index], str(path))
        except OSError:
            return Record(b"", self.labels[index], str(path))  # decoding names it among the unreadable ones


def folder_records(root: Path, split: str, seed: int) -> Folder:
    """The pictures of "train" or "test" under `root`. A folder without a split gets a seeded one, 10% to test."""
    given = _given_splits(root)
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
    parts = {name: _split(paths, seed, name)[wanted] for name, paths in whole.items()}
    if all(len(paths) == 1 for paths in whole.values()):  # one a class: hold out classes, or there is no test at all
        held_out = set(_split([paths[0] for paths in whole.values()], seed, None)["test"])
        parts = {
            name: [path for path in paths if (path in held_out) == (wanted == "test")] for name, paths in whole.items()
        }
    return _folder(f"{root} {wanted} (seeded split)", parts)


def _given_splits(root: Path) -> dict[str, Path]:
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    found = {"train": folders["train"]} if "train" in folders else {}
    test = next((folders[name] for name in TEST_NAMES if name in folders), None)
    alone = len(folders) == 1  # a folder of test pictures, to evaluate on
    return found | {"test": test} if test is not None and (found or alone) else found


def _classes(root: Path) -> dict[str | None, list[Path]]:
    """Sorted paths by class; {None: paths} for a flat folder."""
    entries = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir()]
    flat = [path for path in entries if _is_picture(path)]
    if not folders and not flat:
        raise UserError(
            f"Expected pictures in {root}, found none: give a folder of {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    if not folders:
        return {None: flat}
    classes: dict[str | None, list[Path]] = {
        folder.name: sorted(path for path in folder.rglob("*") if _is_picture(path)) for folder in folders
    }
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise UserError(
            f"Expected pictures in every class folder of {root}, {empty[:5]} have none: fill or remove them."
        )
    return classes


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _split(paths: list[Path], seed: int, name: str | None) -> dict[str, list[Path]]:
    """At least one of two or more pictures to each side; a function of (seed, class, sorted names)."""
    entropy = [seed, *(name or "").encode()]
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
