"""An exported model is the library's, in a process that has JAX alone: the same numbers from pictures of any size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax import UserError, exporting, train
from vit_jax.commands import cli
from vit_jax.ops.pixels import normalise

# Nothing of ours: what a server would do.
SERVED = """
import sys
import numpy as np
from jax import export
run = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert not any(name.startswith(("vit_jax", "flax")) for name in sys.modules)
pictures = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: run.call(pictures[name]) for name in pictures})
print(" ".join(run.platforms))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_small):
    root = tmp_path_factory.mktemp("runs")
    for stage in ("scratch", "pretrain"):
        config = make_small(stage, total_steps=2, warmup_steps=1)
        config.pp.interpolation = "bicubic"
        config.model.head_std = 0.5
        train.run(config, root / stage)
    return root


def pictures(*sizes):
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8) for _ in sizes]
    resized = [
        np.stack([np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC)) for one in both])
        for size, both in zip(sizes, coarse, strict=True)
    ]
    return {"x".join(map(str, size)): array for size, array in zip(sizes, resized, strict=True)}


def served(folder, given, tmp_path):
    np.savez(tmp_path / "given.npz", **given)
    words = [sys.executable, "-c", SERVED, folder / exporting.PROGRAM, tmp_path / "given.npz", tmp_path / "found.npz"]
    said = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.split() == list(exporting.PLATFORMS)
    return dict(np.load(tmp_path / "found.npz"))


def test_a_classifier_gives_the_librarys_probabilities(runs, tmp_path, capsys):
    assert cli.main(["export", str(runs / "scratch"), str(tmp_path / "out")]) == 0
    assert "model.stablehlo" in capsys.readouterr().out
    given = pictures((8, 8), (40, 31), (17, 64))
    found, trained = served(tmp_path / "out", given, tmp_path), vit_jax.load(runs / "scratch")
    for name, array in given.items():
        logits = np.asarray(trained(list(array)))
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        # A picture of the model's own size is not resized; of others a level of 255 may be rounded the other way.
        atol = 1e-6 if name == "8x8" else 0.01
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=atol)
        assert expected.max() - expected.min() > 0.2
    told = json.loads((tmp_path / "out" / exporting.TOLD).read_text())
    assert told["names"] == list(trained.class_names)
    assert (told["step"], told["output"]) == (2, "probabilities of one class")


def test_features_of_an_autoencoder(runs, tmp_path):
    assert cli.main(["export", str(runs / "pretrain"), str(tmp_path / "out"), "--features"]) == 0
    given = pictures((8, 8))
    trained = vit_jax.load(runs / "pretrain")
    pixels = normalise(jnp.asarray(given["8x8"]), trained.config["pp"]["mean"], trained.config["pp"]["std"])
    tokens = trained.encoder.features(pixels)
    found = served(tmp_path / "out", given, tmp_path)["8x8"]
    np.testing.assert_allclose(found, tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "out" / exporting.TOLD).read_text())["names"] is None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_pictures_are_seen_as_pillow_shows_them(make_small, interpolation, share):
    """Seldom a level of 255 apart: Pillow's sums are in whole numbers."""
    from vit_jax.contracts import Record
    from vit_jax.data.transforms import Preprocess

    config = make_small("scratch")
    config.pp.update({"crop": 16, "crop_share": share, "interpolation": interpolation})
    for array in pictures((16, 16), (40, 31), (19, 64), (9, 12), (200, 150)).values():
        ours = np.asarray(exporting.seen(jnp.asarray(array), config.pp), int)
        theirs = np.stack([Preprocess.from_config(config.pp).evaluate(Record(one, 0, "x")).image for one in array])
        assert np.abs(ours - theirs).max() <= 1
        assert np.abs(ours - theirs).mean() < 0.05


def test_the_page_on_serving_runs_as_it_stands(runs, tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text()
    code = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "stablehlo" in code)
    assert cli.main(["export", str(runs / "scratch"), str(tmp_path / "served")]) == 0
    Image.fromarray(pictures((30, 40))["30x40"][0]).save(tmp_path / "some.jpg")
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    name, probability = said.stdout.rsplit(maxsplit=1)
    trained = vit_jax.load(runs / "scratch")
    logits = np.asarray(trained(tmp_path / "some.jpg"))[0]
    assert name == trained.class_names[logits.argmax()]
    assert float(probability) == pytest.approx(np.exp(logits).max() / np.exp(logits).sum(), abs=0.02)


def test_what_cannot_be_exported_is_a_sentence(runs, tmp_path, capsys):
    assert cli.main(["export", str(runs / "pretrain"), str(tmp_path / "new")]) == 2
    assert "export its features (--features)" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    assert cli.main(["export", str(runs / "scratch"), str(tmp_path / "file")]) == 2
    assert "Expected a folder to write to" in capsys.readouterr().err
    with pytest.raises(UserError, match="answers or features"):
        exporting.program(vit_jax.load(runs / "scratch"), "logits")
