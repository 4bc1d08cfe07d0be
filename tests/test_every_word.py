"""Every word that a field takes is used the way a user does: built into a step, differentiated, laid out over devices.

The words come from the code's own tables, where it has them. What a word does is tested beside it; here it must work at all.
"""

import jax
import numpy as np
import pytest

from vit_jax import UserError, sharding
from vit_jax.contracts import Batch, Record
from vit_jax.data.transforms import FILTERS, TRAIN_CROPS, Preprocess
from vit_jax.methods import method_of
from vit_jax.methods.classification import TASKS
from vit_jax.models.encoder import REMAT_POLICIES
from vit_jax.models.layers import ACTIVATIONS
from vit_jax.models.vit import CLASSIFIERS, POSITIONS
from vit_jax.ops.masks import SCORES
from vit_jax.training.schedules import SHAPES, make_schedule
from vit_jax.training.step import SEED, make_program

OPTIMISERS = ("sgd", "adamw", "lars")
UNPOOLED = ("unpooled", "token_unpooled")
TOKEN = {"model.classifier": "token", "model.norm_after_pool": False}

# (stage, {field: value}); dotted fields as on the command line
WORDS = [
    *(("scratch", {"optim": optim, "loss": loss}) for optim in OPTIMISERS for loss in TASKS["classes"]),
    *(("scratch", {"remat": word, "unroll": 2}) for word in ("none", *REMAT_POLICIES)),
    *(("scratch", TOKEN | {"model.classifier": word}) for word in CLASSIFIERS if word not in UNPOOLED),
    *(("scratch", {"model.positions": word, "model.train_positions": word != "sincos2d"}) for word in POSITIONS),
    *(("scratch", {"model.activation": word}) for word in ACTIVATIONS),
    ("scratch", {"model.init": "google", "compute_dtype": "bfloat16"}),
    ("scratch", {"model.init": "mae", "compute_dtype": "float32"}),
    ("scratch", {"model.head_norm": "batch", "optim_dtype": "bfloat16", "optim": "sgd"}),
    *(("scratch", TOKEN | {"model.dist_token": True, "model.dist_head": head}) for head in (True, False)),
    ("scratch", {"model.cls_token": None, "model.cls_position": False, "model.representation_size": 16}),
    ("scratch", {"ema": 0.9, "accum_steps": 2, "mixup": 0.8, "cutmix": 1.0, "model.transformer.layer_scale": 0.1}),
    ("finetune", {"train_blocks": 0.5, "model.transformer.drop_path": 0.1}),
    *(("pretrain", {"mae.mask": word, "mae.normalised_target": word == "grid", "optim": "lars"}) for word in SCORES),
]  # fmt: skip


def with_fields(config, fields):
    for field, value in fields.items():
        section, _, name = field.rpartition(".")
        target = config
        for part in filter(None, section.split(".")):
            target = target[part]
        target[name] = value
    return config


@pytest.mark.parametrize(("stage", "fields"), WORDS, ids=lambda given: str(given)[:60])
def test_every_word_becomes_a_step(small, stage, fields):
    config = with_fields(small(stage, batch=8), fields)
    classes = 7 if method_of(config).labels else None
    mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
    objective = method_of(config).objective(config, classes)
    program = make_program(config, objective, make_schedule(config, 4, 0), classes, mesh)
    batch = Batch(np.zeros((8, 8, 8, 3), np.uint8), np.zeros(8, np.int32), np.ones(8, np.float32))
    assert "stablehlo" in program.step.lower(program.abstract, batch, SEED).as_text()


@pytest.mark.parametrize("classifier", UNPOOLED)
def test_the_words_that_only_give_features_are_refused_in_training(small, classifier):
    config = with_fields(small("scratch"), {"model.classifier": classifier})
    with pytest.raises(UserError, match=r"change model\.classifier"):
        method_of(config).objective(config, 7)


@pytest.mark.parametrize("decay_type", [*SHAPES, "step"])
def test_every_schedule_rises_and_never_exceeds_its_peak(small, decay_type):
    config = small("scratch", decay_type=decay_type, base_lr=0.5, decay_boundaries=(0.5,))
    schedule = make_schedule(config, 20, 5)
    rates = np.asarray([float(schedule(step)) for step in range(21)])
    assert rates[0] == 0.0
    assert rates.max() == rates[5] == 0.5
    assert (np.diff(rates[5:]) <= 1e-7).all()


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("train_crop", TRAIN_CROPS)
def test_every_crop_and_filter_gives_a_view(small, train_crop, interpolation):
    config = with_fields(small("scratch"), {"pp.train_crop": train_crop, "pp.interpolation": interpolation})
    views = Preprocess.from_config(config.pp)
    for size in ((8, 8), (5, 40), (31, 9)):
        picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        for view in (
            views.train(Record(picture, 0, "x"), np.random.default_rng(1)).image,
            views.evaluate(Record(picture, 0, "x")).image,
        ):
            assert (view.shape, view.dtype) == ((8, 8, 3), np.uint8)
