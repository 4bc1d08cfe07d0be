"""Every recipe in configs/ loads, has only known fields, shrinks, and takes one step."""

import numpy as np
import pytest
from PIL import Image

from vit_jax import configuration, train

ARGUMENTS = {
    "common.py": [""], "digits.py": ["pretrain", "finetune", "scratch"], "vit.py": ["b16,cifar10", "l16,imagenet2012"],
    "vit_scratch.py": ["s16", "b16"], "augreg.py": ["B_16", "Ti_16", "R26_S_32"], "mae.py": ["b16", "l16", "h14"],
    "mae_finetune.py": ["b16", "l16", "h14"], "mae_linprobe.py": ["b16", "l16", "h14"],
    "mae_partial.py": ["b16,0.5", "l16,4"],
    "folder.py": ["scratch,{folder}", "pretrain,{folder}", "finetune,{folder}"],
}  # fmt: skip
NOT_RECIPES = {"__init__.py", "kinds.py", "models.py"}
CASES = [(name, argument) for name, arguments in ARGUMENTS.items() for argument in arguments]


def test_no_recipe_is_missing_here():
    found = {path.name for path in (configuration.recipes_root() / "configs").glob("*.py")} - NOT_RECIPES
    assert found
    assert found == set(ARGUMENTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("ant", "cat"):
        (root / name).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def shrink(config):
    """The same recipe on 32-pixel pictures, two narrow blocks, one step."""
    config.dataset = "fake"
    config.pretrained_dir = None
    config.pp.train = config.pp.train.replace("validation", "test")
    config.pp.test = "test[:8]"
    config.pp.crop = 32
    config.pp.resize = None if config.pp.resize is None else 36
    config.pp.channels = 3
    if len(config.pp.mean) == 1:
        config.pp.mean, config.pp.std = (0.5,), (0.5,)
    config.model.patches.size = (8, 8)
    config.model.hidden_size = 16
    if config.model.representation_size:
        config.model.representation_size = 16
    config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
    config.mae.num_visible = 4
    config.mae.decoder.update({"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32})
    config.batch, config.batch_eval, config.accum_steps = 16, 8, min(config.accum_steps, 2)
    config.total_steps, config.total_epochs, config.warmup_steps, config.warmup_epochs = 1, None, 0, None
    return config


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_recipe_loads(name, argument, folder):
    configuration.load(f"{name}:{argument.format(folder=folder)}".rstrip(":"))


@pytest.mark.parametrize(("name", "argument"), [(name, arguments[0]) for name, arguments in ARGUMENTS.items()])
def test_recipe_takes_a_step(name, argument, folder, tmp_path):
    config = shrink(configuration.load(f"{name}:{argument.format(folder=folder)}".rstrip(":")))
    config.mesh.data = 8
    result = train.run(config, tmp_path)
    assert result.step == 1
    assert np.isfinite(result.metrics["loss"])


WRONG = [
    "mae.py:x16",
    "vit.py:b16",
    "vit.py:q16,cifar10",
    "augreg.py:R_Ti_8",
    "mae_partial.py:b16,x",
    "folder.py:scratch,/no",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_say_what_is_there(wrong):
    with pytest.raises(configuration.UserError, match="Expected"):
        configuration.load(wrong)


def test_folder_recipe_looks_at_the_pictures(folder):
    config = configuration.load(f"folder.py:scratch,{folder}")
    assert config.pp.crop == 32
    assert config.model.patches.size == (4, 4)
    assert config.batch == 16
