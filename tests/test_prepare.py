"""Folders with a labels.csv, prepared: the same labels as in the folder; what is not clean is refused."""

import collections
import os

import numpy as np
import pytest
from PIL import Image

from tests.test_data import fill
from vit_jax import UserError
from vit_jax.commands.cli import main
from vit_jax.data.labels import Labels
from vit_jax.data.prepare import prepare
from vit_jax.data.sources import open_source

COLOURS = ("red", "green", "blue")


def paint(root, count):
    """Pictures of noise: (file, red, green, blue) of each, 0 or 1."""
    root.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / f"{number:03d}.png")
        rows.append((f"{number:03d}.png", *rng.integers(0, 2, 3).tolist()))
    return rows


def words(rows):
    return "file,label\n" + "".join(
        ",".join([name, *(word for word, there in zip(COLOURS, on, strict=True) if there)]) + "\n" for name, *on in rows
    )


def single(rows):
    return "file,label\n" + "".join(f"{name},{'red' if on[0] else 'dark'}\n" for name, *on in rows)


def numbers(rows):
    return "file,light,shift\n" + "".join(f"{name},{1000 + 300 * sum(on)},{on[0] - on[1]}\n" for name, *on in rows)


TASKS = {"classes": single, "multilabel": words, "regression": numbers}


def labelled(source):
    """Pictures and labels in any order, numbers by the order of their names."""
    records, names = [source[place] for place in range(len(source))], np.argsort(source.class_names)
    found = [record.label if np.ndim(record.label) == 0 else tuple(record.label[names].tolist()) for record in records]
    return collections.Counter((bytes(record.image), label) for record, label in zip(records, found, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_a_labels_csv_is_prepared_with_its_labels(task, tmp_path, capsys):
    (tmp_path / "in" / "labels.csv").write_text(TASKS[task](paint(tmp_path / "in", 40)))
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), f"--task={task}"]) == 0
    assert (f"--config.task={task}" in capsys.readouterr().out) == (task != "classes")
    for split in ("train", "test"):
        ours, theirs = (open_source(str(tmp_path / x), split, labels=Labels(task)) for x in ("in", "out"))
        assert theirs.class_names == tuple(sorted(ours.class_names))
        assert labelled(ours) == labelled(theirs)


def test_columns_are_chosen(tmp_path):
    (tmp_path / "in" / "labels.csv").write_text(numbers(paint(tmp_path / "in", 40)))
    prepare(tmp_path / "in", tmp_path / "out", labels=Labels("regression", ("shift",)))
    source = open_source(str(tmp_path / "out"), "train", labels=Labels("regression"))
    assert source.class_names == ("shift",)
    assert {float(source[place].label[0]) for place in range(len(source))} <= {-1.0, 0.0, 1.0}


def test_tables_that_are_not_clean_are_refused_and_nothing_is_written(tmp_path):
    rows = paint(tmp_path / "in", 20)
    table, out = tmp_path / "in" / "labels.csv", tmp_path / "out"
    for text, labels, expected in (
        (single(rows) + "nothing.png,red\n", Labels(), "nothing.png"),
        (single(rows).replace(",red", ","), Labels(), "empty one"),
        (numbers(rows), Labels(), "unknown columns light, shift"),
        (numbers(rows).replace(",1300,", ",x,"), Labels("regression"), "finite number"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=expected):
            prepare(tmp_path / "in", out, labels=labels)
        assert not out.exists()
    table.unlink()
    with pytest.raises(UserError, match=r"Expected a labels\.csv"):
        prepare(tmp_path / "in", out, labels=Labels("multilabel"))


def test_an_interrupted_folder_goes_on_but_not_from_other_pictures(tmp_path, monkeypatch):
    fill(tmp_path / "in" / "ant", 6)
    fill(tmp_path / "in" / "cat", 6)
    prepare(tmp_path / "in", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "cat" / "more.png").write_bytes((tmp_path / "in" / "cat" / "0.png").read_bytes())
    with pytest.raises(UserError, match="begun from"):
        prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "cat" / "more.png").unlink()
    prepare(tmp_path / "in", tmp_path / "out")
    made, wanted = (
        {p.name: p.read_bytes() for p in (tmp_path / x).rglob("*.*") if p.is_file()} for x in ("out", "whole")
    )
    assert made == wanted
    (tmp_path / "user" / "pictures").mkdir(parents=True)
    (tmp_path / "user" / "pictures" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds something"):
        prepare(tmp_path / "in", tmp_path / "user")


def test_it_is_not_written_into_its_own_pictures(tmp_path):
    """It would be a class without pictures for everything that reads the folder afterwards."""
    for kind in ("ant", "bee"):
        fill(tmp_path / "in" / kind)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for folder, out in (("in", "in/out"), ("link", "in/out"), ("in", "link/out"), ("in", "in")):
        with pytest.raises(UserError, match=r"outside|holds something"):
            prepare(tmp_path / folder, tmp_path / out)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["ant", "bee"]
