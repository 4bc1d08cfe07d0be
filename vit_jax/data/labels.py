"""Labels of any kind from a labels.csv beside pictures, and what a data set's labels make of a configuration.

file,label                file,label                 file,cat,dog          file,age,weight
a.jpg,cat                 a.jpg,cat,dog              a.jpg,1,1             a.jpg,31,70.5
one class                 any number of classes      the same              numbers
"""

from __future__ import annotations

import collections
import copy
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from vit_jax.contracts import Config, UserError, first_line
from vit_jax.data.decoding import printable
from vit_jax.data.folders import TEST_NAMES, Folder, check_file, given_splits, pictures_below, say, split_paths

TABLE = "labels.csv"
LARGEST = float(np.finfo(np.float32).max)


class Labels(NamedTuple):
    """What is asked of a data set's labels."""

    task: str = "classes"  # "multilabel" or "regression"
    columns: tuple[str, ...] = ()  # of a labels.csv, or features of a TFDS set; (): all columns, the usual features
    names: tuple[str, ...] | None = None  # of the classes or numbers, where a model knows them already


def labels_of(config: Config, names: tuple[str, ...] | None = None) -> Labels:
    """What a configuration asks for; with `names`, for a model that has learned them."""
    return Labels(config["task"], tuple(config["label_columns"]), names)


class Row(NamedTuple):
    """A picture's line of a table."""

    number: int
    file: str
    cells: list[str]


class Table(NamedTuple):
    """A labels.csv as it is written."""

    path: Path
    columns: list[str]
    rows: list[Row]


def has_table(root: Path) -> bool:
    """Whether labels lie beside the pictures of a folder, or of its splits."""
    return any((place / TABLE).is_file() for place in (root, *given_splits(root).values()))


def table_records(root: Path, split: str, seed: int, labels: Labels) -> Folder:
    """The pictures of "train" or "test" under `root`, with the labels that a labels.csv there gives them.

    Splits are those of the folder: train/ and test/ with a table each, or named in the one table of `root`. Without, it is
    split by `seed`, 10% to test, every class (or set of classes, by its rarest) as evenly as it goes.

    Raises:
      UserError: a table that cannot be read, rows without a picture, columns or labels that mean nothing, a class that no
        training picture has.
    """
    wanted = "test" if split in TEST_NAMES else split
    if wanted not in ("train", "test"):
        raise UserError(f"Expected the split train or test of {root}, got {split!r}: change pp.train or pp.test.")
    parts, names = _parts(root, labels)
    if set(parts) <= {"train", ""}:  # nothing is held out: a seeded split
        parts = halves(next(iter(parts.values())), seed, labels.task)
    if not parts.get(wanted):
        raise UserError(f"Expected labelled pictures in the split {wanted} of {root}, there are none: add some.")
    if labels.task != "regression" and labels.names is None and "train" in parts:
        check_no_class_is_empty(names, list(parts["train"].values()), root)
    found = parts[wanted]
    return Folder(f"{root} {wanted} ({TABLE})", list(found), list(found.values()), names)


def _parts(root: Path, labels: Labels) -> tuple[dict[str, dict[Path, Any]], tuple[str, ...]]:
    """Labels by picture of each split that the folder has ("": it has none), and what they are called."""
    given = given_splits(root)
    own = {name: place for name, place in given.items() if (place / TABLE).is_file()}
    if not own:
        table = read_table(root / TABLE)
        names, values = understood(table, labels)
        listed = pairs(table, values, found_in(root))
        parts = {
            name: {path: label for path, label in listed.items() if path.is_relative_to(place)}
            for name, place in given.items()
        }
        return parts or {"": listed}, names
    if set(own) != set(given):
        raise UserError(f"Expected a {TABLE} in each of {root}/train and test, one of them has none: add it.")
    tables = {name: read_table(place / TABLE) for name, place in own.items()}
    names, _ = understood(tables.get("train") or tables["test"], labels)
    known = labels._replace(names=names)  # a test set may lack a class, and bring none
    return {
        name: pairs(table, understood(table, known)[1], found_in(own[name])) for name, table in tables.items()
    }, names


def read_table(path: Path) -> Table:
    """The cells, stripped; empty lines are left out."""
    try:
        check_file(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(
            f"Expected a table of labels, {path} cannot be read ({first_line(error)}): repair it."
        ) from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    header = lines[0][1] if lines else []
    if len(header) < 2 or header[0].lower() != "file" or not all(header):
        raise UserError(
            f"Expected a first line such as file,label in {path}, got {printable(','.join(header)[:80])!r}: the first "
            "column names the pictures, the others their labels; commas lie between."
        )
    named = [name for name in header if name != "label"]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise UserError(f"Expected columns of different names in {path}, got {twice[:5]} twice: rename one.")
    return Table(path, header[1:], [Row(number, cells[0], cells[1:]) for number, cells in lines[1:]])


def found_in(root: Path) -> dict[str, Path]:
    """The pictures of a folder by the names that a table there uses."""
    return {path.relative_to(root).as_posix(): path for path in pictures_below(root)}


def pairs(table: Table, values: Sequence[Any], pictures: dict[str, Path]) -> dict[Path, Any]:
    """The label of each picture. Pictures without a row are left out and said."""
    files = [row.file.removeprefix("./") for row in table.rows]
    if missing := [name for name in files if name not in pictures]:
        raise UserError(
            f"Expected a picture for every row of {table.path}, {len(missing)} of {len(files)} have none "
            f"({printable(', '.join(missing[:5]))}): add the pictures beside it, or remove the rows."
        )
    if twice := [name for name, count in collections.Counter(files).items() if count > 1]:
        raise UserError(
            f"Expected one row a picture in {table.path}, got several for {printable(', '.join(twice[:5]))}: keep one."
        )
    if not files:
        raise UserError(f"Expected rows of pictures and labels in {table.path}, it has none: add some.")
    if len(pictures) > len(files):
        say(f"{table.path}: {len(pictures) - len(files)} of {len(pictures)} pictures have no row and are left out")
    return {pictures[name]: value for name, value in zip(files, values, strict=True)}


def understood(table: Table, labels: Labels) -> tuple[tuple[str, ...], list[Any]]:
    """Names of the classes or numbers, and the label of each row: a class id, or a vector."""
    chosen = chosen_columns(table, labels)
    words = labels.task == "classes" or all(table.columns[place] == "label" for place in chosen)
    if labels.task == "regression" or not words:
        return tuple(table.columns[place] for place in chosen), [
            _numbers(table, row, chosen, labels) for row in table.rows
        ]
    said = [_words(table, row, chosen, labels) for row in table.rows]
    names = labels.names or tuple(sorted({word for row in said for word in row}))
    known = {name: number for number, name in enumerate(names)}
    for row, given in zip(table.rows, said, strict=True):
        if unknown := [word for word in given if word not in known]:
            raise UserError(
                f"Expected a class of {_some(names)} in line {row.number} of {table.path}, got {printable(unknown[0])!r}: "
                "correct it, or train with it."
            )
    if labels.task == "classes":
        return names, [known[given[0]] for given in said]
    rows = np.zeros((len(said), len(names)), np.float32)
    for place, given in enumerate(said):
        rows[place, [known[word] for word in given]] = 1.0
    return names, list(rows)


def chosen_columns(table: Table, labels: Labels) -> list[int]:
    """Places of the columns that hold labels: those asked for, else a model's own, else all of them."""
    wanted = labels.columns or labels.names or ()
    if labels.columns or (labels.names and _named_by_columns(table, labels)):
        if unknown := [name for name in wanted if name not in table.columns]:
            raise UserError(
                f"Expected the columns {_some(wanted)} in {table.path}, it has no {_some(unknown)} but "
                f"{_some(table.columns)}: change config.label_columns or the table."
            )
        if labels.task == "classes" and len(wanted) != 1:
            raise UserError(
                f"Expected one column of classes, got {_some(wanted)}: change config.label_columns, or set config.task."
            )
        return [table.columns.index(name) for name in wanted]
    if labels.task == "classes" and table.columns != ["label"]:
        raise UserError(
            f"Expected the columns file,label in {table.path} for one class a picture, it has the unknown columns "
            f"{_some([name for name in table.columns if name != 'label'] or table.columns)}: set config.label_columns to the "
            "one with the classes, or config.task to multilabel or regression."
        )
    return list(range(len(table.columns)))


def _named_by_columns(table: Table, labels: Labels) -> bool:
    return labels.task == "regression" or (labels.task == "multilabel" and "label" not in table.columns)


def _words(table: Table, row: Row, chosen: list[int], labels: Labels) -> list[str]:
    """The labels of a row; rows of several may be shorter or longer than the first line."""
    several = labels.task == "multilabel" and len(chosen) == len(table.columns)
    if not several and len(row.cells) != len(table.columns):
        raise _ragged(table, row)
    words = [cell for cell in (row.cells if several else [row.cells[place] for place in chosen]) if cell]
    if labels.task == "classes" and not words:
        raise UserError(
            f"Expected a label in line {row.number} of {table.path}, {printable(row.file)} has an empty one: fill it in."
        )
    return words


def _numbers(table: Table, row: Row, chosen: list[int], labels: Labels) -> Float32[np.ndarray, " c"]:
    if len(row.cells) != len(table.columns):
        raise _ragged(table, row)
    return np.asarray([_number(table, row, place, labels.task) for place in chosen], np.float32)


def _number(table: Table, row: Row, place: int, task: str) -> float:
    text, kind = row.cells[place], "0 or 1" if task == "multilabel" else "a finite number"
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST or (task == "multilabel" and value not in (0.0, 1.0)):
        raise UserError(
            f"Expected {kind} in column {printable(table.columns[place])} of line {row.number} of {table.path}, got "
            f"{printable(text[:40])!r}: correct it, or choose other columns with config.label_columns."
        )
    return value


def _ragged(table: Table, row: Row) -> UserError:
    return UserError(
        f"Expected {1 + len(table.columns)} cells in line {row.number} of {table.path} as in its first, got "
        f"{1 + len(row.cells)}: correct it (several classes a picture are config.task='multilabel')."
    )


def _some(names: Sequence[str]) -> str:
    return printable(", ".join(names[:6])) + (" ..." if len(names) > 6 else "")


def halves(listed: dict[Path, Any], seed: int, task: str) -> dict[str, dict[Path, Any]]:
    """A seeded split, made within each class; a picture of several counts for the rarest of them."""
    rare = np.sum(list(listed.values()), axis=0) if task == "multilabel" else None

    def group(label: Any) -> str:
        if rare is None:
            return str(label) if task == "classes" else ""
        there = np.flatnonzero(label)
        return str(there[np.argmin(rare[there])]) if len(there) else ""

    groups: dict[str, list[Path]] = {}
    for path in sorted(listed):
        groups.setdefault(group(listed[path]), []).append(path)
    split = [split_paths(paths, seed, name) for name, paths in sorted(groups.items())]
    return {
        part: {path: listed[path] for path in sorted(path for both in split for path in both[part])}
        for part in ("train", "test")
    }


def check_no_class_is_empty(names: Sequence[str], labels: Any, where: Any) -> None:
    """Raise `UserError` for classes that no training picture has."""
    if empty := [name for name, count in zip(names, counts(np.asarray(labels), len(names)), strict=True) if not count]:
        raise UserError(
            f"Expected training pictures of every class of {where}, {_some(empty)} have none: add some, or remove the "
            "class from the table."
        )


def counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Pictures of each class."""
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=num_classes)


def all_labels(source: Any) -> np.ndarray:
    """Labels of every record of a source, "n" or "n c"; of a TFDS set its records are read once."""
    return np.asarray([source[index].label for index in range(len(source))])


def settled(config: Config, source: Any) -> Config:
    """`config` with what follows from the training labels: the units of a regression, balanced weights of classes.

    Raises:
      UserError: a number that is the same for every picture, or a class that none has.
    """
    values: dict[str, tuple[float, ...]] = {}
    units = {field for field in ("target_mean", "target_std") if config[field] is None}
    if config["task"] == "regression" and units:
        numbers = all_labels(source).astype(np.float64)
        found = {"target_mean": numbers.mean(axis=0), "target_std": numbers.std(axis=0)}
        if same := [name for name, std in zip(source.class_names, found["target_std"], strict=True) if not std > 0]:
            raise UserError(
                f"Expected numbers that differ between pictures of {source.name}, {_some(same)} is the same for all: choose "
                "other columns with config.label_columns."
            )
        values |= {field: _rounded(found[field]) for field in units}
    if config["task"] != "regression" and config["class_weights"] == "balanced":
        labels, classes = all_labels(source), len(source.class_names)
        check_no_class_is_empty(source.class_names, labels, source.name)
        count = counts(labels, classes)
        # One class a picture: as scikit-learn's class_weight="balanced". Several: pictures without over pictures with it.
        weights = len(labels) / (classes * count) if labels.ndim == 1 else np.maximum(len(labels) - count, 1) / count
        values["class_weights"] = _rounded(weights)
    if not values:
        return config
    made: Any = copy.deepcopy(config)
    for field, value in values.items():
        made[field] = value
    return made


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)
