"""Every recipe in configs/ loads, has only known fields, shrinks, and takes one step."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import shrink_section
from tests.networks import for_tiny_networks, trained_networks
from tests.test_every_recipe import ARGUMENTS
from vit_jax import configuration, train
from vit_jax.data.sources import open_source

# The first argument of every recipe; tests/test_every_recipe.py builds a step of each argument.
FIRST = {name: arguments[0] for name, arguments in ARGUMENTS.items()}


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
    if len(config.pp.mean) == 1 and config.objective != "tokenizer":
        config.pp.mean, config.pp.std = (0.5,), (0.5,)
    config.model.patches.size = (8, 8)
    config.model.hidden_size = 16
    if config.model.representation_size:
        config.model.representation_size = 16
    config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
    shrink_section(config)
    if "mae" in config:
        config.mae.num_visible = 4
    config.batch, config.batch_eval, config.accum_steps = 16, 8, min(config.accum_steps, 2)
    config.total_steps, config.total_epochs, config.warmup_steps, config.warmup_epochs = 1, None, 0, None
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument"), FIRST.items())
def test_recipe_takes_a_step(name, argument, folder, tmp_path):
    config = shrink(configuration.load(f"{name}:{argument.replace('FOLDER', str(folder))}".rstrip(":")))
    config.mesh.data = 8
    result = train.run(trained_networks(for_tiny_networks(config), tmp_path / "networks"), tmp_path / "run")
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


def test_a_folder_called_digits_is_the_folder(tmp_path, monkeypatch):
    folder_with(tmp_path, train=64, test=2)
    (tmp_path / "pictures").rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    config = configuration.load("folder.py:scratch,digits")
    assert len(open_source(config.dataset, "train")) == 64


def folder_with(root, train, test=1, side=40):
    """So many copies of one picture."""
    picture = root / "picture.png"
    Image.fromarray(np.zeros((side, side + 8, 3), np.uint8)).save(picture)
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            name = root / "pictures" / part / ("ant", "cat")[number % 2] / f"{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.hardlink_to(picture)
    return root / "pictures"


def test_folder_recipe_counts_the_training_pictures(tmp_path):
    """200 a class beside 10,000 test pictures are a small set."""
    config = configuration.load(f"folder.py:scratch,{folder_with(tmp_path, train=64, test=900)}")
    assert config.batch == 16


def strength(config):
    """What decides how hard the pictures are made."""
    return (config.base_lr, config.pp.randaugment, config.mixup, config.cutmix, config.pp.erasing,
            config.model.transformer.drop_path)  # fmt: skip


def test_regularisation_follows_the_steps_of_the_schedule(tmp_path):
    """A recipe cut to 15 passes over 1,854 hand signs reached 20% under a long schedule's augmentation."""
    pictures = folder_with(tmp_path, train=256)
    found = {}
    for epochs in (15, 400, 4000):
        config = configuration.load(f"folder.py:scratch,{pictures}")
        config.total_epochs = epochs
        configuration.derive("folder.py", config, frozenset({"total_epochs"}))
        found[epochs] = strength(config)
    assert found[15] == (2e-3, "", 0.0, 0.0, 0.0, 0.0)  # 120 steps of 32
    assert found[400] == (1e-3, "rand-m5-n1-mstd0.5-inc1", 0.2, 0.0, 0.0, 0.0)  # 3,200
    assert found[4000] == (5e-4, "rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25, 0.1)  # 32,000


def test_few_passes_need_no_regularisation_however_many_steps(tmp_path):
    config = configuration.load(f"folder.py:scratch,{folder_with(tmp_path, train=512)}")
    config.total_epochs, config.total_steps, config.batch = None, 9 * 512, 1
    configuration.derive("folder.py", config, frozenset({"total_epochs", "total_steps", "batch"}))
    assert config.mixup == 0.0


def test_what_was_typed_is_not_derived(tmp_path):
    config = configuration.load(f"folder.py:scratch,{folder_with(tmp_path, train=64)}")
    config.total_epochs, config.mixup = 15, 0.3
    configuration.derive("folder.py", config, frozenset({"total_epochs", "mixup"}))
    assert config.mixup == 0.3
    assert config.pp.randaugment == ""


def test_the_command_line_is_derived_from(tmp_path):
    """`--config.total_epochs=15` reaches `derive`, and what is typed beside it stays."""
    script = (
        "import sys, vit_jax.train, vit_jax.main;"
        "vit_jax.train.run = lambda config, *_, **__: print(config.base_lr, config.mixup, repr(config.pp.randaugment));"
        "sys.exit(vit_jax.main.main(sys.argv))"
    )
    pictures = folder_with(tmp_path, train=64)
    flags = [f"--workdir={tmp_path / 'run'}", f"--config=folder.py:scratch,{pictures}", "--config.total_epochs=15"]
    done = subprocess.run([sys.executable, "-c", script, *flags, "--config.mixup=0.3"], capture_output=True, text=True)
    assert done.stdout.split() == ["0.002", "0.3", "''"], done.stderr


@pytest.mark.parametrize(("side", "size"), [(32, 32), (48, 32), (100, 64), (500, 64)])
def test_quick_sees_as_many_pictures_as_a_quarter_of_an_hour_holds(tmp_path, side, size):
    config = configuration.load(f"folder.py:quick,{folder_with(tmp_path, train=1024, side=side)}")
    assert config.pp.crop == size
    steps = config.total_epochs * 1024 / config.batch
    assert 300 < steps < 5000
    assert config.total_epochs <= 100
    assert config.compute_dtype == "float32"


def test_quick_learns_two_colours(tmp_path):
    """With one unit and one block: a hybrid trains, and is judged right."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for name, colour in (("dark", 60), ("light", 190)):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for number in range(count):
                array = rng.normal(colour, 20, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(array).save(tmp_path / "pictures" / part / name / f"{number}.png")
    config = configuration.load(f"folder.py:quick,{tmp_path / 'pictures'}")
    config.total_epochs, config.batch_eval = 4, 8
    config.model.resnet.num_layers = (1,)
    config.model.hidden_size, config.model.transformer.num_layers, config.unroll = 48, 1, 1
    configuration.derive("folder.py", config, frozenset({"total_epochs", "batch_eval"}))
    config.mesh.data = 8
    result = train.run(config, tmp_path / "run")
    assert result.step == 8
    assert result.metrics["accuracy"] == 1.0
