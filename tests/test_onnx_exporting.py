"""An exported ONNX file gives the library's numbers in onnxruntime: every kind of model, pictures of any size."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests.tolerances import ONNX
from vit_jax import UserError, configuration, exporting, onnx_exporting, train
from vit_jax.api import Trained
from vit_jax.commands import cli
from vit_jax.evaluation.features import pooled_features
from vit_jax.methods import method_of
from vit_jax.methods.building import build

needed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("jax2onnx", "onnx", "onnxruntime")),
    reason="jax2onnx and onnxruntime are not installed: no ONNX files",
)
PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
KINDS = {
    "several labels": {"task": "multilabel"},
    "numbers": {"task": "regression", "target_mean": (1.0, 2.0, 3.0), "target_std": (4.0, 5.0, 6.0)},
    "grey, not square": {"pp.channels": 1, "pp.crop": (8, 12)},
    "four channels": {"pp.channels": 4, "pp.mean": (0.1, 0.2, 0.3, 0.4), "pp.std": (0.5, 0.5, 0.5, 0.5)},
    "relative positions": {"model.relative_positions": "block", "model.key_bias": False, "model.positions": "none"},
    "shared relative positions": {"model.relative_positions": "shared", "model.transformer.layer_scale": 0.1},
    "attention pooling": {"model.classifier": "map", "model.positions": "sincos2d", "model.representation_size": 7},
    "distillation token": {"model.classifier": "token", "model.dist_token": True, "remat": "full"},
    "batch norm": {"model.head_norm": "batch", "model.classifier": "gap", "model.norm_after_pool": True},
    "bfloat16, cuDNN": {"compute_dtype": "bfloat16", "attention": "cudnn"},
    "hybrid": {"model.resnet.num_layers": (1, 1), "model.resnet.width_factor": 1, "pp.crop": 32},
}


def made(config, classes):
    """A model whose every parameter matters."""
    graph, params = nnx.split(build(config, classes))
    noisy = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    return Trained(nnx.merge(graph, noisy), configuration.plain(config), None, 0)


def session(folder):
    import onnxruntime

    return onnxruntime.InferenceSession(folder / onnx_exporting.PROGRAM, providers=["CPUExecutionProvider"])


def noise(config, count=3):
    crop = config["pp"]["crop"]
    height, width = (crop, crop) if isinstance(crop, int) else crop
    return np.random.default_rng(0).integers(0, 256, (count, height, width, config["pp"]["channels"]), dtype=np.uint8)


def close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= ONNX * np.abs(expected).max()


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_small):
    config = make_small("scratch", total_steps=2, warmup_steps=1)
    config.model.head_std = 0.5
    train.run(config, workdir := tmp_path_factory.mktemp("runs") / "scratch")
    return workdir


@needed
def test_a_classifier_gives_the_librarys_probabilities(run, tmp_path, capsys):
    assert cli.main(["export", str(run), str(tmp_path), "--to", "onnx"]) == 0
    assert "largest relative difference" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    opened, trained = session(tmp_path), vit_jax.load(run)
    for count, size in ((1, (8, 8)), (5, (8, 8)), (2, (40, 31)), (1, (1, 1)), (1, (3, 200))):
        rng = np.random.default_rng(count)
        small = rng.integers(0, 256, (count, 3, 2, 3), dtype=np.uint8)
        pictures = np.stack([np.asarray(Image.fromarray(one).resize(size[::-1])) for one in small])
        (found,) = opened.run(["answers"], {"pictures": pictures})
        expected = np.asarray(jax.nn.softmax(trained(list(pictures))))
        # A picture of the model's own size is not resized; of others a level of 255 may be rounded the other way.
        np.testing.assert_allclose(found, expected, rtol=0, atol=ONNX if size == (8, 8) else 0.01)
    told = opened.get_modelmeta().custom_metadata_map
    assert json.loads(told["names"]) == list(trained.class_names)
    assert (told["output"], told["step"], json.loads(told["size"])) == ("probabilities of one class", "2", [8, 8])


@needed
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(make_small, tmp_path, kind):
    config = make_small("scratch")
    config.update_from_flattened_dict(KINDS[kind])
    trained = made(config, 3)
    onnx_exporting.write(trained, tmp_path)
    plain, pictures = onnx_exporting.in_float32(trained), noise(config)
    expected = method_of(config).answers(
        nnx.jit(lambda model, x: model(x))(plain.model, plain.pixels(pictures)), config
    )
    close(session(tmp_path).run(None, {"pictures": pictures})[0], np.asarray(expected))


@needed
@pytest.mark.slow
@pytest.mark.parametrize("method", ["mae", "simmim", "beit", "patch_prediction"])
def test_features_of_what_learned_without_labels(make_small, tmp_path, method):
    config = make_small(f"pretrain,{method}" if method != "mae" else "pretrain")
    trained, pictures = made(config, None), noise(config)
    onnx_exporting.write(trained, tmp_path, "features")
    close(
        session(tmp_path).run(["features"], {"pictures": pictures})[0],
        np.asarray(pooled_features(trained.encoder, trained.pixels(pictures))),
    )


@needed
@pytest.mark.slow
def test_numbers_of_a_large_model_lie_beside_it(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_exporting, "LARGEST", 0)
    config = make_small("scratch")
    trained, pictures = made(config, 3), noise(config)
    paths, _ = onnx_exporting.write(trained, tmp_path)
    assert [path.name for path in paths] == ["model.onnx", "model.onnx.data"]
    assert paths[1].stat().st_size > 10_000
    assert paths[0].stat().st_mode == paths[1].stat().st_mode
    expected = jax.nn.softmax(trained(list(pictures)))
    close(session(tmp_path).run(None, {"pictures": pictures})[0], np.asarray(expected))


@needed
@pytest.mark.slow
def test_the_page_on_serving_runs_as_it_stands(run, tmp_path):
    code = next(code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "onnx" in code)
    assert cli.main(["export", str(run), str(tmp_path / "served"), "--to", "onnx"]) == 0
    Image.fromarray(np.full((30, 40, 3), (200, 30, 30), np.uint8)).save(tmp_path / "some.jpg")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    name, probability = said.stdout.rsplit(maxsplit=1)
    trained = vit_jax.load(run)
    (expected,) = np.asarray(jax.nn.softmax(trained(tmp_path / "some.jpg")))
    assert name == trained.class_names[expected.argmax()]
    assert float(probability) == pytest.approx(expected.max(), abs=0.02)


@needed
def test_what_differs_from_ours_is_not_kept(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_exporting, "evaluated", lambda program, args: [jnp.zeros((args[0].shape[0], 3))])
    with pytest.raises(UserError, match=r"numbers of ours from onnxruntime .* they differ by 1.0e\+00"):
        onnx_exporting.write(made(make_small("scratch"), 3), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_a_sentence(make_small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r'pip install "vit_jax\[onnx\]"'):
        onnx_exporting.write(made(make_small("scratch"), 3), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_without_a_head_has_no_answers(make_small):
    with pytest.raises(UserError, match=r"has no head that learned from labels: export its features \(--features\)"):
        exporting.program(made(make_small("scratch"), None))
