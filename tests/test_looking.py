"""Probes and pictures of the inside: against scikit-learn, `transformers`, and numbers worked by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests import tolerances
from vit_jax import UserError, configuration
from vit_jax.commands.cli import main
from vit_jax.evaluation.attention import attention, mean_distances, rollout, to_patches
from vit_jax.evaluation.probes import Split, few_shot, linear_heads, nearest_neighbours
from vit_jax.methods.building import build

SMALL = {"hidden_size": 16, "transformer": {"num_layers": 3, "num_heads": 2, "mlp_dim": 32}, "positions_std": 1.0}


def small_vit(**fields):
    model = vit_jax.create("ViT-Ti_4", num_classes=3, image_size=(12, 16), **SMALL, **fields)
    graph, params = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda p: p * 1.5, params))


@pytest.fixture
def clusters():
    """Three overlapping clouds."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3, 8)) * 1.2

    def draw(count):
        labels = rng.integers(0, 3, count)
        return (centres[labels] + rng.standard_normal((count, 8))).astype(np.float32), labels.astype(np.int32)

    train, test = draw(300), draw(201)
    return Split(*train, *test, 3)


def test_neighbours_equal_scikit_learns(clusters):
    from sklearn.neighbors import KNeighborsClassifier

    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (clusters.train, clusters.test)]
    theirs = KNeighborsClassifier(15, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)).fit(
        unit[0], clusters.train_labels
    )
    expected = theirs.score(unit[1], clusters.test_labels)
    assert nearest_neighbours(clusters, 15, chunk=64) == pytest.approx(expected)


@pytest.mark.parametrize("shots", [2, 25])
def test_few_shots_equal_scikit_learns_ridge(clusters, shots):
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(3)
    chosen = np.concatenate([rng.permutation(np.flatnonzero(clusters.train_labels == c))[:shots] for c in range(3)])
    x = clusters.train[chosen].astype(np.float64)
    mean, std = x.mean(0), x.std(0) + 1e-5

    def ready(rows):
        return np.concatenate([(rows - mean) / std, np.full((len(rows), 1), 100.0)], 1)

    ridge = Ridge(alpha=2.0**10, fit_intercept=False).fit(ready(x), 2.0 * np.eye(3)[clusters.train_labels[chosen]] - 1)
    expected = (ridge.predict(ready(clusters.test)).argmax(1) == clusters.test_labels).mean()
    assert few_shot(clusters, shots, seed=3) == pytest.approx(expected)


def test_linear_heads_find_what_logistic_regression_finds(clusters):
    from sklearn.linear_model import LogisticRegression

    expected = LogisticRegression(C=1e3).fit(clusters.train, clusters.train_labels)
    expected = expected.score(clusters.test, clusters.test_labels)
    for normalised in (False, True):
        heads = linear_heads(clusters, [1e-6, 0.1], normalised=normalised, epochs=40, batch=32)
        assert abs(heads[1].test - expected) < 0.03
        assert heads[1].held_out > 0.85
        assert [head.learning_rate for head in heads] == [1e-6, 0.1]


def test_attention_equals_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(
        **sizes, image_size=16, patch_size=4, attn_implementation="eager", initializer_range=0.3
    )
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        found = model(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), output_attentions=True, output_hidden_states=True
        )
    encoder = vit_jax.load(tmp_path).encoder
    ours = attention(encoder, jnp.asarray(pixels), [0, -1])
    for place, layer in enumerate((0, 2)):
        theirs = found.attentions[layer].numpy()
        assert np.abs(ours[place] - theirs).max() < tolerances.FORWARD * theirs.max()
    every = vit_jax.features(encoder, pixels, [0, 1, 2])
    assert (
        np.abs(np.asarray(every[2]) - found.last_hidden_state.numpy()).max()
        < 1e-5 * found.last_hidden_state.abs().max()
    )


def test_rollout_and_distances_by_hand():
    model = small_vit()
    pixels = jnp.asarray(np.random.default_rng(0).random((2, 12, 16, 3)), jnp.float32)
    layers = attention(model, pixels, [0, 1, 2])
    np.testing.assert_allclose(layers.sum(-1), 1.0, atol=1e-5)
    total = np.eye(13)[None]
    for layer in layers:
        total = (0.5 * layer.mean(1) + 0.5 * np.eye(13)[None]) @ total
    np.testing.assert_allclose(rollout(model, pixels), total, atol=1e-6)
    expected = np.zeros((3, 2))
    for index, layer in enumerate(layers):
        patches = layer[:, :, 1:, 1:] / layer[:, :, 1:, 1:].sum(-1, keepdims=True)
        for q in range(12):
            for k in range(12):
                apart = 4 * np.hypot(q // 4 - k // 4, q % 4 - k % 4)
                expected[index] += apart * patches[:, :, q, k].mean(0) / 12
    np.testing.assert_allclose(mean_distances(model, pixels), expected, rtol=1e-4)
    assert to_patches(model, layers).shape == (3, 2, 2, 3, 4)
    np.testing.assert_array_equal(to_patches(model, layers)[..., 1, 2], layers[..., 0, 7])


def test_features_of_layers_and_forms():
    model = small_vit()
    pixels = np.random.default_rng(0).random((2, 12, 16, 3)).astype(np.float32)
    tokens, last = vit_jax.features(model, pixels, [0, -1])
    np.testing.assert_allclose(last, model.features(jnp.asarray(pixels)), rtol=1e-5, atol=1e-5)
    (grid,) = vit_jax.features(model, pixels, [0], form="NHWC")
    assert grid.shape == (2, 3, 4, 16)
    np.testing.assert_array_equal(grid.reshape(2, 12, 16), tokens[:, 1:])
    (pooled,) = vit_jax.features(model, pixels, [0], form="pooled")
    np.testing.assert_allclose(pooled, tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="Expected layers"):
        vit_jax.features(model, pixels, [3])


@pytest.fixture
def workdir(small, tmp_path):
    from vit_jax import train

    def draw(workdir, config, model, batch, networks):
        np.save(workdir / "drawn.npy", batch.label)

    train.run(small("pretrain", total_steps=2, warmup_steps=1), tmp_path / "mae", draw=draw)
    return tmp_path / "mae"


def test_figures_of_a_masked_autoencoder(workdir, tmp_path, capsys):
    picture = tmp_path / "p.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(picture)
    out = tmp_path / "out"
    assert main(["figures", str(workdir), str(picture), "--out", str(out), "--layers", "0", "-1"]) == 0
    names = {"attention_layer0", "attention_layer1", "rollout", "attention_distance", "positions", "filters",
             "reconstructions_50", "reconstructions_75", "reconstructions_90"}  # fmt: skip
    assert {path.stem for path in out.glob("*.png")} == names
    for path in out.glob("*.png"):
        assert np.asarray(Image.open(path)).std() > 1, path
    assert len(set(np.load(workdir / "drawn.npy").tolist())) == 8  # of different classes, were the run's own pictures
    large = ["--out", str(tmp_path / "large"), "--size", "picture", "--heads", "1"]
    assert main(["figures", str(workdir), str(picture), *large]) == 0
    capsys.readouterr()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "file").write_text("")
    for wrong, said in [
        (["--layers", "7"], "Expected layers from 0 to 1"),
        (["--heads", "9"], "Expected heads from 0 to 1"),
        (["--heads"], "got none: change --heads"),
        (["--layers"], "got none: change --layers"),
        (["--out", str(tmp_path / "file")], "cannot be written"),
    ]:
        given = ["figures", str(workdir), str(picture), "--out", str(tmp_path / "none")]
        assert main([*given, *wrong]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "none").exists()
    assert main(["figures", str(workdir), str(tmp_path / "text.png"), "--out", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_probe_computes_features_once(workdir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for label, colour in (("dark", 40), ("light", 200)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-30, 30, (9, 9, 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(folder / f"{number}.png")
    given = [
        "probe",
        str(workdir),
        "--dataset",
        str(tmp_path / "data"),
        "--cache",
        str(tmp_path / "c"),
        "--shots",
        "1",
        "5",
    ]
    given += ["--epochs", "10", "--json"]
    assert main(given) == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["pooling"] for row in first["results"]] == ["cls", "mean", "model"]
    stored = sorted((tmp_path / "c").glob("*.npz"))
    assert len(stored) == 2
    times = [path.stat().st_mtime_ns for path in stored]
    assert main(given) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert [path.stat().st_mtime_ns for path in stored] == times
    assert all(0.0 <= value <= 1.0 for row in first["results"] for key, value in row.items() if key != "pooling")
    assert main(["probe", str(workdir), "--dataset", str(tmp_path / "data" / "train" / "dark")]) == 2


def test_attention_from_python_is_what_the_figures_are_drawn_from():
    model = small_vit(classifier="token")
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 16, 3)), jnp.float32)
    (maps,), (tokens,) = (vit_jax.attention(model, pixels, layers=[1], form=form) for form in ("maps", "tokens"))
    assert (maps.shape, tokens.shape) == ((2, 2, 3, 4), (2, 2, 13, 13))
    np.testing.assert_array_equal(maps.reshape(2, 2, 12), tokens[:, :, 0, 1:])  # the class token's row
    np.testing.assert_array_equal(tokens, attention(model, pixels, [1])[0])
    for wrong in ({"layers": [3]}, {"form": "NHWC"}):
        with pytest.raises(UserError, match="Expected"):
            vit_jax.attention(model, pixels, **wrong)
    with pytest.raises(UserError, match="Expected an array of pixels"):
        vit_jax.attention(model, "some.png")


def masked(small, **section):
    config = small("pretrain")
    config.mae.update({"num_visible": 6, "mask": "grid", **section})
    return vit_jax.Trained(build(config, None), configuration.plain(config), None, 0)


def test_reconstructions_hide_what_was_asked_for(small):
    trained, pictures = masked(small), np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)

    def hidden(**given):
        columns = vit_jax.reconstruct(trained, pictures, **given).columns
        original, pasted = columns["original"], list(columns.values())[-1]
        changed = np.abs(original - pasted).reshape(2, 4, 2, 4, 2, 3).max(axis=(2, 4, 5)) > 1e-6
        return changed.reshape(2, -1).sum(axis=1).tolist()

    assert hidden() == [10, 10]  # of 16, as trained
    assert hidden(mask_ratio=0.25) == [4, 4]
    assert trained.config["mae"]["num_visible"] == 6  # left as it was
    first, other = (vit_jax.reconstruct(trained, pictures, 0.5, seed=seed).columns["masked"] for seed in (1, 2))
    assert not np.array_equal(first, other)
    for ratio in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match="Expected mask_ratio between 0 and 1"):
            vit_jax.reconstruct(trained, pictures, ratio)


def test_a_classifier_fills_in_nothing(small):
    config = small()
    trained = vit_jax.Trained(build(config, 10), configuration.plain(config), None, 0)
    with pytest.raises(UserError, match="fills in pixels by itself"):
        vit_jax.reconstruct(trained, np.zeros((8, 8, 3), np.uint8))


def test_a_model_lies_on_a_mesh_as_in_training():
    model = vit_jax.create("ViT-Ti_4", num_classes=3, image_size=(12, 16), hidden_size=48)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((2, 12, 16, 3)), jnp.float32)
    split = vit_jax.shard(model, {"data": 2, "fsdp": 2, "tensor": 2})
    kernel = split.transformer.blocks.mlp.fc1.kernel[...]
    depth, width, columns = kernel.shape
    assert kernel.sharding.shard_shape(kernel.shape) == (depth, width // 2, columns // 2)
    np.testing.assert_array_equal(kernel, model.transformer.blocks.mlp.fc1.kernel[...])
    assert len(model.transformer.blocks.mlp.fc1.kernel[...].devices()) == 1  # the one given stays where it was
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(split, pixels), model(pixels), atol=1e-5)
    with pytest.raises(UserError, match="Expected a Flax module"):
        vit_jax.shard("runs/mine", {"data": 8})
    with pytest.raises(UserError, match="Expected sizes"):
        vit_jax.shard(model, {"fsdp": "all"})
    with pytest.raises(UserError, match="multiply to 8 devices"):
        vit_jax.shard(model, {"data": 3})
