"""BEiT: its masks beside its generator's rules, its loss by hand, both views of a picture, and what a tokenizer must fit."""

import copy
import functools
import io
import math
import random
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests import tolerances
from tests.networks import TOKENIZER, for_tiny_networks, networks_for, with_second
from tests.test_training import made_up_batch
from vit_jax import UserError, configuration, frozen
from vit_jax.contracts import Record
from vit_jax.data.transforms import Preprocess
from vit_jax.methods.beit import METHOD, hidden_blocks, masking
from vit_jax.methods.building import build
from vit_jax.models.dvae import tokens
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.masks import beit_mask
from vit_jax.ops.paths import flat_params
from vit_jax.ops.pixels import normalise


@pytest.fixture(scope="module")
def tiny(make_small):
    return for_tiny_networks(make_small("pretrain,beit"))


# ---- masks -----------------------------------------------------------------------------------------------------------


def by_the_rules(rng, rows, columns, most, least):
    """One mask as recipes of the paper's generator have it, in plain Python."""
    hidden = np.zeros((rows, columns), bool)
    while (left := most - hidden.sum()) > 0:
        for _ in range(10):
            area, shape = rng.uniform(least, left), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
            height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if height >= rows or width >= columns:
                continue
            top, first = rng.randint(0, rows - height), rng.randint(0, columns - width)
            block = np.zeros_like(hidden)
            block[top : top + height, first : first + width] = True
            if 0 < (block & ~hidden).sum() <= left:
                hidden |= block
                break
        else:
            break
    return hidden


def test_three_thousand_masks_are_distributed_as_the_generators():
    config = configuration.load("beit.py:b16")
    assert masking(config) == ((14, 14), 75, 16)
    found = jax.jit(functools.partial(hidden_blocks, config=config))(jax.random.split(jax.random.key(0), 3000))
    ours, rng = np.asarray(found).reshape(3000, 14, 14), random.Random(0)
    theirs = np.stack([by_the_rules(rng, 14, 14, 75, 16) for _ in range(3000)])
    counts, others = ours.sum((1, 2)), theirs.sum((1, 2))
    assert counts.max() == 75
    assert counts.min() >= 60
    assert counts.mean() == pytest.approx(others.mean(), abs=0.15)  # both have a deviation of 0.02
    assert counts.mean() == pytest.approx(74.5, abs=0.2)  # of 3,000 masks of the generator itself
    assert (counts == 75).mean() == pytest.approx((others == 75).mean(), abs=0.04)
    # A place is hidden in 38% of masks: with 3,000 each the difference deviates by 0.0125.
    difference = np.abs(ours.mean(0) - theirs.mean(0))
    assert difference.max() < 0.06
    assert difference.mean() < 0.02
    assert ours.mean(0)[5:9, 5:9].mean() > ours.mean(0)[[0, 0, -1, -1], [0, -1, 0, -1]].mean() + 0.1  # corners are rare


def test_masks_consist_of_blocks():
    """A hidden patch has hidden neighbours far more often than among as many at random."""
    hidden = np.asarray(beit_mask(jax.random.split(jax.random.key(1), 200), (14, 14), 75, 16)).reshape(-1, 14, 14)
    beside = (hidden[:, :, 1:] & hidden[:, :, :-1]).sum() / hidden[:, :, 1:].sum()
    assert beside > 0.75  # 0.38 at random


def test_grids_that_are_no_squares_have_masks_too():
    hidden = np.asarray(beit_mask(jax.random.split(jax.random.key(2), 300), (4, 12), 18, 4)).reshape(-1, 4, 12)
    assert (hidden.sum((1, 2)) <= 18).all()
    assert hidden.sum((1, 2)).mean() > 16
    assert hidden.mean(0).min() > 0.1


@pytest.mark.parametrize("changes", [{"pp.crop": (16, 224)}, {"beit.min_block": 170, "beit.num_masked": 180}])
def test_blocks_that_never_fit_are_a_sentence(changes):
    """A block leaves a row and a column: a single row of patches would train to the end on nothing."""
    config = configuration.load("beit.py:b16")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=r"leaves a row and a column of"):
        masking(config)


@pytest.mark.parametrize("changes", [{"num_masked": 196}, {"min_block": 76}, {"num_masked": 10}])
def test_numbers_that_contradict_each_other_are_a_sentence(changes):
    config = configuration.load("beit.py:b16")
    config.beit.update(changes)
    with pytest.raises(UserError, match=r"beit\.min_block <= beit\.num_masked < 196"):
        masking(config)


# ---- the loss --------------------------------------------------------------------------------------------------------


def test_the_loss_is_a_mean_over_hidden_tokens_of_all_pictures(tiny):
    """By hand from the whole model's logits: pictures hide different numbers, and a padded row counts for nothing."""
    networks = networks_for(tiny)
    tokenizer = networks.merged({"tokenizer": networks["tokenizer"].params})["tokenizer"]
    batch = jax.tree.map(jnp.asarray, with_second(made_up_batch(16, padded=3), tiny))
    model, objective = build(tiny, None), METHOD.objective(tiny, None)
    inputs = objective.consult(objective.inputs(batch, jax.random.key(3), False), tokenizer=tokenizer)
    assert "second" not in inputs
    order = np.random.default_rng(0).random((16, 16)).argsort(1)
    hidden = order < np.arange(16)[:, None] % 6 + 1  # 1 to 6 of 16, as many as are hidden at most
    loss, metrics = objective.losses(model, inputs | {"hidden": jnp.asarray(hidden)}, None, False)

    hidden = hidden[:13]
    codes = np.asarray(tokens(tokenizer, normalise(batch.second, (0.0,), (1.0,))))[:13]
    pixels = normalise(batch.image, tiny.pp.mean, tiny.pp.std)[:13]
    logits = np.asarray(model(pixels, jnp.asarray(hidden)), np.float64)
    errors = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, codes[:, :, None], 2)[:, :, 0]
    assert float(loss.reduce().value()) == pytest.approx(errors[hidden].mean(), rel=tolerances.FORWARD)
    right = (logits.argmax(-1) == codes)[hidden].mean()
    assert float(metrics["accuracy"].reduce().value()) == pytest.approx(right, rel=tolerances.FORWARD)


def test_steps_are_given_the_tokenizers_encoder_and_figures_all_of_it(tiny, monkeypatch):
    spec, theirs = METHOD.frozen["tokenizer"], configuration.load("digits.py:pretrain,tokenizer")
    theirs.tokenizer.update(TOKENIZER)
    theirs.pp.crop, theirs.pp.channels, theirs.compute_dtype = 8, tiny.pp.channels, "float32"
    params = {path: np.asarray(leaf) for path, leaf in flat_params(nnx.split(build(theirs, None))[1]).items()}
    given = types.SimpleNamespace(params=params, config=theirs, num_classes=None)
    monkeypatch.setattr(frozen, "open_weights", lambda path: (given, 0))
    tiny = copy.deepcopy(tiny)
    tiny.beit.tokenizer = "there"
    config, networks = frozen.opened(tiny)
    assert config.beit.tokenizer_sha256 == frozen.sha256(params)  # of the whole
    held = flat_params(networks.asked["tokenizer"].params)
    assert set(held) == {path for path in params if path.startswith("encoder/")} < set(params)
    assert all(np.array_equal(held[path], params[path]) for path in held)
    laid = flat_params(frozen.planned(tiny)["tokenizer"].params)
    assert {path: leaf.shape for path, leaf in laid.items()} == {path: leaf.shape for path, leaf in held.items()}
    whole, asked = networks.whole()["tokenizer"], networks.asked.whole()["tokenizer"]
    second = jax.random.uniform(jax.random.key(0), (2, 8, 8, tiny.pp.channels))
    np.testing.assert_array_equal(tokens(asked, second), tokens(whole, second))
    assert spec.asked(theirs).tokenizer.decoder_width is None is not theirs.tokenizer.decoder_width
    images = np.zeros((1, 8, 8, tiny.pp.channels), np.uint8)
    assert "predicted codes" in METHOD.picture(build(tiny, None), jnp.asarray(images), tiny, tokenizer=whole).columns


def test_logits_that_are_no_numbers_are_never_right(tiny):
    networks = networks_for(tiny)
    tokenizer = networks.merged({"tokenizer": networks["tokenizer"].params})["tokenizer"]
    batch = jax.tree.map(jnp.asarray, with_second(made_up_batch(16), tiny))
    model, objective = build(tiny, None), METHOD.objective(tiny, None)
    model.predict.bias[...] = jnp.full_like(model.predict.bias[...], jnp.nan)
    inputs = objective.consult(objective.inputs(batch, jax.random.key(0), False), tokenizer=tokenizer)
    loss, metrics = objective.losses(model, inputs | {"codes": jnp.zeros_like(inputs["codes"])}, None, False)
    assert not np.isfinite(float(loss.reduce().value()))
    assert float(metrics["accuracy"].reduce().value()) == 0.0


def test_predictions_do_not_see_what_is_hidden(tiny):
    model, rng = build(tiny, None), np.random.default_rng(0)
    pixels = jnp.asarray(rng.standard_normal((2, 8, 8, 3)), jnp.float32)
    hidden = hidden_blocks(jax.random.split(jax.random.key(1), 2), tiny)
    shown = jnp.repeat(jnp.repeat(hidden.reshape(2, 4, 4), 2, 1), 2, 2)[..., None]
    other = jnp.where(shown, jnp.asarray(rng.standard_normal(pixels.shape), jnp.float32), pixels)
    apply = nnx.jit(lambda model, pixels: model(pixels, hidden))
    np.testing.assert_array_equal(apply(model, pixels), apply(model, other))
    assert float(jnp.abs(apply(model, pixels) - apply(model, pixels + 1.0)).max()) > 0


def test_masks_change_with_the_step_and_the_picture(tiny):
    one, two = (
        np.asarray(hidden_blocks(fold(jax.random.split(key_for(0, "train", step), 8), 1), tiny)) for step in (0, 1)
    )
    assert (one != two).any()
    assert len({row.tobytes() for row in one}) > 4


# ---- two views -------------------------------------------------------------------------------------------------------


def encoded(kind, size=(90, 70)):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    coarse.save(file, kind)
    return Record(file.getvalue(), 0, "x")


def views(**fields):
    config = configuration.load("beit.py:b16")
    config.pp.update({"crop": 32, "crop_share": None} | fields)
    return Preprocess.from_config(config.pp)


@pytest.mark.parametrize("seed", range(6))
def test_both_views_are_the_same_part_flipped_alike(seed):
    """The second one is what a recipe of that size and filter alone sees with the same random numbers, jitter and flip."""
    record = encoded("PNG")
    both = views().train(record, np.random.default_rng(seed))
    alone = views(crop=16, second_share=None, interpolation="lanczos").train(record, np.random.default_rng(seed))
    first = views(second_share=None).train(record, np.random.default_rng(seed))
    assert both.second is not None
    np.testing.assert_array_equal(both.second, alone.image)
    np.testing.assert_array_equal(both.image, first.image)
    assert first.second is None


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_the_second_view_of_evaluation_is_the_same_part(share):
    found = views(second_share=share).evaluate(encoded("JPEG"))
    assert found.second is not None
    assert found.second.shape == (32 * share, 32 * share, 3)
    small = [np.asarray(Image.fromarray(view).resize((8, 8), Image.Resampling.BOX), np.float64) for view in found]
    assert np.abs(small[0] - small[1]).mean() < 3  # of 255, two filters apart
    centre = views(crop_share=0.5, second_share=share).evaluate(encoded("JPEG"))
    small = [np.asarray(Image.fromarray(view).resize((8, 8), Image.Resampling.BOX), np.float64) for view in centre]
    assert np.abs(small[0] - small[1]).mean() < 3
    assert np.abs(found.image.astype(float) - centre.image).mean() > 10


@pytest.mark.parametrize("train_crop", ["simple", "resize"])
def test_other_crops_have_a_second_view_too(train_crop):
    pixels = Record(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), 0, "x")
    same = views(train_crop=train_crop, second_share=1.0, color_jitter=0.0).train(pixels, np.random.default_rng(1))
    np.testing.assert_array_equal(same.image, same.second)


def test_colour_jitter_changes_brightness_evenly_within_its_bounds():
    """Of an evenly grey picture contrast and saturation change nothing."""
    grey = Record(np.full((8, 8, 3), 100, np.uint8), 0, "x")
    jitter = views(crop=8, second_share=None, color_jitter=0.4)
    found = np.asarray([jitter.train(grey, np.random.default_rng(seed)).image[0, 0, 0] for seed in range(500)]) / 100
    assert (found.min(), found.max()) == (pytest.approx(0.6, abs=0.02), pytest.approx(1.4, abs=0.02))
    assert found.mean() == pytest.approx(1.0, abs=0.03)
    assert np.std(found) == pytest.approx(0.8 / math.sqrt(12), abs=0.02)


def test_colour_jitter_changes_contrast_and_saturation():
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, 4:], halves[:, :4] = (160, 90, 90), (60, 100, 60)
    jitter = views(crop=8, second_share=None, color_jitter=0.4, train_crop="resize", flip=False)
    found = np.stack([jitter.train(Record(halves, 0, "x"), np.random.default_rng(s)).image for s in range(300)])
    found = found.astype(float)
    contrast = np.abs(found[:, :, 4:].mean((1, 2, 3)) - found[:, :, :4].mean((1, 2, 3))) / 40
    saturation = (found[:, 0, 7, 0] - found[:, 0, 7, 1]) / 70
    for ratio in (contrast, saturation):
        assert ratio.min() < 0.6
        assert ratio.max() > 1.5
    apart = saturation / contrast  # what is left is the factor of the one over the other's
    assert apart.min() < 0.75
    assert apart.max() > 1.2


def test_grey_and_transparent_pictures_are_jittered():
    for channels in (1, 4):
        picture = Record(np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8), 0, "x")
        jitter = views(crop=8, channels=channels, mean=(0.5,), std=(0.5,))
        assert jitter.train(picture, np.random.default_rng(0)).image.shape == (8, 8, channels)


# ---- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_digits_learn_by_it(tmp_path):
    """The codes of hidden patches are told better than from how often each is used."""
    from vit_jax import train

    config = configuration.load("digits.py:pretrain,tokenizer")
    config.update({"batch": 96, "total_steps": 200, "eval_every": 0})
    by_chance = math.log(train.run(config, tmp_path / "tokenizer").metrics["perplexity"])
    config = configuration.load("digits.py:pretrain,beit")
    config.update({"total_steps": 150, "warmup_steps": 15, "batch": 96, "eval_every": 0})
    config.model.transformer.num_layers = config.unroll = 2
    config.beit.tokenizer = str(tmp_path / "tokenizer")
    found = train.run(config, tmp_path / "beit").metrics
    assert found["loss"] < by_chance - 0.3
    assert found["accuracy"] > 0.2
