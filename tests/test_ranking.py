"""Accuracies of models that know nothing: ties count for their share of chance, NaN is wrong, JSON stays readable."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax import UserError, sharding, train
from vit_jax.api import Trained, load
from vit_jax.commands import cli, embed, eval, predict, probe
from vit_jax.contracts import Batch
from vit_jax.data.sources import open_source
from vit_jax.evaluation.evaluators import evaluate
from vit_jax.evaluation.probes import Split, few_shot, linear_heads, nearest_neighbours
from vit_jax.methods import method_of
from vit_jax.training.tracker import Tracker

NAN = float("nan")
# scores, label, k, chance: worked by hand
RANKED = [
    ([3, 2, 1], 0, 1, 1.0),
    ([3, 2, 1], 1, 1, 0.0),
    ([3, 2, 1], 1, 2, 1.0),
    ([0, 0, 0, 0], 2, 1, 0.25),
    ([0, 0, 0, 0], 0, 3, 0.75),
    ([0, 0, 0, 0], 0, 5, 1.0),  # more places than classes
    ([5, 1, 1, 0], 2, 2, 0.5),
    ([5, 1, 1, 0], 3, 2, 0.0),
    ([NAN, 1, 0], 1, 1, 0.0),
    ([NAN, 1, 0], 0, 1, 0.0),
    ([NAN, NAN, NAN], 0, 3, 0.0),
    ([np.inf, 1, 0], 0, 1, 1.0),
    ([-np.inf, -np.inf], 1, 1, 0.5),
]


@pytest.mark.parametrize(("scores", "label", "k", "chance"), RANKED)
def test_chances_by_hand(scores, label, k, chance):
    from vit_jax.ops.ranking import chance_right

    found = chance_right(np.asarray([scores], np.float32), np.asarray([label]), k)
    np.testing.assert_allclose(found, [chance])
    np.testing.assert_allclose(jax.jit(chance_right, static_argnums=2)(jnp.asarray([scores], jnp.float32),
                                                                       jnp.asarray([label]), k), [chance])  # fmt: skip


def test_chances_are_the_frequencies_of_random_tie_breaking():
    from vit_jax.ops.ranking import chance_right

    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (20, 7)).astype(np.float32), rng.integers(0, 7, 20)
    for k in (1, 3):
        hits = np.zeros(20)
        for _ in range(2000):
            order = np.argsort(-(scores + rng.uniform(0, 0.5, scores.shape)), axis=1)[:, :k]
            hits += (order == labels[:, None]).any(axis=1)
        np.testing.assert_allclose(chance_right(scores, labels, k), hits / 2000, atol=0.06)


@pytest.mark.parametrize(("logits", "accuracy", "top5"), [(0.0, 0.1, 0.5), (NAN, 0.0, 0.0)])
@pytest.mark.parametrize("training", [False, True])
def test_a_head_that_knows_nothing_has_the_accuracy_of_chance(small, logits, accuracy, top5, training):
    config = small("scratch")
    objective = method_of(config).objective(config, 10)
    batch = Batch(np.zeros((20, 8, 8, 3), np.uint8), np.arange(20, dtype=np.int32) % 10, np.ones(20, np.float32))
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), jax.random.key(0), training)
    metrics = objective.losses(lambda *_, **__: jnp.full((20, 10), logits), inputs, None, training)[1]
    np.testing.assert_allclose(float(metrics["accuracy"].reduce().value()), accuracy, rtol=1e-6)
    np.testing.assert_allclose(float(metrics["top5"].reduce().value()), top5, rtol=1e-6)


def test_one_answer_a_patch_is_no_classifier_to_train(small):
    for classifier in ("unpooled", "token_unpooled"):
        config = small("scratch")
        config.model.update({"classifier": classifier, "norm_after_pool": False})
        with pytest.raises(UserError, match=r"change model\.classifier"):
            method_of(config).objective(config, 10)


def features(value, count=40):
    return np.full((count, 6), value, np.float32), (np.arange(count, dtype=np.int32) * 7) % 4


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.25), (NAN, 0.0)])
def test_probes_of_features_that_say_nothing(value, expected):
    """Equal votes, equal predictions, equal logits: chance, whatever class a table names first. NaN: nothing right."""
    train_rows, labels = features(1.0)
    test_rows = np.full((6, 6), value, np.float32)
    first = np.zeros(6, np.int32)  # all of the class that argmax names in doubt
    spread = Split(train_rows, labels, test_rows, first, 4)
    assert nearest_neighbours(spread, k=40, chunk=4) == pytest.approx(expected)
    assert few_shot(spread, 3) == pytest.approx(expected)
    if np.isnan(value):
        assert [head.test for head in linear_heads(spread, [0.1, 1.0], normalised=False, epochs=2)] == [0.0, 0.0]


def test_a_linear_head_that_diverged_is_neither_right_nor_chosen():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200).astype(np.int32)
    rows = (np.eye(4, 6)[labels] + 0.1 * rng.standard_normal((200, 6))).astype(np.float32)
    easy = Split(rows, labels, rows[:50], np.zeros(50, np.int32), 4)
    fine, diverged = linear_heads(easy, [0.1, NAN], normalised=False, epochs=5)
    assert (diverged.held_out, diverged.test) == (0.0, 0.0)
    assert fine.held_out > 0.9


def test_neighbours_with_equal_votes():
    axes = np.eye(4, dtype=np.float32)
    split = Split(axes, np.arange(4, dtype=np.int32), axes[:2] + axes[2:], np.array([0, 1], np.int32), 4)
    assert nearest_neighbours(split, k=2) == 0.5  # 0 or 2, 1 or 3: a coin each


def test_no_picture_to_judge_by_is_said():
    with pytest.raises(UserError, match=r"found none.*pp\.test"):
        evaluate(lambda *_: {}, None, [], sharding.make_mesh({"data": 1}, jax.devices()[:1]))


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A finished run, the same with NaN for weights, and a folder of pictures."""
    from vit_jax import configuration

    root = tmp_path_factory.mktemp("broken")
    config = configuration.load("digits.py:scratch")
    config.model.hidden_size = 16
    config.model.transformer.update({"num_layers": 1, "num_heads": 2, "mlp_dim": 32})
    config.update({"total_steps": 2, "warmup_steps": 1, "batch": 16, "progress_every": 1, "num_threads": 1})
    train.run(config, root / "run")
    trained = load(root / "run")
    trained.model.norm.scale[...] = trained.model.norm.scale[...] * NAN
    pictures = root / "pictures"
    for label in ("ant", "bee"):
        for split, count in (("train", 3), ("test", 2)):
            (pictures / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (8, 8), 40 * number).save(pictures / split / label / f"{number}.png")
    return root, trained


@pytest.fixture
def spoilt(broken, monkeypatch):
    root, trained = broken
    for command in (predict, eval, probe, embed):
        monkeypatch.setattr(command, "load", lambda *_, **__: trained)
    return root


def strictly(text):
    """JSON as everybody else reads it."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_eval_of_nan_is_wrong_and_readable(spoilt, capsys):
    assert cli.main(["eval", str(spoilt / "run"), "--json"]) == 0
    found = strictly(capsys.readouterr().out)
    assert (found["loss"], found["accuracy"], found["top5"], found["examples"]) == (None, 0.0, 0.0, 360.0)


def test_predict_says_that_the_model_is_broken(spoilt, capsys):
    picture = spoilt / "pictures" / "test" / "ant" / "0.png"
    assert cli.main(["predict", str(spoilt / "run"), str(picture)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "the model gives NaN" in said.err
    assert len(said.err.splitlines()) == 1


def test_probe_says_that_the_features_are_broken(spoilt, tmp_path, capsys):
    given = ["probe", str(spoilt / "run"), "--dataset", str(spoilt / "pictures"), "--cache", str(tmp_path)]
    assert cli.main(given) == 2
    assert "6 of the 6 pictures" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # nothing useless is kept


def test_features_are_remembered_of_these_very_pictures_and_labels(tmp_path):
    """Halves of one split have one name and one length; so has a folder whose pictures were sorted anew."""
    whole = open_source("digits", "train")
    halves = [probe.digest_of_records(open_source("digits", part)) for part in ("train[:50%]", "train[50%:]")]
    assert len({probe.digest_of_records(whole), *halves}) == 3
    for name, colour in (("ant/0", 0), ("ant/1", 80), ("bee/0", 160), ("bee/1", 240)):
        for split in ("train", "test"):
            path = tmp_path / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (colour, colour, colour)).save(path)
    before = probe.digest_of_records(open_source(str(tmp_path), "train"))
    assert probe.digest_of_records(open_source(str(tmp_path), "train")) == before
    ant, bee = (tmp_path / "train" / kind / "0.png" for kind in ("ant", "bee"))
    for old, new in ((ant, tmp_path / "x"), (bee, ant), (tmp_path / "x", bee)):
        old.rename(new)
    assert probe.digest_of_records(open_source(str(tmp_path), "train")) != before


def test_metrics_stay_readable_lines(tmp_path):
    tracker = Tracker(tmp_path, step=0, total_steps=2)
    tracker.record("train", 1, {"loss": NAN, "grad_norm": float("inf"), "lr": 0.1})
    tracker.close()
    Tracker(tmp_path, step=1, total_steps=2).close()  # resumed: written again
    (row,) = map(strictly, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (row["loss"], row["grad_norm"], row["lr"]) == (None, None, 0.1)


def test_a_trained_model_is_what_the_fixtures_say(broken):
    assert isinstance(broken[1], Trained)
    assert np.isnan(np.asarray(broken[1]([np.zeros((8, 8, 1), np.uint8)]))).all()
