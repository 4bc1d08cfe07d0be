"""Another length for a run that has begun: exact where the schedule allows it, one sentence where it does not."""

import contextlib
import dataclasses
import re

import jax.numpy as jnp
import pytest
from PIL import Image

from vit_jax import UserError, configuration, train
from vit_jax.commands.inspect import digest
from vit_jax.methods import classification
from vit_jax.training import continuing
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.tracker import read_metrics

CONSTANT = {"decay_type": "constant"}
STEPS = {"decay_type": "step", "warmup_steps": 0}  # boundaries are shares of the length
DATA = continuing.Data(4.0, 10)


def ended(workdir):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.latest()
        return step, [digest(checkpoints.params(step, averaged=averaged)) for averaged in (False, True)]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (CONSTANT | {"total_steps": 3}, CONSTANT | {"total_steps": 6}),
        pytest.param(
            CONSTANT | {"total_steps": None, "total_epochs": 3 / 16}, CONSTANT | {"total_steps": 6}, marks=pytest.mark.slow
        ),
        pytest.param(
            STEPS | {"total_steps": 4, "decay_boundaries": (0.5,)},
            STEPS | {"total_steps": 8, "decay_boundaries": (0.25, 0.75)}, marks=pytest.mark.slow,
        ),
    ],
    ids=["constant", "epochs", "steps"],
)  # fmt: skip
def test_a_longer_run_is_the_run_that_was_so_long_from_the_start(small, tmp_path, capsys, first, then):
    more = {"ema": 0.9, "mixup": 0.8}
    train.run(small("scratch", **first, **more), tmp_path / "parts")
    said = capsys.readouterr().out
    assert "finished" not in said
    train.run(small("scratch", **then, **more), tmp_path / "parts")
    assert re.search(rf"continuing at step \d; .*total_steps \S+ -> {then['total_steps']}", capsys.readouterr().out)
    train.run(small("scratch", **then, **more), tmp_path / "whole")
    assert ended(tmp_path / "parts") == ended(tmp_path / "whole")
    assert ended(tmp_path / "parts")[0] == then["total_steps"]
    rates = [
        {row["step"]: row["lr"] for row in read_metrics(tmp_path / place) if row["kind"] == "train"}
        for place in ("parts", "whole")
    ]
    assert {step: rates[0][step] for step in rates[1]} == rates[1]


def test_a_cosine_has_its_length_from_the_start(small, tmp_path, capsys):
    train.run(small("scratch"), tmp_path)
    before = ended(tmp_path), (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"total_steps 12 \(there 6\), the learning rate of step 3 was .*init_from"):
        train.run(small("scratch", total_steps=12), tmp_path)
    with pytest.raises(UserError, match=r"at least the 6 steps that .* has taken, got 4"):
        train.run(small("scratch", total_steps=4), tmp_path)
    assert (ended(tmp_path), (tmp_path / "config.json").read_text()) == before
    capsys.readouterr()
    train.run(small("scratch"), tmp_path)
    assert "this run is finished; its schedule ends here" in capsys.readouterr().out
    # Until the decay begins nothing of its length has been seen.
    longer = small("scratch", total_steps=12, warmup_steps=2)
    stored = configuration.completed(configuration.plain(small("scratch")))
    continuing.check(longer, stored, 3, DATA, ["total_steps"], "run")


def test_what_a_schedule_says(small):
    def found(first, then, done=6, objective="scratch"):
        return continuing.difference(small(objective, **then), small(objective, **first), done, DATA)

    assert found({}, {}) is None
    assert found({}, {"total_steps": 12}).step == 3  # 2 is the first after the warm-up, at the peak whatever the length
    assert found({}, {"total_steps": 12}, done=3) is None
    assert found({}, {"end_lr": 1e-4}).name == "learning rate"
    assert found(CONSTANT, CONSTANT | {"total_steps": 1000}) is None
    share = {"warmup_share": 0.5, "warmup_steps": None}
    assert found(CONSTANT | share, CONSTANT | share | {"total_steps": 12}).step == 1
    # SimMIM's layer decay leaves a part of the rate alone, which has a schedule of its own
    simmim = {"schedule": "simmim", "layer_decay": 0.5, "warmup_steps": 0, "end_lr": 0.1, "base_lr": 0.1}
    assert found(simmim, simmim | {"total_steps": 12}).name == "shared part of the learning rate"


def test_a_warm_up_that_is_a_share_can_be_kept(small):
    stored = small("scratch", **CONSTANT, warmup_share=0.5, warmup_steps=None)
    longer = small("scratch", **CONSTANT, warmup_share=0.5, warmup_steps=None, total_steps=12)
    with pytest.raises(UserError, match=r"keep its warm-up with --config\.warmup_steps=3"):
        continuing.check(longer, stored, 6, DATA, ["total_steps"], "run")
    longer.warmup_steps = 3
    continuing.check(longer, stored, 6, DATA, ["total_steps", "warmup_steps"], "run")
    assert not continuing.grows(stored, DATA)
    assert continuing.grows(longer, DATA)
    # A rate that was lowered by hand is another matter, and says so itself.
    longer.base_lr = 1e-5
    continuing.check(longer, stored, 6, DATA, ["total_steps", "warmup_steps"], "run")


def test_an_objective_that_hangs_on_the_length_keeps_it(small, monkeypatch):
    objective = classification.METHOD.objective

    def by_length(config, num_classes):
        return objective(config, num_classes)._replace(
            schedules=lambda step: {"temperature": step / jnp.float32(config["total_steps"])}
        )

    method = dataclasses.replace(classification.METHOD, objective=by_length)
    monkeypatch.setattr(classification, "METHOD", method)
    stored, longer = small("scratch", **CONSTANT), small("scratch", **CONSTANT, total_steps=12)
    with pytest.raises(UserError, match=r"the temperature of step 1 was 0\.166667 and would have been 0\.0833333"):
        continuing.check(longer, stored, 6, DATA, ["total_steps"], "run")


def test_what_else_follows_from_the_length_is_refused(small):
    stored = configuration.plain(small("scratch", mixup=0.0))
    with pytest.raises(UserError, match=r"mixup \(there 0\.0, now 0\.2\).*may follow from total_steps"):
        configuration.changes(small("scratch", total_steps=12, mixup=0.2), stored, "run")


def test_other_pictures_or_classes_are_refused(tmp_path, small):
    """One picture more splits a folder anew: what was trained on would be tested on, and a cosine would be longer."""
    for kind in ("ant", "bee"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / "pictures" / kind / f"{number}.png")
    config = small("scratch", dataset=str(tmp_path / "pictures"), total_steps=1, warmup_steps=0)
    train.run(config, tmp_path / "run")
    (tmp_path / "pictures" / "bee").rename(tmp_path / "pictures" / "cow")
    with pytest.raises(UserError, match=r"classes differ: number 1 is 'cow' \(there 'bee'\).*init_from"):
        train.run(config, tmp_path / "run")
    (tmp_path / "pictures" / "cow").rename(tmp_path / "pictures" / "bee")
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "bee" / "more.png")
    with pytest.raises(UserError, match=r"training pictures differ: 23 \(there 22\)"):
        train.run(config, tmp_path / "run")
    (tmp_path / "pictures" / "bee" / "more.png").unlink()
    assert train.run(config, tmp_path / "run").step == 1


def test_earlier_versions_did_not_count_pictures():
    ours = {"class_names": None, "training_pictures": 3, "test_pictures": 1}
    continuing.check_data(ours, {"class_names": None, "dataset": "x"}, "run")
    continuing.check_data(ours, ours, "run")
