"""The best checkpoint is kept, and a run without hope ends early: both the same after any interruption."""

import json

import numpy as np
import pytest

import vit_jax
from vit_jax import UserError, train
from vit_jax.run import Run
from vit_jax.training.best import Best, best_of
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.tracker import read_metrics


def rows(*values, metric="accuracy"):
    return [{"kind": "eval", "step": 10 * number, metric: value} for number, value in enumerate(values, 1)]


def test_the_best_of_what_was_recorded():
    assert best_of(rows(0.2, 0.5, 0.4, 0.5), "accuracy", 100) == Best(20, 0.5, 2)  # the first of equals
    assert best_of(rows(2.0, 1.0, 1.5, metric="loss"), "loss", 100) == Best(20, 1.0, 1)
    assert best_of(rows(0.2, 0.5, 0.4), "accuracy", 10) == Best(10, 0.2, 0)  # what came after is not there yet
    assert best_of(rows(None, float("nan"), 0.1, None), "accuracy", 100) == Best(30, 0.1, 1)
    assert best_of(rows(None, None), "accuracy", 100).since == 2
    assert best_of([{"kind": "train", "step": 5, "accuracy": 1.0}], "accuracy", 100) == Best()


def scripted(monkeypatch, values):
    """Evaluations that say what the script does, by step."""
    monkeypatch.setattr(
        "vit_jax.run.evaluate",
        lambda step, params, batches, mesh, stop: {"accuracy": values.pop(0), "loss": 1.0, "examples": 1.0},
    )


def config_of(small, **changes):
    fields = {"total_steps": 6, "warmup_steps": 1, "eval_every": 1, "checkpoint_every": 2, "keep_best": "accuracy"}
    return small(**fields | changes)


def test_the_best_checkpoint_is_a_workdir_of_its_own(small, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.1, 0.2, 0.9, 0.3, 0.4, 0.5])
    train.run(config_of(small), tmp_path / "run")
    assert "best accuracy 0.9 at step 3" in capsys.readouterr().out
    best, last = vit_jax.load(tmp_path / "run" / "best"), vit_jax.load(tmp_path / "run")
    assert (best.step, last.step) == (3, 6)
    scripted(monkeypatch, [0.0])
    three = train.run(small(total_steps=6, warmup_steps=1, checkpoint_every=3, keep_checkpoints=5), tmp_path / "plain")
    assert three.step == 6
    kept = Checkpoints(tmp_path / "run" / "best", read_only=True).params(3)
    for path, value in Checkpoints(tmp_path / "plain", read_only=True).params(3).items():
        np.testing.assert_array_equal(kept[path], value)


def test_patience_ends_a_run_and_a_second_start_takes_no_step(small, tmp_path, monkeypatch, capsys):
    scripted(monkeypatch, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    config = config_of(small, patience=2)
    assert train.run(config, tmp_path).step == 3
    assert "ended early, 2 evaluations without a better one" in capsys.readouterr().out
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train.run(config, tmp_path).step == 3
    assert (tmp_path / "metrics.jsonl").read_text() == before
    config.patience = 4
    assert train.run(config, tmp_path).step == 5  # more patience: it goes on


def test_a_run_that_was_cut_off_has_the_same_best(small, tmp_path, monkeypatch):
    values = [0.1, 0.6, 0.2, 0.3, 0.6, 0.4]
    scripted(monkeypatch, values[:4])  # the fifth evaluation fails, after a best one that came after a checkpoint
    with pytest.raises(IndexError):
        train.run(config_of(small, checkpoint_every=3), tmp_path)
    scripted(monkeypatch, values[3:])
    train.run(config_of(small, checkpoint_every=3), tmp_path)
    assert vit_jax.load(tmp_path / "best").step == 2
    found = {row["step"]: row["accuracy"] for row in read_metrics(tmp_path) if row["kind"] == "eval"}
    assert found == dict(enumerate(values, 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patience": 2}, "Expected a metric to be patient about"),
        ({"patience": 2, "keep_best": "accuracy", "eval_every": 0}, "Expected a metric to be patient about"),
        ({"keep_best": "acuracy", "eval_every": 1}, "Expected keep_best to be one of accuracy, loss, top5"),
    ],
)
def test_what_cannot_be_kept_is_a_sentence(small, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train.run(small(**changes), tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()


def test_the_setting_may_change_from_start_to_start(small, tmp_path):
    train.run(small(total_steps=4, warmup_steps=1), tmp_path)
    train.run(small(total_steps=4, warmup_steps=1, keep_best="loss"), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["keep_best"] == "loss"


def went_on(small, folder, monkeypatch, before, after):
    """What the second of two starts ends with: (best step that `best/` holds, its recorded words)."""
    for values, fields in (before, after):
        scripted(monkeypatch, list(values))
        train.run(config_of(small, decay_type="constant", **fields), folder)
    return Checkpoints(folder / "best", read_only=True).steps()


@pytest.mark.slow
def test_what_was_never_kept_is_not_called_kept(small, tmp_path, monkeypatch, capsys):
    """`keep_best` is set when the run goes on: the best evaluation until then has no checkpoint."""
    first = [0.9, 0.1, 0.1, 0.1, 0.1, 0.1], {"keep_best": None}
    assert went_on(small, tmp_path / "a", monkeypatch, first, ([0.4, 0.3], {"total_steps": 8})) == [7]
    said = capsys.readouterr().out
    assert "the best accuracy so far, 0.9 at step 1, was not kept" in said
    assert "best accuracy 0.4 at step 7, kept in" in said
    first = [0.1, 0.1, 0.1, 0.1, 0.1, 0.9], {"keep_best": None}
    assert went_on(small, tmp_path / "b", monkeypatch, first, ([0.4, 0.3], {"total_steps": 8})) == [6]
    assert "best accuracy 0.9 at step 6, kept in" in capsys.readouterr().out


def test_another_metric_looks_for_its_own_best(small, tmp_path, monkeypatch, capsys):
    first = [0.9, 0.1, 0.1, 0.1, 0.1, 0.1], {"keep_best": "loss"}  # every loss is 1: step 1 is the best of that
    assert went_on(small, tmp_path, monkeypatch, first, ([0.4, 0.3], {"total_steps": 8})) == [7]
    assert "best accuracy 0.4 at step 7, kept in" in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_run_that_went_back_left_is_replaced(small, tmp_path, monkeypatch):
    """The best checkpoint is newer than the last one, and the rate was lowered: its step is another one now."""
    scripted(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.95])
    config = config_of(small, decay_type="constant", checkpoint_every=3)
    monkeypatch.setattr("vit_jax.run.Run.save", lambda run: saved(run) if run.step == 3 else None)
    with pytest.raises(IndexError):
        train.run(config, tmp_path)
    monkeypatch.undo()
    old = Checkpoints(tmp_path / "best", read_only=True).params(5)
    scripted(monkeypatch, [0.1, 0.5, 0.1])
    config.base_lr /= 2
    train.run(config, tmp_path)
    best = Checkpoints(tmp_path / "best", read_only=True)
    assert best.steps() == [5]
    new = best.params(5)
    assert any((old[path] != new[path]).any() for path in old)


saved = Run.save
