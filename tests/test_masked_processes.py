"""SimMIM and BEiT in two real processes: one run whatever their number, killed or not, and with one tokenizer."""

import signal
import time

import numpy as np
import pytest

from tests import tolerances
from tests.networks import TOKENIZER
from tests.test_processes import FIELDS, Group, final_digest, losses, training
from vit_jax import configuration, train
from vit_jax.training.tracker import read_metrics

METHODS = ("simmim", "beit")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Two of grey pictures, trained for a step from two seeds."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for seed in (0, 1):
        config = configuration.load("digits.py:pretrain,tokenizer")
        config.update({"seed": seed, "batch": 16, "total_steps": 1, "warmup_steps": 0, "num_threads": 1})
        config.tokenizer.update(TOKENIZER)
        train.run(config, folder / f"seed{seed}")
    return folder


@pytest.fixture
def fields(tokenizers):
    """Of a method: {field: value}, changed from its recipe for digits."""

    def of(method, tokenizer="seed0", **changes):
        made = {"mixup": 0.0, "model.relative_positions": "shared", "model.transformer.drop_path": 0.1} | changes
        if method == "beit":
            made |= {"beit.vocab_size": TOKENIZER["vocab_size"], "beit.tokenizer": str(tokenizers / tokenizer)}
        return made

    return of


def command(workdir, method, fields):
    return training(workdir, f"pretrain,{method}", **fields)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(method, fields, tmp_path):
    """The same order of examples, masks and codes, losses and exact evaluation."""
    changes = fields(method, total_steps=10, checkpoint_every=0, unroll=1)
    group = Group(2, tmp_path, command(tmp_path / "two", method, changes))
    config = configuration.load(f"digits.py:pretrain,{method}")
    config.update_from_flattened_dict(FIELDS | changes)
    train.run(config, tmp_path / "one")
    assert group.wait() == [0, 0], group.words()
    for kind in ("train", "eval"):
        ours, theirs = losses(tmp_path / "two", kind), losses(tmp_path / "one", kind)
        assert set(ours) == set(theirs) == ({5, 10} if kind == "train" else {10})
        for step, loss in ours.items():
            np.testing.assert_allclose(loss, theirs[step], rtol=tolerances.SUM_ORDER)
    assert all(row["examples"] == 360 for row in read_metrics(tmp_path / "two") if row["kind"] == "eval")
    assert (tmp_path / "two" / "figures" / "reconstructions.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_started_again_they_end_alike(method, fields, tmp_path):
    """A worker killed, then the coordinator: the same parameters in the end."""
    whole = Group(2, tmp_path, command(tmp_path / "whole", method, fields(method)))
    assert whole.wait() == [0, 0], whole.words()
    workdir = tmp_path / "run"
    for victim, step in ((1, 10), (0, 30)):
        group = Group(2, tmp_path, command(workdir, method, fields(method)))
        deadline = time.monotonic() + 240
        while max(losses(workdir), default=0) < step:
            assert time.monotonic() < deadline, group.words()
            assert [member.poll() for member in group.members] == [None, None], group.words()
            time.sleep(0.05)
        group.members[victim].send_signal(signal.SIGKILL)
        assert group.wait(60)[1 - victim] != 0
    group = Group(2, tmp_path, command(workdir, method, fields(method)))
    assert group.wait() == [0, 0], group.words()
    assert "continuing at step" in group.words()
    assert final_digest(workdir) == final_digest(tmp_path / "whole")


def test_two_tokenizers_are_refused(fields, tmp_path):
    """As each finds it by a path of its own."""
    group = Group(
        2, tmp_path, lambda number: command(tmp_path / "run", "beit", fields("beit", f"seed{number}"))
    )  # fmt: skip
    assert group.wait(120) == [2, 2], group.words()
    for number in range(2):
        assert f"error: process {number} of 2: Expected the tokenizer to be the same on every process" in group.words(
            number
        )
        assert "config.beit.tokenizer" in group.words(number)
    assert not (tmp_path / "run").exists()
