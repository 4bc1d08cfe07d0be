"""Whole runs of methods with a mask token: in two parts or killed, bit for bit; with the same tokenizer or not at all."""

import json
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.networks import TOKENIZER, for_tiny_networks, networks_for
from tests.test_damage import flip_some
from tests.test_train import SETTINGS, final_digest, finish, start
from vit_jax import UserError, frozen, sharding, train
from vit_jax.commands import cli
from vit_jax.methods.beit import METHOD
from vit_jax.run_figures import draw_run
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import SEED, abstract_batch, make_program
from vit_jax.training.tracker import read_metrics
from vit_jax.weights import open_weights


@pytest.fixture(scope="module")
def tokenizers(make_small, tmp_path_factory):
    """Two trained for a step, from two seeds."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed in (0, 1):
        config = make_small("pretrain,tokenizer", total_steps=1, warmup_steps=0, seed=seed)
        config.tokenizer.update(TOKENIZER)
        train.run(config, folder / f"seed{seed}")
    return folder


@pytest.fixture
def made(small, tokenizers):
    """(method, changes) -> the smallest configuration, with relative positions and layer scale as published."""

    def make(method="beit", tokenizer=tokenizers / "seed0", **changes):
        config = for_tiny_networks(small(f"pretrain,{method}", **changes))
        config.model.update({"positions": "none", "relative_positions": "shared", "key_bias": False})
        config.model.transformer.update({"layer_scale": 0.1, "drop_path": 0.1, "dropout_rate": 0.1})
        if method == "beit":
            config.beit.tokenizer = str(tokenizer)
        return config

    return make


def all_bytes(workdir):
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


EVERY_AXIS = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        ("simmim", {"data": -1}),
        ("beit", EVERY_AXIS),
        pytest.param("simmim", EVERY_AXIS, marks=pytest.mark.slow),
        pytest.param("beit", {"data": -1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_in_two_parts_is_the_run_in_one(made, tmp_path, method, mesh):
    config = made(method, ema=0.99)
    config.mesh.update(mesh)
    whole = train.run(config, tmp_path / "whole", draw=draw_run)
    assert np.isfinite(whole.metrics["loss"])
    assert whole.metrics["examples"] == 64
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    again = train.run(config, tmp_path / "parts")
    assert again.metrics == whole.metrics
    assert final_digest(tmp_path / "parts") == final_digest(tmp_path / "whole")
    assert (tmp_path / "whole" / "figures" / "reconstructions.png").exists()
    assert not any("tokenizer" in path for path in Checkpoints(tmp_path / "whole", read_only=True).params(6))


@pytest.mark.slow
def test_killed_and_continued_is_bit_equal(tokenizers, tmp_path):
    beit = [
        "--config=digits.py:pretrain,beit", "--config.beit.vocab_size=16", f"--config.beit.tokenizer={tokenizers}/seed0",
        "--config.model.transformer.drop_path=0.1", "--config.pp.second_share=1.0",
    ]  # fmt: skip
    settings = [*beit, *(word for word in SETTINGS if not word.startswith(("--config=", "--config.mixup")))]
    finish(start(tmp_path / "whole", settings=settings))
    process = start(tmp_path / "killed", "--config.progress_every=1", settings=settings)
    while process.poll() is None and max((row["step"] for row in read_metrics(tmp_path / "killed")), default=0) < 15:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < Checkpoints(tmp_path / "killed", read_only=True).latest() < 60
    assert "continuing at step" in finish(start(tmp_path / "killed", settings=settings))
    assert final_digest(tmp_path / "killed") == final_digest(tmp_path / "whole")


@pytest.fixture(scope="module")
def run_to_six(make_small, tokenizers, tmp_path_factory):
    """(workdir of a finished run, its tokenizer): for copies."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tokenizers / "seed0", folder / "tokenizer")
    config = for_tiny_networks(make_small("pretrain,beit"))
    config.beit.tokenizer = str(folder / "tokenizer")
    train.run(config, folder / "run")
    return folder


@pytest.fixture
def finished(run_to_six, tmp_path):
    """(config, workdir, tokenizer), copies that may be broken. The run remembers the first place of its tokenizer."""
    shutil.copytree(run_to_six / "run", tmp_path / "run")
    return tmp_path / "run", run_to_six / "tokenizer"


def stored(workdir):
    """What the last checkpoint says of the tokenizer."""
    checkpoints = Checkpoints(workdir, read_only=True)
    return checkpoints.read(checkpoints.latest())[0]["beit"]


def test_the_checkpoint_knows_its_tokenizer(finished):
    workdir, tokenizer = finished
    weights, _ = open_weights(tokenizer)
    assert stored(workdir)["tokenizer"] == str(tokenizer)
    assert stored(workdir)["tokenizer_sha256"] == frozen.sha256(weights.params)


def test_another_tokenizer_is_refused_and_nothing_is_written(small, tokenizers, finished):
    workdir, _ = finished
    config = for_tiny_networks(small("pretrain,beit"))
    config.beit.tokenizer = str(tokenizers / "seed1")
    before = all_bytes(workdir)
    with pytest.raises(UserError, match=r"differs in beit\.tokenizer_sha256"):
        train.run(config, workdir)
    assert all_bytes(workdir) == before


def test_the_same_tokenizer_may_move(small, finished, tmp_path):
    workdir, tokenizer = finished
    whole = final_digest(workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    shutil.copytree(tokenizer, tmp_path / "moved")
    config = for_tiny_networks(small("pretrain,beit"))
    config.beit.tokenizer = str(tmp_path / "moved")
    train.run(config, workdir)
    assert final_digest(workdir) == whole
    told = json.loads((workdir / "config.json").read_text())["beit"]
    assert told["tokenizer"] == stored(workdir)["tokenizer"] == str(tmp_path / "moved")


def wrong(how, run):
    """A finished run whose tokenizer was changed meanwhile; what is said of it."""
    place = run / "tokenizer"
    if how == "another":
        shutil.rmtree(place)
        shutil.copytree(run / "other", place)
        return "holds another"
    if how == "gone":
        shutil.rmtree(place)
        return "does not exist: fix the path (the tokenizer, config.beit.tokenizer)"
    arrays = [path for path in (place / "checkpoints" / "1" / "params").rglob("*") if path.is_file()]
    flip_some(max(arrays, key=lambda path: path.stat().st_size))
    return "damaged"


@pytest.mark.parametrize("how", ["another", "gone", "damaged"])
def test_what_happened_to_a_tokenizer_is_one_sentence(how, small, tokenizers, tmp_path, capsys):
    """Training on, `eval` and `reconstruct`: refused alike, and nothing is written."""
    for seed, name in enumerate(("tokenizer", "other")):
        shutil.copytree(tokenizers / f"seed{seed}", tmp_path / name)
    config = for_tiny_networks(small("pretrain,beit", total_steps=1, warmup_steps=0))
    config.beit.tokenizer = str(tmp_path / "tokenizer")
    workdir = tmp_path / "run"
    train.run(config, workdir)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    before, words = all_bytes(workdir), wrong(how, tmp_path)
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out.png")]
    for command in (["eval", str(workdir)], ["reconstruct", str(workdir), str(tmp_path / "x.png"), *out]):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert words in said, said
        assert said.startswith("error: Expected")
        assert said.count("\n") == 1, said
    with pytest.raises(UserError, match=r"^Expected [^\n]*$"):
        train.run(config, workdir)
    assert all_bytes(workdir) == before
    assert not Path(out[1]).exists()


def test_eval_and_reconstruct_ask_the_tokenizer(finished, tmp_path, capsys):
    workdir, _ = finished
    assert cli.main(["eval", str(workdir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    last = [row for row in read_metrics(workdir) if row["kind"] == "eval"][-1]
    assert found["examples"] == last["examples"] == 64
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-5)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    assert cli.main(["reconstruct", str(workdir), str(tmp_path / "x.png"), "--out", str(tmp_path / "out.png")]) == 0
    assert "codes of hidden patches right" in capsys.readouterr().out


def test_a_run_goes_on_without_being_told_its_tokenizer_again(small, finished, capsys):
    workdir, tokenizer = finished
    train.run(for_tiny_networks(small("pretrain,beit")), workdir)
    assert "this run is finished" in capsys.readouterr().out
    assert stored(workdir)["tokenizer"] == str(tokenizer)


def test_accumulation_bounds_what_the_tokenizer_holds(made):
    """The step asks it of each micro-batch: four times as many of these need about as many bytes."""

    def temporaries(batch, accum_steps):
        config = made(batch=batch, accum_steps=accum_steps)
        networks = networks_for(config)
        mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
        program = make_program(
            config, METHOD.objective(config, None), make_schedule(config, 10, 0), None, mesh, networks
        )
        shapes = program.abstract, abstract_batch(config, None), SEED
        return program.step.lower(*shapes, *program.frozen).compile().memory_analysis().temp_size_in_bytes

    few, many, at_once = temporaries(16, 4), temporaries(64, 16), temporaries(64, 1)
    assert many < 2 * few
    assert at_once > 3 * few


def test_eval_asks_a_tokenizer_that_was_moved_and_no_other(finished, tokenizers, tmp_path, capsys):
    workdir, tokenizer = finished
    shutil.copytree(tokenizer, tmp_path / "moved")
    assert cli.main(["eval", str(workdir), "--tokenizer", str(tmp_path / "moved")]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert cli.main(["eval", str(workdir), "--tokenizer", str(tokenizers / "seed1")]) == 2
    assert "give the one this began with" in capsys.readouterr().err
