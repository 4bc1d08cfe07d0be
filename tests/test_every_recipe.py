"""Every argument of every recipe trains: shrunk to tiny sizes, each structure that comes out of it is stepped.

The arguments are found in the recipes' own tables, so a new one is stepped without a word here.
"""

import importlib
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.conftest import shrink_section
from tests.networks import for_tiny_networks, networks_for, with_second
from vit_jax import configuration, derived, sharding
from vit_jax.contracts import Batch, Record
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.ops.paths import flat_params
from vit_jax.training.schedules import make_schedule, peak_lr
from vit_jax.training.step import SEED, make_program

from configs import common, digits, folder, mae, mae_finetune, models, vit  # isort: skip

CLASSES = 7
PARTS = {"b16": 12, "l16": 24, "h14": 32}  # blocks of the models that mae_partial.py fine-tunes


def augreg_name(name):
    """R26+ViT-S_32 -> R26_S_32."""
    return name.replace("+ViT-", "_").removeprefix("ViT-")


ARGUMENTS = {
    "common.py": [""],
    "digits.py": [*digits.STAGES, *(f"pretrain,{name}" for name in common.pretraining_methods())],
    "folder.py": [
        *(f"{stage},FOLDER" for stage in folder.STAGES),
        *(f"pretrain,FOLDER,{name}" for name in common.pretraining_methods()),
    ],
    "vit.py": [",".join(pair) for pair in itertools.product(models.BY_SHORT_NAME, vit.DATASETS)],
    "augreg.py": [augreg_name(name) for name in models.NAMES],
    "vit_scratch.py": list(models.BY_SHORT_NAME),
    "mae.py": list(mae.PLANNED),
    "mae_finetune.py": list(mae_finetune.RECIPES),
    "tokenizer.py": ["dalle", "small"],
    "mae_linprobe.py": list(mae.PLANNED),
    "mae_partial.py": [
        f"{name},{blocks}" for name, depth in PARTS.items() for blocks in (0, 0.5, *range(1, depth + 1))
    ],
}
# Other recipes say their arguments themselves.
ARGUMENTS |= {
    name: list(importlib.import_module(f"configs.{name.removesuffix('.py')}").NAMES)
    for name in configuration.recipe_names()
    if name not in ARGUMENTS
}


def shrink(config):
    """The same structure in tiny: every word, switch and stage stays, sizes and rates become the same small ones."""
    depth, patch = config.model.transformer.num_layers, 4
    model, body, stem = config.model, config.model.transformer, config.model.resnet
    if config.train_blocks is not None and config.train_blocks >= 1:
        config.train_blocks = 2 if config.train_blocks == depth else 1
    sides = 2  # patches a side
    if stem.num_layers is not None:  # two units of a stage: one that changes the width, one that does not
        stem.num_layers = tuple(min(units, 2) for units in stem.num_layers)
        patch = min(2, max(model.patches.size))
        sides *= 4 * 2 ** max(0, len(stem.num_layers) - 1)
    model.patches.size = (patch, patch)
    config.pp.crop = sides * patch
    config.pp.resize = None if config.pp.resize is None else config.pp.crop + 2
    model.model_name, model.hidden_size = "tiny", 16
    model.representation_size = model.representation_size and 16
    model.head_std, model.positions_std = model.head_std and 0.01, model.positions_std and 0.02
    section = config.get(config.objective, {})
    for stack in (body, *(part for part in section.values() if hasattr(part, "keys") and "num_layers" in part)):
        stack.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
        for rate in ("dropout_rate", "attention_dropout_rate", "drop_path", "layer_scale"):
            stack[rate] = stack[rate] and 0.1
    shrink_section(config)
    if "mask_unit" in section:
        section.mask_unit = section.mask_unit and 2 * patch
        config.pp.crop = 4 * patch
    if "num_visible" in section:
        section.num_visible = 1
    for_tiny_networks(config)
    config.accum_steps, config.unroll = min(config.accum_steps, 2), min(config.unroll, 2)
    config.batch, config.batch_eval = 8, 8
    config.total_steps, config.total_epochs, config.warmup_steps, config.warmup_epochs = 4, None, 0, None
    config.lr_scaling, config.base_lr, config.end_lr = config.lr_scaling and 256, 0.1, 0.0
    config.layer_decay = config.layer_decay and 0.75
    for field in ("weight_decay", "mixup", "cutmix", "label_smoothing"):
        config[field] = config[field] and 0.1
    return config


def structure(config):
    """All of a shrunk configuration that a compiled program can depend on, as text."""
    plain = configuration.plain(config)
    for field in (
        "dataset",
        "topology",
        "eval_every",
        "checkpoint_every",
        "progress_every",
        "figures_every",
        "b1",
        "b2",
    ):
        del plain[field]
    plain["pp"] = {field: plain["pp"][field] for field in ("crop", "channels")}
    return json.dumps(plain, sort_keys=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for label, number in itertools.product(("ant", "cat"), range(3)):
        (root / label).mkdir(exist_ok=True)
        Image.new("RGB", (40, 48), (80 * number, 0, 0)).save(root / label / f"{number}.png")
    return root


def load(name, argument, pictures):
    """What a user types, with a folder of pictures where one is wanted."""
    return configuration.load(f"{name}:{argument.replace('FOLDER', str(pictures))}".rstrip(":"))


def test_no_recipe_and_no_argument_is_missing():
    found = set(configuration.recipe_names())
    assert found
    assert found == set(ARGUMENTS), "give the new recipe a table NAMES of its arguments"
    assert all(ARGUMENTS.values())
    assert len(ARGUMENTS["vit.py"]) == 3 * len(models.NAMES)
    assert set(PARTS) == set(mae_finetune.RECIPES)
    assert all(models.from_short_name(name).transformer.num_layers == depth for name, depth in PARTS.items())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_loads_with_a_schedule_and_views_of_a_picture(name, pictures):
    """At its own size: the lengths of schedules, crops and augmentation."""
    picture = Record(np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8), 0, "x")
    seen = set()
    for argument in ARGUMENTS[name]:
        config = load(name, argument, pictures)
        per_epoch = 1_281_167 / config.batch
        total, warmup = derived.total_steps(config, per_epoch), derived.warmup_steps(config, per_epoch)
        schedule = make_schedule(config, total, warmup)
        if config.schedule == "google":  # the others are compared with the codes they follow
            assert float(schedule(warmup)) == pytest.approx(peak_lr(config))
        assert float(schedule(total)) < float(schedule(warmup + 1)) <= peak_lr(config) * (1 + 1e-6)
        if (pp := json.dumps(config.pp.to_dict())) in seen:
            continue
        seen.add(pp)
        given = picture._replace(image=picture.image[:, :, : config.pp.channels])
        views = Preprocess.from_config(config.pp)
        wanted, second = (config.pp.crop, config.pp.crop, config.pp.channels), derived.second_crop(config.pp)
        for found in (views.train(given, np.random.default_rng(0)), views.evaluate(given)):
            assert found.image.shape == wanted
            assert (found.second is None) == (second is None)
            assert second is None or found.second.shape == (*second, config.pp.channels)


def structures(name, pictures):
    """{structure: (arguments, config)} of a recipe."""
    found = {}
    for argument in ARGUMENTS[name]:
        config = shrink(load(name, argument, pictures))
        found.setdefault(structure(config), ([], config))[0].append(argument)
    return found


def program_of(config):
    """(program, evaluation, mesh) over two devices, laid out as the recipe says, with tiny frozen networks."""
    classes, networks = CLASSES if method_of(config).labels else None, networks_for(config)
    mesh = sharding.make_mesh(dict(config.mesh), jax.devices()[:2])
    objective = method_of(config).objective(config, classes)
    program = make_program(config, objective, make_schedule(config, 4, 0), classes, mesh, networks)
    judge = make_eval_step(objective, program.graph, program.layout.params, mesh, networks, program.frozen)
    return program, judge, mesh


def batch_of(config):
    pp = config.pp
    images = np.random.default_rng(0).integers(0, 256, (8, pp.crop, pp.crop, pp.channels), dtype=np.uint8)
    return with_second(Batch(images, np.arange(8, dtype=np.int32) % CLASSES, np.ones(8, np.float32)), config)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_becomes_a_step_and_an_evaluation(name, pictures):
    """Up to XLA: the model, its gradient, optimiser and layout. The slow test below goes on from there."""
    found = structures(name, pictures)
    assert sorted(argument for arguments, _ in found.values() for argument in arguments) == sorted(ARGUMENTS[name])
    for _, config in found.values():
        program, judge, _ = program_of(config)
        batch = batch_of(config)
        assert "stablehlo" in program.step.lower(program.abstract, batch, SEED, *program.frozen).as_text()
        assert "loss" in jax.eval_shape(judge, program.abstract.params, batch, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_takes_steps(name, pictures):
    """Two, because a head of zeros lets no gradient through in the first."""
    for arguments, config in structures(name, pictures).values():
        program, judge, mesh = program_of(config)
        batch, state = batch_of(config), program.init(np.int32(0))
        before = {path: np.asarray(leaf) for path, leaf in flat_params(state.params).items()}
        for _ in range(2):
            state, report = program.step(state, sharding.put(batch, mesh), np.int32(0), *program.frozen)
            assert bool(report.finite), arguments
        assert np.isfinite(evaluate(judge, state.params, [batch], mesh)["loss"]), arguments
        moved = {path for path, leaf in flat_params(state.params).items() if not np.array_equal(leaf, before[path])}
        first = "stem/conv_root/kernel" if config.model.resnet.num_layers is not None else "embedding/kernel"
        first = "conv_input/kernel" if config.objective == "tokenizer" else first
        assert (method_of(config).prefix + first in moved) == (config.train_blocks is None), (arguments, moved)
        assert {"predict/kernel", "head_out/kernel", "decoder/conv_output/kernel"} & moved, arguments
