"""`vit-jax ...` as a user types it, in this process."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import train
from vit_jax.commands import cli, embed
from vit_jax.run_figures import draw_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, request):
    from vit_jax import configuration

    root = tmp_path_factory.mktemp("runs")
    for stage in ("pretrain", "scratch"):
        config = configuration.load(f"digits.py:{stage}")
        config.model.hidden_size = 16
        config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
        config.update({"total_steps": 3, "warmup_steps": 1, "batch": 16, "progress_every": 1})
        train.run(config, root / stage, draw=draw_run)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / "colour.jpg")
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)).save(root / "sixteen.png")
    return root


def out_of(capsys, *argv, status=0):
    assert cli.main([str(word) for word in argv]) == status
    captured = capsys.readouterr()
    return captured.out if status == 0 else captured.err


def test_help_names_every_command(capsys):
    text = out_of(capsys, "--help")
    assert all(name in text for name in cli.COMMANDS)
    assert "0.1" in out_of(capsys, "--version")
    assert "got 'trian'" in out_of(capsys, "trian", status=2)
    for name in cli.COMMANDS:
        if name == "train":
            assert "--workdir" in out_of(capsys, "train", "--help")
            continue
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert name in capsys.readouterr().out


def test_predict(runs, pictures, capsys):
    given = [pictures / "colour.jpg", pictures / "sixteen.png"]
    lines = out_of(capsys, "predict", runs / "scratch", *given, "--json", "--top", 10)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["picture"] for row in rows] == [str(pictures / "colour.jpg"), str(pictures / "sixteen.png")]
    assert set(rows[0]["probabilities"]) == set("0123456789")
    np.testing.assert_allclose(sum(rows[0]["probabilities"].values()), 1.0, rtol=1e-5)
    assert "%" in out_of(capsys, "predict", runs / "scratch", pictures / "colour.jpg")
    assert "reconstruct" in out_of(capsys, "predict", runs / "pretrain", pictures / "colour.jpg", status=2)
    assert "cannot be read" in out_of(capsys, "predict", runs / "scratch", pictures / "no.jpg", status=2)


def test_predict_on_something_that_is_no_picture(runs, pictures, capsys):
    (pictures / "text.jpg").write_text("hello")
    assert "text.jpg" in out_of(capsys, "predict", runs / "scratch", pictures / "text.jpg", status=2)
    (pictures / "text.jpg").unlink()


def test_reconstruct(runs, pictures, tmp_path, capsys):
    out = tmp_path / "x.png"
    said = out_of(capsys, "reconstruct", runs / "pretrain", pictures / "colour.jpg", "--out", out, "--mask", "grid")
    assert "dimmed in the prediction" in said
    with Image.open(out) as drawn:
        assert drawn.size[0] > 500
    assert "predict" in out_of(capsys, "reconstruct", runs / "scratch", pictures / "colour.jpg", status=2)
    wrong = out_of(capsys, "reconstruct", runs / "pretrain", pictures / "colour.jpg", "--num-visible", 99, status=2)
    assert "--num-visible" in wrong


def test_embed(runs, pictures, tmp_path, capsys):
    out_of(capsys, "embed", runs / "pretrain", pictures, "--out", tmp_path / "f.npz")
    found = np.load(tmp_path / "f.npz")
    assert found["feature"].shape == (2, 16)
    out_of(capsys, "embed", runs / "pretrain", pictures, "--out", tmp_path / "f.parquet")
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "f.parquet")
    np.testing.assert_allclose(np.stack(table["feature"].to_numpy()), found["feature"])
    assert "parquet" in out_of(capsys, "embed", runs / "pretrain", pictures, "--out", tmp_path / "f.csv", status=2)


def test_eval_is_what_training_said(runs, capsys):
    from vit_jax.training.tracker import read_metrics

    for stage in ("scratch", "pretrain"):
        said = json.loads(out_of(capsys, "eval", runs / stage, "--json"))
        trained = [row for row in read_metrics(runs / stage) if row["kind"] == "eval"][-1]
        np.testing.assert_allclose(said["loss"], trained["loss"], rtol=1e-5)
        assert said["examples"] == 360
    # another batch size, another padding: the same numbers
    other = json.loads(out_of(capsys, "eval", runs / "scratch", "--json", "--batch", 7))
    whole = json.loads(out_of(capsys, "eval", runs / "scratch", "--json"))
    np.testing.assert_allclose(other["loss"], whole["loss"], rtol=1e-5)


def test_inspect_and_doctor(runs, capsys):
    found = json.loads(out_of(capsys, "inspect", runs / "scratch", "--json"))
    assert found["step"] == found["next_batch"] == 3
    assert len(found["sha256"]) == 64
    assert "model.hidden_size = 16" in out_of(capsys, "inspect", runs / "scratch", "--parameters")
    assert "has none" in out_of(capsys, "inspect", runs, status=2)
    assert "jax" in out_of(capsys, "doctor")


def test_bench(capsys):
    settings = ["--set", "batch=8", "batch_eval=8", "model.hidden_size=16", "model.transformer.num_heads=2"]
    found = json.loads(out_of(capsys, "bench", "--config=digits.py:scratch", "--steps", 2, "--json", *settings))
    assert found["images a second"] > 0
    assert found["GFLOP a step"] > 0
    assert "fake" in out_of(capsys, "bench", "--config=digits.py:scratch", "--data", "--steps", 2, "--set", "dataset=fake",
                            "pp.channels=3", "pp.train=train")  # fmt: skip
    assert "bach" in out_of(capsys, "bench", "--config=digits.py", "--set", "bach=3", status=2)


def test_prepare(pictures, tmp_path, capsys):
    said = out_of(capsys, "prepare", pictures, tmp_path / "out")
    assert "folder.py:pretrain" in said
    assert "holds something" in out_of(capsys, "prepare", pictures, tmp_path / "out", status=2)


@pytest.mark.skipif(
    not Path("/sys/kernel").is_dir() or os.access("/sys/kernel/none", os.W_OK), reason="needs Linux's /sys"
)
def test_places_that_cannot_be_written(runs, pictures, capsys):
    for argv in (
        ["embed", runs / "scratch", pictures, "--out", "/sys/features.npz"],
        ["convert", runs / "scratch", "/sys/out", "--to", "hf"],
        ["convert", runs / "scratch", "/sys/out.npz", "--to", "google"],
    ):
        said = out_of(capsys, *argv, status=2)
        assert said.startswith("error: Expected to write /sys/")
        assert len(said.splitlines()) == 1


def test_features_that_are_not_finite_are_refused(runs, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embed, "pooled_features", lambda encoder, images, pool: np.full((len(images), 4), np.nan))
    said = out_of(capsys, "embed", runs / "scratch", pictures, "--out", tmp_path / "out.npz", status=2)
    assert "2 of 2 pictures gave others" in said
    assert not any(tmp_path.iterdir())


def test_probing_with_one_training_picture(runs, pictures, capsys):
    said = out_of(capsys, "probe", runs / "scratch", "--dataset", "digits", "--train", "train[:1]", status=2)
    assert said == "error: Expected 2 or more pictures in train[:1] of digits, it has 1.\n"


@pytest.mark.parametrize("command", sorted({*cli.COMMANDS} - {"train"}))
def test_help_says_what_every_word_is(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    words = re.compile(r"  (?P<words>(-h, )?(--)?\S+( \S+)*)(  +(?P<help>.*))?")
    listed = [(match, after) for line, after in zip(lines, [*lines[1:], ""], strict=True)
              if (match := words.fullmatch(line)) and not line.startswith("   ")]  # fmt: skip
    assert listed
    assert not [match["words"] for match, after in listed if not match["help"] and not after.startswith("   ")]


def test_help_of_training_says_how_to_go_on_and_where_fields_are(capsys):
    assert cli.main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for words in ("The same command continues", "vit-jax config digits.py:scratch --changed", "--config.init_from="):
        assert words in said
    assert max(map(len, said.splitlines())) < 126
