"""The rules of ImageNet's other test sets, by numbers worked by hand."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax.commands import imagenet
from vit_jax.commands.cli import main
from vit_jax.data.sources import Tfds
from vit_jax.evaluation.imagenet import ALEXNET_ERRORS, accuracy, mean_corruption_error

LOGITS = np.array([[0.1, 0.9, 0.5], [0.8, 0.3, 0.7], [0.2, 0.1, 0.6]], np.float32)


def test_subset_of_classes():
    assert accuracy(LOGITS, [(1,), (0,), (2,)]) == 1.0
    assert accuracy(LOGITS, [(2,), (0,), (2,)]) == pytest.approx(2 / 3)
    assert accuracy(LOGITS, [(2,), (0,), (2,)], {0, 2}) == 1.0


def test_real_leaves_out_pictures_without_an_answer():
    assert accuracy(LOGITS, [(1, 2), (), (0, 1)]) == 0.5
    assert accuracy(LOGITS, [(1,), (2,), (2,)]) == pytest.approx(2 / 3)
    assert np.isnan(accuracy(LOGITS[:1], [()]))


def test_ties_count_for_their_share_and_nan_is_wrong():
    zeros, broken = np.zeros((2, 4), np.float32), np.full((2, 4), np.nan, np.float32)
    assert accuracy(zeros, [(0,), (3,)]) == 0.25
    assert accuracy(zeros, [(0,), (1, 2, 3)]) == 0.5  # a quarter, and three quarters
    assert accuracy(zeros, [(1, 1), (3,)], {1, 3}) == 0.5  # an answer named twice is one answer
    assert accuracy(broken, [(0,), (0, 1, 2, 3)]) == 0.0


def test_mean_corruption_error():
    alexnet = {(name, severity): error for name, error in ALEXNET_ERRORS.items() for severity in range(1, 6)}
    assert mean_corruption_error(alexnet) == pytest.approx(1.0)
    half = {key: error / 2 for key, error in alexnet.items()}
    assert mean_corruption_error(half) == pytest.approx(0.5)
    one = dict(alexnet)
    one["fog", 3] = 0.0  # a fifth of one corruption of fifteen
    assert mean_corruption_error(one) == pytest.approx(1 - 1 / 75)
    one["frost", 2] = float("nan")
    with pytest.raises(ValueError, match="frost_2"):
        mean_corruption_error(one)
    del one["snow", 5]
    with pytest.raises(ValueError, match="snow_5"):
        mean_corruption_error(one)


def encoded(colour):
    out = io.BytesIO()
    Image.new("RGB", (9, 9), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def classifier(monkeypatch):
    """A model of 1000 classes, and its own predictions for 7 pictures."""
    model = vit_jax.create("ViT-Ti_4", num_classes=1000, image_size=8, hidden_size=12, head_std=1.0,
                           transformer={"num_layers": 1, "num_heads": 1, "mlp_dim": 8})  # fmt: skip
    from vit_jax import configuration

    config = configuration.completed({})
    config["pp"] |= {"crop": 8}
    trained = vit_jax.Trained(model, config, None, 0)
    monkeypatch.setattr(imagenet, "load", lambda path: trained)
    pictures = [encoded((30 * n, 200 - 20 * n, 10 * n)) for n in range(7)]
    return trained, pictures, np.asarray(trained(pictures))


def test_the_command_judges_every_set_by_its_rule(classifier, monkeypatch, capsys):
    _, pictures, logits = classifier
    best = logits.argmax(1)
    worst = logits.argmin(1)
    records = {
        "imagenet2012": [{"image": p, "label": int(best[n] if n < 3 else worst[n])} for n, p in enumerate(pictures)],
        "imagenet2012_real": [
            {"image": p, "original_label": 0, "real_label": [int(best[n]), 5] if n < 2 else []}
            for n, p in enumerate(pictures)
        ],
        # Only one class occurs: among the classes that do, every prediction is right.
        "imagenet_a": [{"image": p, "label": int(worst[0])} for p in pictures],
    }
    opened = []

    def open_source(dataset, split, tfds_data_dir=None):
        opened.append((dataset, split, tfds_data_dir))
        return Tfds(dataset, records[dataset], tuple(map(str, range(1000))))

    monkeypatch.setattr(imagenet, "open_source", open_source)
    given = ["imagenet", "x", "--sets", "val", "real", "a", "--batch", "4", "--tfds_data_dir", "d", "--json"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["val"] == pytest.approx(3 / 7)
    assert found["real"] == 1.0
    assert found["a"] == 1.0
    assert opened == [
        ("imagenet2012", "validation", "d"),
        ("imagenet2012_real", "validation", "d"),
        ("imagenet_a", "test", "d"),
    ]
    whole = [{"image": p, "label": int(best[n])} for n, p in enumerate(pictures)]
    monkeypatch.setattr(imagenet, "open_source", lambda *args, **kwargs: Tfds("c", whole, None))
    assert main(["imagenet", "x", "--sets", "c", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["c"] == 0.0


def test_pictures_without_labels_are_no_set_to_judge_by(classifier, monkeypatch, capsys):
    _, pictures, _ = classifier
    for labels in (-1, 1000):
        records = [{"image": picture, "label": labels} for picture in pictures]
        source = Tfds("imagenet2012 test", records, None)
        monkeypatch.setattr(imagenet, "open_source", lambda *args, source=source, **kwargs: source)
        assert main(["imagenet", "x", "--sets", "val"]) == 2
        assert "labels from 0 to 999" in capsys.readouterr().err


def test_other_heads_are_refused(classifier, monkeypatch, capsys):
    model = vit_jax.create("ViT-Ti_16", num_classes=10)
    monkeypatch.setattr(imagenet, "load", lambda path: vit_jax.Trained(model, {}, None, 0))
    assert main(["imagenet", "x"]) == 2
    assert "1000 classes" in capsys.readouterr().err
