"""Weights in and out: outputs of the original code, round trips bit for bit, and files that do not match."""

import json
import re

import jax
import numpy as np
import pytest

import vit_jax
from tests import tolerances
from tests.linen_twins import GoogleViT, apply, random_weights
from vit_jax import UserError, configuration
from vit_jax.commands.cli import main
from vit_jax.conversion.convert import Weights, param_shapes, refit, write
from vit_jax.weights import open_weights

PICTURES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
SMALL = {"width": 32, "depth": 2, "heads": 4, "mlp_dim": 48, "classes": 5}
GOOGLE = {
    "plain": GoogleViT(patch=8, **SMALL),
    "pre_logits": GoogleViT(patch=8, pre_logits=24, **SMALL),
    "gap": GoogleViT(patch=8, pool="gap", **SMALL),
    "r_ti": GoogleViT(patch=2, resnet=(), **SMALL),
    "r26": GoogleViT(patch=1, resnet=(2, 2, 2, 2), **SMALL),
    "r50": GoogleViT(patch=1, resnet=(3, 4, 9), **SMALL),
    "r50_l": GoogleViT(patch=1, resnet=(3, 4, 6, 3), **SMALL),
    "big_vision_token": GoogleViT(patch=8, big_vision=True, **SMALL),
    "big_vision_map": GoogleViT(patch=8, big_vision=True, pool="map", **SMALL),
}
STEMS = {"r26", "r50", "r50_l"}


def relative(ours, theirs):
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def logits(path, pictures=PICTURES, **given):
    model = vit_jax.load(path, **given).model
    return np.asarray(jax.jit(lambda x: model(x))(pictures))


def old_names(flat):
    """As before Linen: modules counted together, GroupNorm stored (1, 1, 1, c)."""
    renamed = {}
    for name, value in flat.items():
        if "/encoderblock_" in name:
            name = name.replace("LayerNorm_1/", "LayerNorm_2/").replace("MlpBlock_0/", "MlpBlock_3/")
            name = name.replace("MultiHeadDotProductAttention_0/", "MultiHeadDotProductAttention_1/")
        if re.search(r"(^|/)gn", name):
            value = value.reshape(1, 1, 1, -1)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n[:3] == "r50" else n for n in GOOGLE])
def test_google_npz_gives_linens_logits(name, tmp_path):
    pictures = PICTURES if name not in STEMS else np.tile(PICTURES, (1, 2, 2, 1))
    flat = random_weights(GOOGLE[name], pictures)
    np.savez(tmp_path / "x.npz", **flat)
    expected = apply(GOOGLE[name], flat, pictures)
    assert relative(logits(tmp_path / "x.npz", pictures), expected) < tolerances.CONVERTED
    weights, _ = open_weights(tmp_path / "x.npz")
    write(weights, tmp_path / "back.npz", "google")
    back = np.load(tmp_path / "back.npz")
    assert set(back.files) == set(flat)
    assert all(np.array_equal(back[key], flat[key]) for key in flat)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/", "params/img/"])
@pytest.mark.parametrize("name", ["plain", "r_ti"])
def test_google_npz_of_every_age(name, prefix, tmp_path):
    flat = random_weights(GOOGLE[name], PICTURES)
    aged = {prefix + key: value for key, value in old_names(flat).items()}
    aged["opt/state/step" if prefix.startswith("opt") else "step"] = np.zeros(3)
    np.savez(tmp_path / "x.npz", **aged)
    expected = apply(GOOGLE[name], flat, PICTURES)
    assert relative(logits(tmp_path / "x.npz"), expected) < tolerances.CONVERTED


def test_big_vision_blocks_stacked_by_scan(tmp_path):
    flat = random_weights(GOOGLE["big_vision_map"], PICTURES)
    expected = apply(GOOGLE["big_vision_map"], flat, PICTURES)
    blocks = sorted({name.split("/")[1] for name in flat if "/encoderblock_" in name})
    stacked = {name: value for name, value in flat.items() if "/encoderblock_" not in name}
    for name in [name for name in flat if f"/{blocks[0]}/" in name]:
        stacked[name.replace(blocks[0], "encoderblock")] = np.stack([flat[name.replace(blocks[0], b)] for b in blocks])
    np.savez(tmp_path / "x.npz", **{f"params/{name}": value for name, value in stacked.items()})
    assert relative(logits(tmp_path / "x.npz"), expected) < tolerances.CONVERTED


@pytest.fixture
def npz(tmp_path):
    flat = random_weights(GOOGLE["plain"], PICTURES)
    np.savez(tmp_path / "x.npz", **flat)
    return tmp_path / "x.npz", flat


def test_bfloat16_weights(npz, tmp_path):
    import ml_dtypes
    from safetensors.numpy import save_file

    weights, _ = open_weights(npz[0])
    write(weights, tmp_path / "f32.safetensors", "timm")
    tensors = vit_jax.conversion.files.open_archive(tmp_path / "f32.safetensors").tensors
    save_file(
        {name: np.asarray(tensors[name]).astype(ml_dtypes.bfloat16) for name in tensors}, tmp_path / "bf16.safetensors"
    )
    half, _ = open_weights(tmp_path / "bf16.safetensors", num_heads=4)
    for path, value in weights.params.items():
        assert half.params[path].dtype == np.float32
        assert np.array_equal(half.params[path], value.astype(ml_dtypes.bfloat16).astype(np.float32)), path


@pytest.mark.parametrize("to", ["timm", "mae", "hf"])
def test_written_in_bfloat16(to, npz, tmp_path, capsys):
    import ml_dtypes

    if to == "mae":
        pytest.importorskip("torch", reason="writes .pth")
    place = tmp_path / {"timm": "o.safetensors", "mae": "o.pth", "hf": "o"}[to]
    assert main(["convert", str(npz[0]), str(place), "--to", to, "--dtype", "bfloat16"]) == 0
    assert "rounded to bfloat16" in capsys.readouterr().out
    archive = vit_jax.conversion.files.open_archive(place)
    assert {np.asarray(archive.tensors[name]).dtype for name in archive.tensors} == {np.dtype(ml_dtypes.bfloat16)}
    assert main(["convert", str(npz[0]), str(tmp_path / "x2.npz"), "--to", "google", "--dtype", "bfloat16"]) == 2


def test_every_name_that_does_not_match_is_listed(npz, tmp_path):
    flat = dict(npz[1])
    del flat["cls"], flat["Transformer/encoderblock_1/LayerNorm_1/scale"]
    flat["Transformer/extra"] = np.zeros(3)
    flat["head/bias"] = np.zeros(9, np.float32)
    np.savez(tmp_path / "y.npz", **flat)
    with pytest.raises(UserError, match=r"positions|missing") as error:
        open_weights(tmp_path / "y.npz")
    flat["cls"] = npz[1]["cls"]
    np.savez(tmp_path / "y.npz", **flat)
    with pytest.raises(UserError) as error:
        open_weights(tmp_path / "y.npz")
    for word in (
        "Transformer/encoderblock_1/LayerNorm_1/scale",
        "Transformer/extra",
        "head/bias (expected (5,), got (9,))",
    ):
        assert word in str(error.value)
    assert main(["convert", str(tmp_path / "y.npz"), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_another_head_only_when_asked(npz, caplog):
    assert vit_jax.load(npz[0]).model.cfg.num_classes == 5
    changed = vit_jax.load(npz[0], num_classes=7)
    assert changed.model(jax.numpy.asarray(PICTURES)).shape == (2, 7)
    assert "head of 5 classes replaced by one of 7" in caplog.text
    assert changed.notes


def test_another_picture_size_resamples_as_google_does(npz):
    scipy = pytest.importorskip("scipy.ndimage")
    weights, _ = open_weights(npz[0])
    larger = refit(weights, image_size=56)
    table = weights.params["positions"]
    grid = scipy.zoom(table[1:].reshape(4, 4, -1), (7 / 4, 7 / 4, 1), order=1).reshape(49, -1)
    assert relative(larger.params["positions"], np.concatenate([table[:1], grid])) < tolerances.EXACT
    assert vit_jax.load(npz[0], image_size=56).model(jax.numpy.zeros((1, 56, 56, 3))).shape == (1, 5)


def test_convert_tells_what_it_did_and_checks_it(npz, tmp_path, capsys):
    assert main(["convert", str(npz[0]), str(tmp_path / "native")]) == 0
    told = capsys.readouterr().out
    assert "bit for bit" in told
    assert "relative difference 0.0e+00" in told
    assert np.array_equal(logits(tmp_path / "native"), logits(npz[0]))
    # timm's code has the exact GELU: said, not hidden
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "t.safetensors"), "--to", "timm"]) == 0
    assert "activation gelu_tanh here, gelu_erf there" in capsys.readouterr().out
    # transformers can say which GELU: equal
    assert main(["convert", str(tmp_path / "native"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "NOTE" not in capsys.readouterr().out
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["hidden_act"] == "gelu_pytorch_tanh"
    # never overwritten
    assert main(["convert", str(npz[0]), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert "exists" in capsys.readouterr().err


def test_a_new_head_of_zeros_is_checked_too(npz, tmp_path, capsys):
    """Its logits are zeros on both sides, 0 / 0; what comes before it is compared."""
    assert main(["convert", str(npz[0]), str(tmp_path / "native"), "--num_classes", "10"]) == 0
    assert "relative difference 0.0e+00" in capsys.readouterr().out
    assert main(["convert", str(npz[0]), str(tmp_path / "x.safetensors"), "--to", "timm", "--num_classes", "10"]) == 0
    assert "activation gelu_tanh here, gelu_erf there" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["native", "google", "timm", "hf"])
def test_outputs_that_are_not_finite_fail_and_leave_nothing(to, npz, tmp_path, capsys):
    flat = dict(npz[1])
    for name in ("Transformer/encoder_norm/scale", "head/kernel"):
        flat[name] = np.full_like(flat[name], 3e38)
    np.savez(tmp_path / "y.npz", **flat)
    before = sorted(tmp_path.rglob("*"))
    place = tmp_path / {"google": "o.npz", "timm": "o.safetensors"}.get(to, "o")
    assert main(["convert", str(tmp_path / "y.npz"), str(place), "--to", to]) == 2
    assert "Expected finite outputs" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["convert", str(tmp_path / "y.npz"), str(place), "--to", to, "--any_numbers"]) == 0
    assert place.exists()


def test_differences_of_numbers_that_are_not_finite():
    from vit_jax.commands.convert import largest_difference

    zero, one = np.zeros(2), np.ones(2)
    assert largest_difference([zero, one], [zero, one * 1.5]) == 0.5
    assert largest_difference([zero], [zero]) == 0.0
    assert largest_difference([zero], [one]) == np.inf
    for wrong in (np.nan, np.inf):
        assert np.isnan(largest_difference([one, one], [one, one * wrong]))
        assert np.isnan(largest_difference([one * wrong], [one]))


@pytest.mark.parametrize("stages", [(), (1,)])
def test_a_stem_of_another_width_is_recognised(stages, tmp_path):
    config = configuration.completed({})
    config["pp"]["crop"] = 32
    config["model"] |= {"hidden_size": 32, "patches": {"size": [2, 2]}}
    config["model"]["resnet"] = {"num_layers": stages, "width_factor": 2}
    config["model"]["transformer"] |= {"num_layers": 1, "num_heads": 4, "mlp_dim": 48}
    rng = np.random.default_rng(0)
    params = {path: rng.random(shape, np.float32) for path, shape in param_shapes(config, 5).items()}
    write(Weights(params, config, 5, None, "google"), tmp_path / "x.npz", "google")
    back, _ = open_weights(tmp_path / "x.npz")
    assert back.config["model"]["resnet"] == {"num_layers": stages, "width_factor": 2}
    assert all(np.array_equal(back.params[path], value) for path, value in params.items())


def test_every_command_takes_what_a_file_cannot_show(npz, tmp_path, capsys):
    """32 wide: no published model, so the number of heads must be given."""
    from PIL import Image

    path, picture = tmp_path / "x.safetensors", tmp_path / "x.png"
    write(open_weights(npz[0])[0], path, "timm")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture)
    commands = {
        "predict": [path, picture], "figures": [path, picture, "--out", tmp_path / "f"], "eval": [path, "--dataset", "fake"],
        "embed": [path, picture, "--out", tmp_path / "f.npz"], "probe": [path, "--dataset", "digits"],
        "imagenet": [path], "reconstruct": [path, picture], "convert": [path, tmp_path / "out"],
    }  # fmt: skip
    for name, given in commands.items():
        assert main([name, *map(str, given)]) == 2
        assert "num_heads" in capsys.readouterr().err
        assert main([name, *map(str, given), "--num_heads", "5"]) == 2
        assert "divisible by num_heads" in capsys.readouterr().err
    for name in ("predict", "figures", "convert"):
        assert main([name, *map(str, commands[name]), "--num_heads", "4"]) == 0


@pytest.mark.parametrize(
    "given", [["--num_classes", "0"], ["--num_classes", "-3"], ["--image_size", "7"], ["--image_size", "-8"]]
)
def test_sizes_that_cannot_be(given, npz, tmp_path, capsys):
    assert main(["convert", str(npz[0]), str(tmp_path / "out"), *given]) == 2
    assert given[0][2:] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["google", "timm", "mae", "hf"])
def test_round_trips_are_bit_equal(to, npz, tmp_path):
    if to == "mae":
        pytest.importorskip("torch", reason="writes .pth")
    weights, _ = open_weights(npz[0])
    place = tmp_path / {"google": "o.npz", "timm": "o.safetensors", "mae": "o.pth", "hf": "o"}[to]
    write(weights, place, to)
    back, _ = open_weights(place, **({"num_heads": 4} if to in ("timm", "mae") else {}))
    assert set(back.params) == set(weights.params)
    assert all(np.array_equal(back.params[path], weights.params[path]) for path in weights.params)


def test_training_begins_from_a_published_file(npz, small, tmp_path):
    from vit_jax import train

    config = small("finetune", total_steps=2, warmup_steps=1)
    config.pp.update({"crop": 48})
    config.model.update({"hidden_size": 32, "init": "google", "positions": "learn", "classifier": "token"})
    config.model.update({"norm_after_pool": False, "activation": "gelu_tanh"})
    config.model.patches.size = (8, 8)
    config.model.transformer.update({"num_layers": 2, "num_heads": 4, "mlp_dim": 48})
    config.init_from = str(npz[0])
    result = train.run(config, tmp_path / "run")
    assert result.step == 2
    assert (tmp_path / "run" / "parameters.txt").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "cannot be read"), (b"not weights", "cannot be read"), (None, "does not exist")],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_broken_files_are_one_sentence(content, word, suffix, tmp_path, capsys):
    path = tmp_path / f"x{suffix}"
    if content is not None:
        path.write_bytes(content)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 2
    assert word in capsys.readouterr().err


def test_models_lists_what_is_published(capsys):
    assert main(["models", "mae"]) == 0
    told = capsys.readouterr().out
    assert "mae_pretrain_vit_base.pth" in told
    assert "CC-BY-NC" in told


def test_a_published_classifier_is_evaluated_on_a_folder(npz, tmp_path, capsys):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "data" / "test" / f"class{number}"
        folder.mkdir(parents=True)
        for place in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(folder / f"{place}.png")
    given = ["eval", str(npz[0]), "--dataset", str(tmp_path / "data"), "--split", "test", "--batch", "4", "--json"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 10
    pictures = sorted((tmp_path / "data").rglob("*.png"))
    best = np.asarray(vit_jax.load(npz[0])(pictures)).argmax(1)
    expected = np.mean([f"class{place}" == path.parent.name for place, path in zip(best, pictures, strict=True)])
    assert found["accuracy"] == pytest.approx(expected)
    for path in (tmp_path / "data" / "test" / "class4").iterdir():
        path.unlink()
    (tmp_path / "data" / "test" / "class4").rmdir()
    assert main(given) == 2
    assert "Expected pictures of 5 classes" in capsys.readouterr().err
