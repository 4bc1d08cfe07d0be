"""Runs from Python: the same as the command's, continued by the same call, as long as asked for."""

import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax import UserError, configuration, fitting, pace
from vit_jax.ops.paths import flat_params
from vit_jax.training.tracker import read_metrics

TINY = {
    "dataset": "fake", "pp.crop": 8, "pp.channels": 3, "pp.train": "train", "batch": 16, "batch_eval": 32,
    "total_steps": 4, "warmup_steps": 1, "model.hidden_size": 16, "model.transformer.num_layers": 2,
    "model.transformer.num_heads": 2, "model.transformer.mlp_dim": 32, "unroll": 1, "progress_every": 2,
}  # fmt: skip


def test_a_call_is_the_command(tmp_path):
    from vit_jax import main

    trained = vit_jax.fit("digits.py:scratch", tmp_path / "call", TINY)
    words = [f"--config.{field}={value}" for field, value in TINY.items()]
    main.main(["vit-jax train", f"--workdir={tmp_path / 'command'}", "--config=digits.py:scratch", *words])
    ours, theirs = (flat_params(model) for model in (trained.model, vit_jax.load(tmp_path / "command").model))
    assert trained.step == 4
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path])
    assert (tmp_path / "call" / "figures" / "curves.png").exists()


def test_the_same_call_again_opens_the_finished_run(tmp_path, capsys):
    first = vit_jax.fit("digits.py:scratch", tmp_path, TINY)
    again = vit_jax.fit("digits.py:scratch", tmp_path, TINY)
    assert again.step == first.step
    assert "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="to hold a run of this configuration"):
        vit_jax.fit("digits.py:scratch", tmp_path, TINY | {"batch": 32})


def test_a_configuration_is_taken_and_left_as_it_was(tmp_path):
    config = configuration.load("digits.py:scratch")
    before = config.to_json()
    trained = vit_jax.fit(config, tmp_path, TINY)
    assert trained.config["batch"] == 16
    assert config.to_json() == before


@pytest.mark.parametrize(
    ("config", "fields", "sentence"),
    [
        ("digits.py:scratch", {"bach": 3}, "did you mean 'batch'"),
        ("digits.py:scratch", {"batch": -3}, "Expected config.batch to be a whole number"),
        ("digts.py", {}, "did you mean digits.py"),
        ({"batch": 3}, {}, "Expected FILE:ARG or a ConfigDict"),
    ],
)
def test_mistakes_are_the_commands_sentences(tmp_path, config, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        vit_jax.fit(config, tmp_path / "new", fields)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, red in (("ant", 40), ("cat", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 50, (12, 12, 3), dtype=np.uint8)
            pixels[..., 0] += red
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


SMALL = {
    "pp.crop": 8, "batch": 16, "batch_eval": 8, "model.hidden_size": 16, "model.transformer.num_layers": 1,
    "model.transformer.num_heads": 2, "model.transformer.mlp_dim": 32, "unroll": 1, "model.resnet.num_layers": None,
    "model.patches.size": (4, 4),
}  # fmt: skip


def test_a_folder_becomes_a_classifier_in_the_time_that_it_is_given(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def steps_in(minutes, config, typed):
        asked.append(minutes)
        return 6

    monkeypatch.setattr(pace, "steps_in", steps_in)
    trained = vit_jax.finetune(folder, minutes=0.05, fields=SMALL)
    assert trained.class_names == ("ant", "cat")
    assert trained.step == 6
    assert (tmp_path / "runs" / "pictures" / "config.json").exists()
    again = vit_jax.finetune(folder, minutes=0.05, fields=SMALL)  # continues: its length is what it was
    assert (again.step, asked) == (6, [0.05])
    tuned = vit_jax.finetune(folder, init_from="runs/pictures", workdir="runs/tuned", fields=SMALL | {"total_steps": 2})
    assert tuned.config["layer_decay"] == 0.75


def test_steps_are_counted_by_the_machines_own_speed(folder, monkeypatch):
    given = fitting._given(f"folder.py:quick,{folder}", SMALL)
    rates = iter([1.0, 160.0])
    monkeypatch.setattr(pace, "run", lambda config, *rest: None)
    monkeypatch.setattr(pace, "read_metrics", lambda place: [{"kind": "train", "img/s": next(rates)} for _ in range(2)])
    assert pace.steps_in(2.0, given.config, given.typed) == 1020  # 160 pictures a second are 10 steps; 85% of 120 s


@pytest.mark.slow
def test_steps_are_timed_for_real(folder):
    given = fitting._given(f"folder.py:quick,{folder}", SMALL)
    few, many = (pace.steps_in(minutes, given.config, given.typed) for minutes in (0.5, 5.0))
    assert pace.TIMED < few < many
    assert 4 < many / few < 25


@pytest.mark.parametrize("wrong", [{"minutes": 0}, {"minutes": -1}, {"minutes": 1, "fields": {"total_steps": 3}}])
def test_lengths_that_mean_nothing(folder, tmp_path, wrong):
    with pytest.raises(UserError):
        vit_jax.finetune(folder, workdir=tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_the_config_command_says_what_a_recipe_sets(capsys):
    from vit_jax.commands import cli

    assert cli.main(["config", "digits.py:scratch", "--config.batch=48", "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (batch,) = [line for line in lines if line.startswith("batch = ")]
    assert batch.startswith("batch = 48 (default 512)    pictures a step")
    assert not any(line.startswith("seed = ") for line in lines)
    assert cli.main(["config", "digits.py:scratch"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(configuration.fields())


def test_metrics_of_a_call_are_in_its_workdir(tmp_path):
    vit_jax.fit("digits.py:scratch", tmp_path, TINY)
    assert [row["step"] for row in read_metrics(tmp_path) if row["kind"] == "train"] == [2, 4]
