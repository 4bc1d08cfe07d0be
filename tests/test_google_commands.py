"""The command lines of google-research/vision_transformer's README, as written there: paths, fields, files, a step."""

import contextlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.linen_twins import GoogleViT, random_weights
from vit_jax import UserError, configuration, derived, main
from vit_jax.commands import cli
from vit_jax.conversion.catalogue import AUGREG, recommended_augreg
from vit_jax.weights import given_weights

RECIPES = configuration.recipes_root() / "configs"
THEIRS = "/somewhere/vit_jax/configs"  # $(pwd)/vit_jax/configs there
B16 = [f"--config={THEIRS}/vit.py:b16,cifar10", "--config.pretrained_dir=gs://vit_models/imagenet21k"]
R_TI_16 = [f"--config={THEIRS}/augreg.py:R_Ti_16", "--config.dataset=oxford_iiit_pet", "--config.base_lr=0.01"]
ACCUMULATED = [f"--config={THEIRS}/vit.py:b16,cifar10", "--config.accum_steps=2"]
R_TI_16_FILE = "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


# Where configs lie


@pytest.mark.parametrize("folder", [THEIRS, "vit_jax/configs", "./vit_jax/configs", "../x/vit_jax/configs"])
def test_googles_config_paths_are_ours(folder):
    assert configuration.resolve(f"{folder}/vit.py:b16,cifar10") == f"{RECIPES / 'vit.py'}:b16,cifar10"
    with pytest.raises(UserError, match=r"did you mean vit.py"):
        configuration.resolve(f"{folder}/vitt.py:b16,cifar10")
    with pytest.raises(UserError, match="Expected a config file"):
        configuration.resolve("/somewhere/else/configs/vit.py:b16,cifar10")


def test_a_path_that_exists_wins(tmp_path):
    (tmp_path / "vit_jax" / "configs").mkdir(parents=True)
    own = tmp_path / "vit_jax" / "configs" / "vit.py"
    own.write_text("")
    assert configuration.resolve(f"{own}:b16") == f"{own}:b16"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"{THEIRS}/mixer_base16_cifar10.py", "Mixers are not part"),
        (f"{THEIRS}/inference_time.py", "vit-jax bench"),
        (f"{THEIRS}/vit.py:mixer_b16,cifar10", "Mixers and LiT are not part"),
        (f"{THEIRS}/vit.py:lit_b16b,cifar10", "Mixers and LiT are not part"),
        (f"{THEIRS}/augreg.py:R_Ti_8", "MODEL of Ti_16"),
    ],
)
def test_what_is_not_here_is_refused_by_name(spec, words):
    with pytest.raises(UserError, match=words):
        configuration.load(spec)


# What the configs set


def test_presets_are_googles():
    """vit_jax/configs/common.py, vit.py and augreg.py there."""
    shared = {"batch": 512, "batch_eval": 512, "accum_steps": 8, "grad_norm_clip": 1.0, "optim_dtype": "bfloat16",
              "eval_every": 100, "progress_every": 10, "checkpoint_every": 1000, "decay_type": "cosine"}  # fmt: skip
    for model in ("b16", "b32", "ti16", "r50_b16", "s16_gap_norep"):
        for dataset, (train, test, steps) in {
            "cifar10": ("train[:98%]", "test", 10_000),
            "cifar100": ("train[:98%]", "test", 10_000),
            "imagenet2012": ("train[:99%]", "validation", 20_000),
        }.items():
            config = configuration.load(f"vit.py:{model},{dataset}")
            rate = 0.01 if (model, dataset) == ("b16", "cifar10") else 0.03
            expected = shared | {"base_lr": rate, "total_steps": steps, "warmup_steps": 500, "pretrained_dir": "."}
            assert {field: config[field] for field in expected} == expected
            assert (config.pp.train, config.pp.test, config.pp.crop) == (train, test, 384)
    config = configuration.load("augreg.py:R_Ti_16")
    expected = shared | {"base_lr": 0.03, "total_steps": 500, "warmup_steps": 100, "model_or_filename": "R_Ti_16",
                         "pretrained_dir": "gs://vit_models/augreg"}  # fmt: skip
    assert {field: config[field] for field in expected} == expected
    assert (config.pp.train, config.pp.test, config.pp.crop, derived.resize(config.pp)) == ("train", "test", 384, 448)
    gap = configuration.load("vit.py:s16_gap_norep,cifar10").model
    assert (gap.model_name, gap.classifier, gap.hidden_size) == ("ViT-S_16-gap-norep", "gap", 384)


def test_augreg_takes_a_file_name_for_the_model():
    config = configuration.load(f"augreg.py:{R_TI_16_FILE}--imagenet2012-steps_20k-lr_0.03-res_384")
    assert config.model.model_name == "R+ViT-Ti_16"
    assert given_weights(config).endswith(f"augreg/{R_TI_16_FILE}--imagenet2012-steps_20k-lr_0.03-res_384.npz")


# Which file


@pytest.mark.parametrize("slash", ["", "/", "//"])
@pytest.mark.parametrize("store", ["gs://vit_models/", "https://storage.googleapis.com/vit_models/"])
def test_addresses_keep_their_slashes(store, slash):
    config = configuration.load("vit.py:b16,cifar10")
    config.pretrained_dir = f"{store}imagenet21k{slash}"
    assert given_weights(config) == f"{store}imagenet21k/ViT-B_16.npz"
    config = configuration.load("augreg.py:R_Ti_16")
    config.pretrained_dir = f"{store}augreg{slash}"
    assert given_weights(config) == f"{store}augreg/{R_TI_16_FILE}.npz"
    config.init_from = f"{store}x.npz"
    assert given_weights(config) == f"{store}x.npz"


def test_augregs_files_are_the_recommended_ones():
    for name, (recipe, *_) in AUGREG.items():
        assert recommended_augreg(name) == f"{name}-i21k-300ep-lr_0.001-{recipe}"
        assert given_weights(configuration.load(f"augreg.py:{name}")) == (
            f"gs://vit_models/augreg/{name}-i21k-300ep-lr_0.001-{recipe}.npz"
        )
    with pytest.raises(UserError, match=r"recommended file .*'R26_B_32'.*model_or_filename"):
        given_weights(configuration.load("augreg.py:R26_B_32"))


def test_a_folder_without_the_file_names_googles(tmp_path):
    config = configuration.load("vit.py:b16,cifar10")
    config.pretrained_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"ViT-B_16\.npz.*--config\.pretrained_dir=gs://vit_models/imagenet21k"):
        given_weights(config)
    (tmp_path / "ViT-B_16.npz").touch()
    assert given_weights(config) == f"{tmp_path}/ViT-B_16.npz"
    config.pretrained_dir = None
    assert given_weights(config) is None


# Whole command lines. Data sets, the bucket and the folder of another start are stand-ins; the lines are Google's.

WITH_STAND_INS = """
import os, sys
from pathlib import Path
from vit_jax.contracts import UserError
from vit_jax.conversion import convert

ours = convert.fetch

def fetch(address):
    if not str(address).startswith("gs://"):
        return ours(address)
    bucket = os.environ.get("BUCKET")
    if not bucket:
        raise UserError(f"Expected to fetch {address}, it failed (no network).")
    return Path(bucket) / str(address).removeprefix("gs://")

convert.fetch = fetch
from vit_jax import main
sys.exit(main.main())
"""
SHRUNK = [
    "--config.pp.crop=32", "--config.model.hidden_size=16", "--config.model.transformer.num_layers=2",
    "--config.model.transformer.num_heads=2", "--config.model.transformer.mlp_dim=32", "--config.batch=8",
    "--config.batch_eval=8", "--config.total_steps=1", "--config.warmup_steps=0",
]  # fmt: skip


def typed(folder, *arguments, **environment):
    """(exit status, output, errors) of a command line, started in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_STAND_INS, *arguments], cwd=folder, text=True,
        capture_output=True, check=False, env={
            **os.environ, "PYTHONPATH": str(configuration.recipes_root()), "TFDS_DATA_DIR": str(folder / "tfds"),
            "XLA_FLAGS": "--xla_backend_optimization_level=0", **environment,
        },
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def prepared(folder, name):
    """A made-up data set with the name and the features of TFDS's."""
    import tensorflow_datasets as tfds

    theirs = tfds.builder(name, data_dir=folder / "empty")
    rng = np.random.default_rng(0)

    def png(channels):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 2, (40, 48, channels), dtype=np.uint8).squeeze()).save(buffer, format="PNG")
        return io.BytesIO(buffer.getvalue())

    values = {"image": lambda: png(3), "segmentation_mask": lambda: png(1), "label": lambda: int(rng.integers(5)),
              "species": lambda: 1, "head_bbox": lambda: tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "file_name": lambda: "x",
              "id": lambda: "x"}  # fmt: skip
    pictures = {"train": 20, "test": 8}

    class MadeUp(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = theirs.version
        pkg_dir_path = folder

        def _info(self):
            return self.dataset_info_from_configs(features=theirs.info.features)

        def _split_generators(self, manager):
            return {split: self._generate_examples(count) for split, count in pictures.items()}

        def _generate_examples(self, count):
            for index in range(count):
                yield index, {feature: values[feature]() for feature in theirs.info.features}

    MadeUp.name = name
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        MadeUp(data_dir=folder / "tfds", file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared data sets in tfds/, Google's files in the bucket and, for another start, beside it."""
    root = tmp_path_factory.mktemp("google")
    for name in ("cifar10", "oxford_iiit_pet"):
        prepared(root, name)
    shape = {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "classes": 7}
    pictures = np.zeros((1, 32, 32, 3), np.float32)
    files = {
        "bucket/vit_models/imagenet21k/ViT-B_16.npz": GoogleViT(patch=16, pre_logits=24, **shape),
        f"bucket/vit_models/augreg/{R_TI_16_FILE}.npz": GoogleViT(patch=8, resnet=(), **shape),
        "ViT-B_16.npz": GoogleViT(patch=16, pre_logits=24, **shape),
    }
    for name, model in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(root / name, **random_weights(model, pictures))
    return root


LINES = {"b16": B16, "r_ti_16": R_TI_16, "accumulated": ACCUMULATED}


@pytest.mark.parametrize("name", LINES)
def test_googles_lines_run_to_the_first_step(name, place):
    bucket = str(place / "bucket")
    status, output, errors = typed(place, f"--workdir={place / name}", *LINES[name], *SHRUNK, BUCKET=bucket)
    assert status == 0, output + errors[:1500]
    file = {
        "b16": "gs://vit_models/imagenet21k/ViT-B_16.npz",
        "r_ti_16": f"gs://vit_models/augreg/{R_TI_16_FILE}.npz",
        "accumulated": "./ViT-B_16.npz",
    }
    assert output.splitlines()[1].startswith(f"from {file[name]} step 0: ")
    assert "step 1/1" in output


def test_without_a_network_a_sentence_is_about_the_fetch(place):
    status, _, errors = typed(place, f"--workdir={place / 'offline'}", *B16, *SHRUNK)
    assert status == 2
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Expected to fetch gs://vit_models/imagenet21k/ViT-B_16.npz" in errors


def test_without_the_data_a_sentence_says_how_to_prepare_it(tmp_path):
    status, _, errors = typed(tmp_path, f"--workdir={tmp_path / 'run'}", *R_TI_16, "--config.tfds_manual_dir=/manual")
    assert status == 2
    note, error = errors.strip().splitlines()
    assert "tfds_manual_dir=/manual does nothing here" in note
    assert "tfds build oxford_iiit_pet --file_format=array_record --manual_dir=/manual" in note
    assert error.startswith("error: Expected oxford_iiit_pet to be prepared")
    assert "`tfds build oxford_iiit_pet --file_format=array_record` where TensorFlow is installed" in error


def test_the_other_trainer_is_refused():
    config = configuration.load("augreg.py:R_Ti_16")
    main.heed_googles_fields(config)
    config.trainer = "inference_time"
    with pytest.raises(UserError, match="got 'inference_time': inference alone is not timed here, `vit-jax bench"):
        main.heed_googles_fields(config)


# Help


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_shows_flags_fields_and_an_example(flag, capsys):
    assert main.main(["main.py", flag]) == 0
    module = capsys.readouterr().out
    assert main.main(["main.py", "--config=digits.py", flag]) == 0
    assert capsys.readouterr().out == module
    assert cli.main(["train", flag]) == 0
    command = capsys.readouterr().out
    assert command == module.replace("python -m vit_jax.main", "vit-jax train")
    for name in ("workdir", "config", "fields", "coordinator", "num_processes", "process_id"):
        assert f"--{name}" in module
    assert all(name in module for name in configuration.recipe_names())


@pytest.mark.slow
def test_the_example_of_the_help_runs(capsys, tmp_path):
    main.main(["main.py", "--help"])
    (example,) = [line for line in capsys.readouterr().out.splitlines() if "--workdir=runs/try" in line]
    words = example.split()
    assert words[0] == "python"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(configuration.recipes_root()), "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 100/100" in done.stdout


def test_every_field_is_listed_with_its_value_and_meaning(tmp_path):
    status, output, errors = typed(tmp_path, "--config=augreg.py:R_Ti_16", "--fields", "--config.base_lr=0.01")
    assert status == 0, errors
    listed = {line.split()[0]: line for line in output.splitlines()}
    assert set(listed) == set(dict(configuration.flatten(configuration.default_fields())))
    assert "0.01" in listed["base_lr"]
    assert "micro-batches a step" in listed["accum_steps"]
    assert "stochastic depth" in listed["model.transformer.drop_path"]
    assert not (tmp_path / "run").exists()


def test_fields_need_no_config(capsys):
    assert main.main(["main.py", "--fields"]) == 0
    assert "base_lr = 0.03" in capsys.readouterr().out
