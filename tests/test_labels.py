"""Labels of any kind: read from labels.csv, learned, judged and predicted; against scikit-learn and PyTorch."""

import csv
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics

from tests import tolerances
from vit_jax import UserError, configuration, sharding, train
from vit_jax.commands import cli
from vit_jax.contracts import Batch, check_batch
from vit_jax.data.labels import Labels, labels_of, settled
from vit_jax.data.loader import eval_batches, spread_batch, train_batches
from vit_jax.data.sources import check_classes, open_source
from vit_jax.data.tfds_labels import label_reader
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.answers import average_precision, judge_classes, judge_multilabel, judge_numbers
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import classification, method_of
from vit_jax.ops.means import Mean
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program
from vit_jax.visualisation import confusion

COLOURS = ("blue", "green", "red")
MULTI, NUMBERS = Labels("multilabel"), Labels("regression")


def paint(root, count, seed=0):
    """Pictures whose channels are on or off: (file, red, green, blue) of each."""
    root.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        on = rng.integers(0, 2, 3)
        pixels = 60 + 120 * on[None, None, :] + rng.normal(0, 10, (8, 8, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{number:03d}.png")
        rows.append((f"{number:03d}.png", *(int(x) for x in on)))
    return rows


def words(rows):
    return "file,label\n" + "".join(
        ",".join([name, *(word for word, there in zip(("red", "green", "blue"), on, strict=True) if there)]) + "\n"
        for name, *on in rows
    )


def single(rows):
    return "file,label\n" + "".join(
        f"{name},{'red' if on[0] else 'green' if on[1] else 'dark'}\n" for name, *on in rows
    )


def numbers(rows):
    return "file,light,shift\n" + "".join(f"{name},{1000 + 300 * sum(on)},{on[0] - on[1]}\n" for name, *on in rows)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One set of pictures under three tables."""
    root = tmp_path_factory.mktemp("labelled")
    for task, table in (("multilabel", words), ("regression", numbers), ("classes", single)):
        rows = paint(root / task, 60)
        (root / task / "labels.csv").write_text(table(rows))
    return root


def config_for(small, folders, task, **changes):
    config = small("scratch", dataset=str(folders / task), task=task, **changes)
    config.label_smoothing = 0.0
    return config


# What is read


def test_a_table_of_each_kind_is_read_as_written(folders):
    with (folders / "multilabel" / "labels.csv").open() as file:
        written = {row[0]: row[1:] for row in list(csv.reader(file))[1:]}
    parts = [open_source(str(folders / "multilabel"), split, labels=MULTI) for split in ("train", "test")]
    assert [part.class_names for part in parts] == [COLOURS, COLOURS]
    records = [part[index] for part in parts for index in range(len(part))]
    assert len(records) == 60
    for record in records:
        there = [name for name, value in zip(COLOURS, record.label, strict=True) if value]
        assert sorted(written[record.name.rpartition("/")[2]]) == there
    told = open_source(str(folders / "regression"), "train", labels=NUMBERS)
    assert told.class_names == ("light", "shift")
    assert told[0].label.dtype == np.float32
    assert told[0].label[0] in (1000, 1300, 1600, 1900)
    one = open_source(str(folders / "classes"), "train", labels=Labels())
    assert one.class_names == ("dark", "green", "red")
    assert isinstance(one[0].label, int)
    assert check_classes(one) == 3


def test_flags_in_columns_are_the_same_labels_as_words(folders, tmp_path):
    rows = paint(tmp_path / "in", 60)
    flags = "".join(f"{name},{b},{g},{r}\n" for name, r, g, b in rows)
    (tmp_path / "in" / "labels.csv").write_text("file,blue,green,red\n" + flags)
    for split in ("train", "test"):
        ours = open_source(str(folders / "multilabel"), split, labels=MULTI)
        theirs = open_source(str(tmp_path / "in"), split, labels=MULTI)
        assert theirs.class_names == ours.class_names
        for index in range(len(ours)):
            np.testing.assert_array_equal(ours[index].label, theirs[index].label)


def test_a_byte_order_mark_quotes_and_spaces_are_no_matter(tmp_path):
    paint(tmp_path / "in" / "deep", 4)
    lines = [
        "\ufefffile,label",
        '"deep/000.png","a,b"',
        "./deep/001.png, cat ",
        "",
        "deep/002.png,cat",
        'deep/003.png,"a,b"',
    ]
    (tmp_path / "in" / "labels.csv").write_bytes("\r\n".join(lines).encode())
    found = open_source(str(tmp_path / "in"), "train", labels=Labels())
    assert found.class_names == ("a,b", "cat")


def test_splits_of_the_folder_are_kept(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        (tmp_path / "in" / split).parent.mkdir(exist_ok=True)
        rows = paint(tmp_path / "in" / split, count, seed=count)
        (tmp_path / "in" / split / "labels.csv").write_text(
            single([(name, n % 2, 1, 0) for n, (name, *_) in enumerate(rows)])
        )
    one = {split: open_source(str(tmp_path / "in"), split, labels=Labels()) for split in ("train", "test")}
    assert {split: len(part) for split, part in one.items()} == {"train": 6, "test": 3}
    (tmp_path / "in" / "test" / "labels.csv").write_text(
        "file,label\n000.png,green\n"
    )  # lacks a class: it is still that one
    few = open_source(str(tmp_path / "in"), "test", labels=Labels())
    assert (len(few), few[0].label, few.class_names) == (1, 0, ("green", "red"))
    for split in ("train", "test"):
        (tmp_path / "in" / split / "labels.csv").unlink()
    (tmp_path / "in" / "labels.csv").write_text("file,label\ntrain/000.png,a\ntrain/001.png,b\ntest/000.png,b\n")
    one = {split: open_source(str(tmp_path / "in"), split, labels=Labels()) for split in ("train", "test")}
    assert {split: len(part) for split, part in one.items()} == {"train": 2, "test": 1}


def test_a_seeded_split_keeps_a_training_picture_of_every_class(tmp_path):
    rows = paint(tmp_path / "in", 30)
    table = "file,label\n" + "".join(
        f"{name},{'all' if n % 3 else 'some'}{',rare' if n in (7, 8) else ''}\n" for n, (name, *_) in enumerate(rows)
    )
    (tmp_path / "in" / "labels.csv").write_text(table)
    for seed in range(5):
        parts = [open_source(str(tmp_path / "in"), split, seed=seed, labels=MULTI) for split in ("train", "test")]
        counted = [sum(part[index].label for index in range(len(part))) for part in parts]
        assert counted[0][1] == 1  # "rare": one of two on each side
        assert counted[1][1] == 1
        assert len(parts[0]) + len(parts[1]) == 30


def test_columns_are_chosen_by_name(folders):
    asked = NUMBERS._replace(columns=("shift",))
    source = open_source(str(folders / "regression"), "train", labels=asked)
    assert source.class_names == ("shift",)
    assert source[0].label.shape == (1,)
    known = NUMBERS._replace(names=("shift", "light"))  # a model's own order
    other = open_source(str(folders / "regression"), "train", labels=known)
    both = open_source(str(folders / "regression"), "train", labels=NUMBERS)
    np.testing.assert_array_equal(other[3].label, both[3].label[::-1])


def test_without_being_asked_a_table_is_not_read(folders, caplog):
    source = open_source(str(folders / "multilabel"), "train")
    assert source.class_names is None
    assert source[0].label == -1


BAD = {
    "missing files": ("classes", "file,label\n000.png,a\nzzz.png,b\n", "1 of 2 have none.*zzz.png"),
    "no header": ("classes", "000.png,a\n001.png,b\n", "first line such as file,label"),
    "semicolons": ("classes", "file;label\n000.png;a\n", "commas"),
    "nothing": ("classes", "", "first line such as file,label"),
    "a header alone": ("classes", "file,label\n", "it has none"),
    "unknown columns": ("classes", "file,label,age\n000.png,a,3\n", "unknown columns age"),
    "two labels for one class": ("classes", "file,label\n000.png,a,b\n", "3 cells|Expected 2 cells.*got 3"),
    "an empty label": ("classes", "file,label\n000.png,\n001.png,a\n", "line 2 .*000.png has an empty one"),
    "twice a picture": ("classes", "file,label\n000.png,a\n000.png,b\n", "one row a picture.*000.png"),
    "twice a column": ("regression", "file,x,x\n000.png,1,2\n", "different names"),
    "no number": ("regression", "file,x\n000.png,1\n001.png,tall\n", "column x of line 3.*'tall'"),
    "not finite": ("regression", "file,x\n000.png,1\n001.png,nan\n", "column x of line 3.*'nan'"),
    "infinite": ("regression", "file,x\n000.png,1e39\n001.png,1\n", "column x of line 2.*'1e39'"),
    "Python's own spelling": ("regression", "file,x\n000.png,1_000\n001.png,1\n", "'1_000'"),
    "an empty number": ("regression", "file,x,y\n000.png,1,\n001.png,1,2\n", "column y of line 2.*''"),
    "too few cells": ("regression", "file,x,y\n000.png,1\n", "3 cells in line 2"),
    "always the same number": ("regression", "file,x,y\n000.png,1,1\n001.png,1,2\n002.png,1,3\n", "x is the same"),
    "no flag": ("multilabel", "file,cat,dog\n000.png,1,0\n001.png,2,1\n", "0 or 1 in column cat of line 3"),
    "an empty class": ("multilabel", "file,cat,dog\n000.png,1,0\n001.png,1,0\n", "dog have none"),
    "one class alone": ("classes", "file,label\n000.png,a\n001.png,a\n", "two classes or more"),
    "bytes": ("classes", b"file,label\n000.png,\xff\xfe\n", "cannot be read"),
    "an open quote": ("classes", 'file,label\n000.png,"a\n', "cannot be read"),
    "a control character in a name": ("classes", "file,label\n000.png,a\nx\x1b[31m.png,b\n", "have none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_one_sentence_and_write_nothing(case, tmp_path, small):
    task, table, expected = BAD[case]
    paint(tmp_path / "in", 3)
    (tmp_path / "in" / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    config = small("scratch", dataset=str(tmp_path / "in"), task=task, batch=1)
    with pytest.raises(UserError, match=expected) as error:
        train.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert not (tmp_path / "run").exists()


WRONG = {
    "labels of another kind": ({"dataset": "fake", "task": "multilabel"}, "task 'multilabel'.*one class a"),
    "a loss of another task": ({"task": "regression", "loss": "softmax"}, "l2, huber for task 'regression'"),
    "a column that is not there": ({"task": "regression", "label_columns": ("weight",)}, "no weight but light, shift"),
    "weights of numbers": ({"task": "regression", "class_weights": "balanced"}, "class_weights None"),
    "weights of other classes": ({"task": "classes", "class_weights": (1.0, 2.0)}, "each of the 3 classes, got 2"),
    "units of other numbers": ({"task": "regression", "target_mean": (1.0,)}, "each of the 2 to learn in target_mean, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_do_not_fit_the_labels(case, folders, small, tmp_path):
    fields, expected = WRONG[case]
    config = small("scratch", dataset=str(folders / fields["task"]))
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=expected):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


FEATURES = {
    "several": (
        MULTI, {"labels": lambda f: f.Sequence(f.ClassLabel(names=["a", "b", "c"]))}, {"labels": [2, 0]}, "abc", [1, 0, 1]
    ),
    "flags in one": (
        MULTI, {"attributes": lambda f: f.FeaturesDict({"x": np.bool_, "y": np.bool_})},
        {"attributes": {"x": False, "y": True}}, "xy", [0, 1],
    ),
    "flags apart": (
        MULTI._replace(columns=("q", "p")), {"p": lambda f: f.Scalar(np.int64), "q": lambda f: f.Scalar(np.int64)},
        {"p": 0, "q": 1}, "qp", [1, 0],
    ),
    "a scalar": (NUMBERS, {"label": lambda f: f.Scalar(np.float32)}, {"label": 2.5}, ("label",), [2.5]),
    "a vector": (
        NUMBERS, {"label": lambda f: f.Tensor(shape=(2,), dtype=np.float32)}, {"label": [3, 4]}, ("label[0]", "label[1]"),
        [3, 4],
    ),
    "a model's order": (
        NUMBERS._replace(columns=("p", "q"), names=("q", "p")),
        {"p": lambda f: f.Scalar(np.float32), "q": lambda f: f.Scalar(np.float32)}, {"p": 1, "q": 2}, "qp", [2, 1],
    ),
    "one class": (Labels(), {"label": lambda f: f.ClassLabel(names=["a", "b"])}, {"label": np.int64(1)}, "ab", 1),
}  # fmt: skip


def features_of(made):
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({name: make(tfds.features) for name, make in made.items()})


@pytest.mark.parametrize("case", FEATURES)
def test_features_of_tfds_become_labels(case):
    asked, made, record, names, expected = FEATURES[case]
    found, label_of = label_reader(features_of(made), asked, "set")
    assert found == tuple(names)
    np.testing.assert_array_equal(label_of(record), expected)


@pytest.mark.parametrize(
    ("asked", "made", "expected"),
    [
        (NUMBERS, {"label": lambda f: f.ClassLabel(names=["a", "b"])}, "task 'regression' in label.*ClassLabel"),
        (NUMBERS, {"label": lambda f: f.Text()}, "task 'regression' in label.*Text"),
        (Labels(), {"label": lambda f: f.Scalar(np.float32)}, "task 'classes' in label.*Scalar"),
        (Labels(columns=("x",)), {"label": lambda f: f.Text()}, "no x but label"),
        (Labels(columns=("x",)), {"x": lambda f: f.Sequence(f.ClassLabel(names=["a", "b"]))}, "task 'classes' in x"),
        (
            MULTI._replace(names=("a",)),
            {"labels": lambda f: f.Sequence(f.ClassLabel(names=["b"]))},
            "labels of the run",
        ),
    ],
)
def test_features_that_hold_no_such_labels(asked, made, expected):
    with pytest.raises(UserError, match=expected):
        label_reader(features_of(made), asked, "set")
    with pytest.raises(UserError, match="finite numbers as labels"):
        label_reader(features_of({"label": lambda f: f.Scalar(np.float32)}), NUMBERS, "set")[1]({"label": np.nan})


# Losses and metrics


def scores_and_labels(classes=4, rows=23, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, classes)).astype(np.float32), rng.integers(0, classes, rows), rng


def mean_of(objective, logits, batch, *, train):
    """The loss and metrics of these outputs, as a step divides them, and the gradient of the loss."""
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(0), train)

    def loss(logits):
        mean, found = objective.losses(lambda images, **_: logits, inputs, None, train)
        return mean.reduce().value(), {name: value.reduce().value() for name, value in found.items()}

    (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits))
    return float(value), {name: float(number) for name, number in found.items()}, np.asarray(gradient)


def close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, atol=tolerance * float(np.abs(expected).max()), rtol=0)


def batch_of(labels, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return Batch(pixels, labels, np.ones(len(labels), np.float32))


LOSSES = {
    "softmax": ({"task": "classes"}, lambda out, y: torch.nn.functional.cross_entropy(out, y)),
    "weighted softmax": (
        {"task": "classes", "class_weights": (1.0, 2.0, 0.25, 3.0)},
        lambda out, y: torch.nn.functional.cross_entropy(out, y, weight=torch.tensor([1.0, 2.0, 0.25, 3.0])),
    ),
    "multilabel": (
        {"task": "multilabel"},
        lambda out, y: 4 * torch.nn.functional.multilabel_soft_margin_loss(out, y),
    ),
    "weighted multilabel": (
        {"task": "multilabel", "class_weights": (1.0, 2.0, 0.25, 3.0)},
        lambda out, y: 4 * torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 0.25, 3.0]))(out, y),
    ),
    "smoothed multilabel": (
        {"task": "multilabel", "label_smoothing": 0.2},
        lambda out, y: 4 * torch.nn.functional.binary_cross_entropy_with_logits(out, 0.1 + 0.8 * y),
    ),
    "l2": (
        {"task": "regression", "target_mean": (1.0, -2.0, 0.0, 5.0), "target_std": (2.0, 1.0, 0.5, 3.0)},
        lambda out, y: torch.nn.functional.mse_loss(
            out, (y - torch.tensor([1.0, -2.0, 0.0, 5.0])) / torch.tensor([2.0, 1.0, 0.5, 3.0])
        ),
    ),
    "huber": (
        {"task": "regression", "loss": "huber", "huber_delta": 0.7},
        lambda out, y: torch.nn.functional.huber_loss(out, y, delta=0.7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LOSSES)
def test_losses_are_pytorchs(case, small):
    fields, theirs = LOSSES[case]
    config = small("scratch", label_smoothing=0.0)
    config.update(fields)
    logits, labels, rng = scores_and_labels()
    if config.task != "classes":
        labels = (rng.normal(size=logits.shape) > 0).astype(np.float32)
    if config.task == "regression":
        labels = rng.normal(size=logits.shape, scale=2.0).astype(np.float32)
    batch = batch_of(labels.astype(np.int32) if labels.ndim == 1 else labels)
    value, _, gradient = mean_of(classification.objective(config, 4), logits, batch, train=True)
    out = torch.tensor(logits, requires_grad=True)
    expected = theirs(out, torch.from_numpy(labels))
    expected.backward()
    assert abs(value - expected.item()) <= tolerances.FORWARD * abs(expected.item())
    close(gradient, out.grad.numpy(), tolerances.GRADIENT)


def test_weights_of_classes_are_for_training_alone(small):
    logits, labels, _ = scores_and_labels()
    batch = batch_of(labels.astype(np.int32))
    plain, heavy = (
        classification.objective(small("scratch", label_smoothing=0.0, class_weights=weights), 4)
        for weights in (None, (1.0, 2.0, 0.25, 3.0))
    )
    assert mean_of(plain, logits, batch, train=False)[0] == mean_of(heavy, logits, batch, train=False)[0]
    assert mean_of(plain, logits, batch, train=True)[0] != mean_of(heavy, logits, batch, train=True)[0]


def test_metrics_of_an_objective_are_scikit_learns(small):
    logits, _, rng = scores_and_labels()
    there = (rng.normal(size=logits.shape) > 0.3).astype(np.float32)
    config = small("scratch", task="multilabel", threshold=0.6)
    _, found, _ = mean_of(classification.objective(config, 4), logits, batch_of(there), train=False)
    said = (1 / (1 + np.exp(-logits)) >= 0.6).astype(int)
    np.testing.assert_allclose(
        found["f1"], sklearn_metrics.f1_score(there, said, average="micro"), rtol=tolerances.EXACT
    )
    np.testing.assert_allclose(found["exact"], sklearn_metrics.accuracy_score(there, said), rtol=tolerances.EXACT)

    wanted = rng.normal(size=logits.shape, scale=30).astype(np.float32)
    mean, std = wanted.mean(axis=0), wanted.std(axis=0)
    config = small("scratch", task="regression", target_mean=tuple(map(float, mean)), target_std=tuple(map(float, std)))
    loss, found, _ = mean_of(classification.objective(config, 4), logits, batch_of(wanted), train=False)
    predicted = logits * std + mean
    np.testing.assert_allclose(found["abs_error"], sklearn_metrics.mean_absolute_error(wanted, predicted), rtol=1e-5)
    np.testing.assert_allclose(1 - loss / found["baseline"], sklearn_metrics.r2_score(wanted, predicted), rtol=1e-5)


def test_numbers_of_the_whole_set_are_scikit_learns():
    rng = np.random.default_rng(3)
    scores = rng.uniform(size=(300, 5)).round(1)  # rounded: many are equal
    there = (rng.uniform(size=(300, 5)) < (0.5, 0.05, 0.9, 0.3, 0.2)).astype(np.float32)
    judged = judge_multilabel(scores, there, "abcde", 0.7)
    said = scores >= 0.7
    ap = sklearn_metrics.average_precision_score(there, scores, average=None)
    np.testing.assert_allclose([row["AP"] for row in judged.each.values()], ap, rtol=1e-12)
    np.testing.assert_allclose(judged.whole["mAP"], ap.mean(), rtol=1e-12)
    scored = sklearn_metrics.precision_recall_fscore_support(there, said)
    for key, column in zip(("precision", "recall", "F1", "pictures"), scored, strict=True):
        np.testing.assert_allclose([row[key] for row in judged.each.values()], column, rtol=1e-12)
    np.testing.assert_allclose(judged.whole["f1_macro"], scored[2].mean(), rtol=1e-12)

    labels, answers = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    judged = judge_classes(answers, labels, "abcde")
    np.testing.assert_array_equal(judged.confusion, sklearn_metrics.confusion_matrix(labels, answers))
    expected = sklearn_metrics.balanced_accuracy_score(labels, answers)
    np.testing.assert_allclose(judged.whole["class_accuracy"], expected, rtol=1e-12)

    wanted, predicted = rng.normal(size=(90, 2), scale=(1, 1000)), rng.normal(size=(90, 2), scale=(1, 1000))
    judged = judge_numbers(predicted, wanted, ("x", "y"))
    r2 = sklearn_metrics.r2_score(wanted, predicted, multioutput="raw_values")
    np.testing.assert_allclose([row["R2"] for row in judged.each.values()], r2, rtol=1e-12)
    np.testing.assert_allclose(judged.whole["r2"], sklearn_metrics.r2_score(wanted, predicted), rtol=1e-12)
    rms = sklearn_metrics.root_mean_squared_error(wanted, predicted, multioutput="raw_values")
    np.testing.assert_allclose([row["rms_error"] for row in judged.each.values()], rms, rtol=1e-12)


def test_what_is_undefined_is_left_out_and_nan_is_never_right():
    assert math.isnan(average_precision(np.asarray([0.1, 0.2]), np.asarray([False, False])))
    assert average_precision(np.asarray([np.nan, 0.2]), np.asarray([True, False])) == 0.5
    scores, there = np.asarray([[0.9, 0.8], [0.1, 0.3]]), np.asarray([[1.0, 0.0], [0.0, 0.0]])
    judged = judge_multilabel(scores, there, ("seen", "never"), 0.5)
    assert judged.whole["mAP"] == 1.0
    assert math.isnan(judged.each["never"]["AP"])
    judged = judge_classes(np.asarray([-1, 1, 1]), np.asarray([0, 1, 1]), ("a", "b", "never"))
    assert judged.whole["class_accuracy"] == 0.5
    assert judged.confusion.sum() == 2
    assert math.isnan(judge_numbers(np.ones((3, 1)), np.ones((3, 1)), ("x",)).whole["r2"])


def test_balanced_weights_are_scikit_learns(folders, small):
    from sklearn.utils.class_weight import compute_class_weight

    config = config_for(small, folders, "classes", class_weights="balanced")
    source = open_source(config.dataset, "train", labels=labels_of(config))
    labels = np.asarray([source[index].label for index in range(len(source))])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(settled(config, source)["class_weights"], expected, rtol=1e-5)
    several = config_for(small, folders, "multilabel", class_weights="balanced")
    source = open_source(several.dataset, "train", labels=labels_of(several))
    there = np.stack([source[index].label for index in range(len(source))])
    np.testing.assert_allclose(settled(several, source)["class_weights"], (there == 0).sum(0) / there.sum(0), rtol=1e-5)
    told = config_for(small, folders, "regression")
    source = open_source(told.dataset, "train", labels=labels_of(told))
    values = np.stack([source[index].label for index in range(len(source))])
    np.testing.assert_allclose(settled(told, source)["target_std"], values.std(0), rtol=1e-5)


# Batches, meshes


def test_batches_of_vectors(folders):
    source = open_source(str(folders / "multilabel"), "train", labels=MULTI)
    config = configuration.default_fields()
    config.pp.crop = 8
    views = Preprocess.from_config(config.pp)
    batch = next(train_batches(source, views, batch=8, seed=0, num_threads=1))
    assert batch.label.shape == (8, 3)
    assert batch.label.dtype == np.float32
    check_batch(batch, (8, 8), 3, 3)
    with pytest.raises(UserError, match="4 finite numbers a label, got 3"):
        check_batch(batch, (8, 8), 3, 4)
    whole = list(eval_batches(source, views, batch=32, num_threads=1))
    rows = np.concatenate([part.label[part.weight > 0] for part in whole])
    np.testing.assert_array_equal(rows, [source[index].label for index in range(len(source))])
    assert (whole[-1].label[whole[-1].weight == 0] == 0).all()
    assert spread_batch(source, views).label.shape == (8, 3)


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("regression", "classes")]


@pytest.mark.parametrize("task", ["multilabel", *SLOW])
def test_eight_devices_and_micro_batches_count_as_one(task, folders, small):
    weights = "balanced" if task != "regression" else None
    config = config_for(small, folders, task, class_weights=weights, mixup=0.8, batch=16)
    source = open_source(config.dataset, "train", labels=labels_of(config))
    config = settled(config, source)
    batch = next(train_batches(source, Preprocess.from_config(config.pp), batch=16, seed=0, num_threads=1))
    classes, found = len(source.class_names), {}
    for devices, accum in ((1, 1), (8, 1), (2, 4)):
        config.accum_steps = accum
        mesh = sharding.make_mesh({"data": devices}, jax.devices()[:devices])
        objective = method_of(config).objective(config, classes)
        program = make_program(config, objective, make_schedule(config, 4, 0), classes, mesh)
        state, report = program.step(program.init(np.int32(0)), sharding.put(batch, mesh), np.int32(0))
        judge = make_eval_step(objective, program.graph, program.layout.params, mesh)
        metrics = evaluate(judge, state.params, [batch], mesh)
        found[devices, accum] = {
            **{f"train {name}": float(mean.value()) for name, mean in report.means.items()},
            **metrics, "grad": float(report.grad_norm),
        }  # fmt: skip
    for other in ((8, 1), (2, 4)):
        for name, value in found[1, 1].items():
            np.testing.assert_allclose(found[other][name], value, rtol=tolerances.SUM_ORDER, err_msg=f"{other} {name}")
    assert isinstance(report.means["loss"], Mean)


# From pictures to a prediction, as a user types it


def out_of(capsys, *argv, status=0):
    assert cli.main([str(word) for word in argv]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


@pytest.fixture(scope="module")
def runs(folders, make_small, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for task in ("multilabel", "regression", "classes"):
        config = config_for(
            make_small, folders, task, total_steps=60, progress_every=0, base_lr=3e-3, eval_every=0, checkpoint_every=0
        )
        config.class_weights = None if task == "regression" else "balanced"
        train.run(config, root / task)
    return root


def test_multilabel_is_learned_judged_and_predicted(runs, folders, tmp_path, capsys):
    said = json.loads(out_of(capsys, "eval", runs / "multilabel", "--json", "--out", tmp_path / "out"))
    assert said["mAP"] > 0.95
    assert said["f1"] > 0.9
    assert set(said["per_class"]) == set(COLOURS)
    table = (tmp_path / "out" / "per_class.csv").read_text().splitlines()
    assert table[0] == "name,pictures,AP,precision,recall,F1"
    assert len(table) == 4
    place = folders / "multilabel"
    out_of(capsys, "predict", runs / "multilabel", place, "--csv", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", *COLOURS]
    assert len(rows) == 61
    lines = out_of(capsys, "predict", runs / "multilabel", place, "--json").splitlines()
    for line, row in zip(lines, rows[1:], strict=True):
        found = json.loads(line)
        assert found["picture"] == row[0]
        over = {name for name, value in zip(COLOURS, row[1:], strict=True) if float(value) >= 0.5}
        assert set(found["labels"]) == over
    shown = out_of(capsys, "predict", runs / "multilabel", place)
    assert "none of 3 classes from 50% on" in shown  # a dark picture
    assert re.search(r"\.png  red \d+\.\d%$", shown, re.MULTILINE)


def test_regression_is_learned_judged_and_predicted(runs, folders, tmp_path, capsys):
    said = json.loads(out_of(capsys, "eval", runs / "regression", "--json"))
    assert said["r2"] > 0.8
    assert said["per_number"]["light"]["abs_error"] < 150
    np.testing.assert_allclose(
        said["abs_error"], np.mean([row["abs_error"] for row in said["per_number"].values()]), rtol=1e-5
    )
    whole = json.loads(out_of(capsys, "eval", runs / "regression", "--json", "--split", "train"))
    out_of(capsys, "predict", runs / "regression", folders / "regression", "--csv", tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as file:
        rows = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    source = open_source(str(folders / "regression"), "train", labels=NUMBERS)
    records = [source[index] for index in range(len(source))]
    wanted = [record.label[0] for record in records]
    predicted = [float(rows[record.name.rpartition("/")[2]]["light"]) for record in records]
    r2 = sklearn_metrics.r2_score(wanted, predicted)  # the whole way round: csv -> training -> predict -> csv
    np.testing.assert_allclose(whole["per_number"]["light"]["R2"], r2, rtol=1e-4)
    assert "light 1" in out_of(capsys, "predict", runs / "regression", folders / "regression" / "000.png")


def test_classes_from_a_table_and_their_confusion(runs, folders, tmp_path, capsys):
    said = json.loads(out_of(capsys, "eval", runs / "classes", "--json", "--split", "train", "--out", tmp_path / "out"))
    assert said["class_accuracy"] > 0.9
    each = said["per_class"]
    right = sum(row["pictures"] * row["accuracy"] for row in each.values())
    np.testing.assert_allclose(right / said["examples"], said["accuracy"], rtol=1e-6)
    with (tmp_path / "out" / "confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["dark", "green", "red"]
    assert [sum(map(int, row[1:])) for row in rows[1:]] == [row["pictures"] for row in each.values()]
    with Image.open(tmp_path / "out" / "confusion.png") as drawn:
        assert drawn.size[0] > 200
    text = out_of(capsys, "eval", runs / "classes")
    assert "class_accuracy" in text
    assert "\n  dark " in text
    out_of(capsys, "predict", runs / "classes", folders / "classes", "--csv", tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().startswith("file,label,probability\n")


def test_another_table_is_judged_by_the_runs_own_names(runs, tmp_path, capsys):
    rows = paint(tmp_path / "in" / "test", 8, seed=5)
    some = [row for row in rows if row[1] or row[2] or not row[3]]
    (tmp_path / "in" / "test" / "labels.csv").write_text(words([(name, r, g, 0) for name, r, g, _ in some]))  # no blue
    said = json.loads(out_of(capsys, "eval", runs / "multilabel", "--json", "--dataset", tmp_path / "in"))
    assert said["per_class"]["blue"]["AP"] is None
    (tmp_path / "in" / "test" / "labels.csv").write_text("file,label\n000.png,mauve\n")
    assert "'mauve'" in out_of(capsys, "eval", runs / "multilabel", "--dataset", tmp_path / "in", status=2)


def test_a_run_goes_on_with_what_was_worked_out(runs, folders, make_small, tmp_path):
    before = make_small("scratch", dataset=str(folders / "regression"), task="regression", label_smoothing=0.0)
    train.run(before, tmp_path / "run")
    assert train.run(before, tmp_path / "run").step == 6
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(stored["target_mean"]) == len(stored["target_std"]) == 2


def test_bad_predictions_write_no_table(runs, folders, tmp_path, capsys):
    place = folders / "classes"
    assert "--csv" in out_of(capsys, "predict", runs / "classes", place, "--csv", tmp_path / "no" / "p.csv", status=2)
    (tmp_path / "text.png").write_text("hello")
    out_of(capsys, "predict", runs / "classes", tmp_path / "text.png", "--csv", tmp_path / "p.csv", status=2)
    assert not list(tmp_path.glob("p.csv*"))


def test_an_older_run_without_a_task_is_read():
    stored = {"objective": "classify", "loss": "softmax"}
    assert configuration.completed(stored)["loss"] is None
    assert configuration.completed(stored)["task"] == "classes"
    assert configuration.completed(stored | {"loss": "sigmoid"})["loss"] == "sigmoid"


def test_the_confusion_figure_shows_every_count():
    matrix = np.asarray([[3, 1], [0, 1234]])
    axis = confusion.draw(matrix, ("ant", "a $dollar$ name"))
    axis = axis.axes[0]
    assert {text.get_text() for text in axis.texts} == {"3", "1", "1,234"}
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ant", "a $dollar$ name"]
    many = confusion.draw(np.eye(100, dtype=np.int64), [str(number) for number in range(100)])
    assert not many.axes[0].texts
