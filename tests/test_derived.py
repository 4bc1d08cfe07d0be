"""Fields that follow from others unless they are set: sizes, mask ratios, lengths, and what comes with given weights."""

import json

import pytest

from vit_jax import command_line, configuration, derived, train
from vit_jax.contracts import UserError
from vit_jax.data.transforms import Preprocess
from vit_jax.methods.mae import mae_config
from vit_jax.training.tracker import read_metrics
from vit_jax.training.transfer import Transfer, adopted


def configured(spec, *words):
    return command_line.configured(spec, [command_line.assignment(word) for word in words]).config


@pytest.mark.parametrize(
    ("spec", "words", "resize"),
    [
        ("mae.py:b16", [], 256),  # the published 224 of 256
        ("mae.py:b16", ["pp.crop=128"], 146),
        ("mae.py:b16", ["pp.crop=(64, 96)"], 73),  # 64 / 0.875
        ("mae.py:b16", ["pp.crop=64", "pp.resize=64"], 64),  # set by hand
        ("mae.py:b16", ["pp.crop_share=1"], 224),
        ("augreg.py:B_16", [], 448),
        ("augreg.py:B_16", ["pp.crop=224"], 261),
        ("vit.py:b16,cifar10", [], None),  # the whole picture, resized to the crop
    ],
)
def test_evaluation_keeps_the_same_share_of_the_picture(spec, words, resize):
    assert Preprocess.from_config(configured(spec, *words).pp).resize == resize


@pytest.mark.parametrize(
    ("spec", "words", "visible"),
    [
        ("mae.py:b16", [], 49),
        ("mae.py:h14", [], 64),
        ("mae.py:b16", ["pp.crop=(64, 96)"], 6),  # a quarter of 24; 49 would hide nothing
        ("mae.py:b16", ["mae.mask_ratio=0.9", "pp.crop=160"], 10),  # int(100 * (1 - 0.9)) is 9
        ("mae.py:b16", ["mae.num_visible=20"], 20),
        ("digits.py:pretrain", [], 6),
        ("digits.py:pretrain", ["mae.mask_ratio=0.5"], 8),  # typed, so it wins over the recipe's number
        ("digits.py:pretrain", ["mae.mask_ratio=0.99"], 1),
    ],
)
def test_the_mask_ratio_follows_the_grid(spec, words, visible):
    assert mae_config(configured(spec, *words)).num_visible == visible


def test_warm_up_follows_the_length():
    steps = 1_281_167 / 4096
    assert derived.warmup_steps(configured("mae.py:b16"), steps) == round(40 * steps)
    short = configured("mae.py:b16", "total_epochs=20")
    assert derived.total_steps(short, steps) == round(20 * steps)
    assert derived.warmup_steps(short, steps) == round(steps)
    by_hand = configured("mae.py:b16", "total_steps=100", "warmup_epochs=0.1")
    assert (by_hand.total_epochs, derived.total_steps(by_hand, steps)) == (None, 100)
    assert derived.warmup_steps(by_hand, steps) == 31
    for spec, peak in (("mae_finetune.py:b16", 5), ("mae_finetune.py:l16", 5), ("mae_linprobe.py:b16", 10)):
        assert derived.warmup_steps(configured(spec), 1000.0) == peak * 1000


def test_a_length_is_said_once_and_comes_to_a_step():
    config = configured("digits.py:scratch")
    config.total_epochs = 5
    with pytest.raises(UserError, match="exactly one of total_steps and total_epochs"):
        derived.total_steps(config, 10.0)
    with pytest.raises(UserError, match=r"come to none.*config\.batch"):
        derived.total_steps(configured("mae.py:b16", "total_epochs=1"), 0.01)
    config = configured("digits.py:scratch", "warmup_epochs=1")
    assert config.warmup_steps is None  # what is typed empties its other spelling
    config.warmup_steps = 3
    with pytest.raises(UserError, match="exactly one of warmup_steps and warmup_epochs"):
        derived.warmup_steps(config, 10.0)


def test_a_run_says_what_it_worked_out(small, tmp_path, capsys):
    config = small("pretrain", total_steps=None, total_epochs=0.1, warmup_steps=None, warmup_share=0.5)
    config.mae.num_visible = None
    config.pp.crop_share = 0.8
    train.run(config, tmp_path)
    said = capsys.readouterr().out
    assert "pp.resize 10 (pp.crop 8 is 0.8 of it)" in said
    assert "mae.num_visible 4 of 16 (mae.mask_ratio 0.75)" in said
    assert "total_steps 2 (total_epochs 0.1)" in said
    assert "warmup_steps 1 (warmup_share 0.5)" in said
    assert [row["step"] for row in read_metrics(tmp_path) if row["kind"] == "train"] == [2]


# ---- what comes with given weights ---------------------------------------------------------------------------------


def test_the_encoder_comes_with_its_weights():
    theirs = json.loads(json.dumps(configuration.plain(configuration.load("mae.py:b16"))))
    ours = configuration.load("digits.py:finetune")
    made, changed = adopted(ours, theirs, frozenset())
    assert (made.model.hidden_size, made.model.transformer.num_layers, made.model.patches.size) == (768, 12, 16)
    assert (made.pp.crop, made.pp.channels, made.model.activation) == (224, 3, "gelu_erf")
    assert made.pp.mean == (0.485, 0.456, 0.406)
    assert (made.model.norm_after_pool, made.layer_decay, made.base_lr) == (True, 0.75, 4e-3)  # the recipe's own
    assert ours.model.hidden_size == 64
    assert "model.hidden_size" in changed
    configuration.check(made)

    kept, changed = adopted(ours, theirs, frozenset({"model.patches.size", "model.norm_eps"}))
    assert kept.model.patches.size == (2, 2)
    assert kept.pp.crop == 8  # the picture size belongs to the patches
    assert not adopted(configuration.load("mae_finetune.py:b16"), theirs, frozenset())[1]


def test_finetuning_takes_the_encoder_of_any_run(small, tmp_path, capsys):
    wide = small("pretrain", total_steps=1, warmup_steps=0)
    wide.model.hidden_size, wide.model.transformer.num_layers = 32, 3
    train.run(wide, tmp_path / "mae")
    config = small("finetune", init_from=str(tmp_path / "mae"), total_steps=2, warmup_steps=0, checkpoint_every=1)
    train.run(config, tmp_path / "tuned")
    said = capsys.readouterr().out
    assert "model.hidden_size 32 comes with" in said
    assert "of the source not used: decoder, decoder_embed, decoder_norm, encoder/norm, mask_token, predict" in said
    train.run(config, tmp_path / "tuned")  # continues: the stored run has what was brought
    (tmp_path / "mae").rename(tmp_path / "elsewhere")
    train.run(config, tmp_path / "tuned")  # also without the source


def test_unused_parts_are_named_exactly():
    names = {"encoder/a/kernel", "encoder/a/bias", "encoder/b/kernel", "decoder/x", "decoder/y"}
    used = frozenset({"encoder/a/kernel", "encoder/a/bias"})
    moved = Transfer({}, [], sorted(names - used), used)
    assert moved.summary().endswith("of the source not used: decoder, encoder/b")


def test_finetuning_without_weights_is_said(small, tmp_path, capsys):
    train.run(small("finetune", total_steps=1, warmup_steps=0), tmp_path / "a")
    assert "NOTE: this recipe is for fine-tuning, but no weights are given" in capsys.readouterr().out
    train.run(small("scratch", total_steps=1, warmup_steps=0), tmp_path / "b")
    assert "NOTE" not in capsys.readouterr().out
