"""Pictures as callers and command lines give them: one way in for all of them, and a sentence for what is none."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

import vit_jax
from vit_jax import UserError, configuration
from vit_jax.api import Trained
from vit_jax.commands import cli


@pytest.fixture(scope="module")
def trained():
    small = {"transformer": {"num_layers": 1, "num_heads": 2, "mlp_dim": 16}, "patches": {"size": (8, 8)}}
    model = vit_jax.create("ViT-Ti_16", num_classes=3, image_size=16, hidden_size=16, **small)
    config = configuration.default_fields()
    config.pp.update({"crop": 16, "resize": 20})
    return Trained(model, configuration.plain(config), ("ant", "bee", "cat"), 7)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_one_picture_in_any_form_is_the_same_batch_of_one(trained, picture):
    import jax.numpy as jnp

    image = Image.open(picture)
    array = np.asarray(image)
    expected = trained.preprocess([str(picture)])
    assert expected.shape == (1, 16, 16, 3)
    forms = [
        str(picture),
        picture,
        picture.read_bytes(),
        bytearray(picture.read_bytes()),
        image,
        array,
        jnp.asarray(array),
    ]
    for form in forms:
        for given in (form, [form], (form,)):
            np.testing.assert_array_equal(trained.preprocess(given), expected)
    for batch in (np.stack([array] * 4), jnp.stack([array] * 4), [*forms[:3], array]):
        np.testing.assert_array_equal(trained.preprocess(batch), np.repeat(expected, 4, 0))
    assert trained(array).shape == (1, 3)
    assert trained(str(picture)).shape == (1, 3)
    (tokens,) = vit_jax.features(trained, array)
    np.testing.assert_array_equal(tokens, vit_jax.features(trained, str(picture))[0])
    np.testing.assert_array_equal(tokens, vit_jax.features(trained.model, trained.pixels(picture))[0])


def test_channels_of_arrays_are_made_to_fit_as_those_of_files_are(trained, tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((20, 30), (20, 30, 1), (20, 30, 4)):
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array[..., 0] if shape[-1] == 1 else array).save(path := tmp_path / "y.png")
        np.testing.assert_array_equal(trained.preprocess(array), trained.preprocess(path))


PHOTO = np.zeros((20, 30, 3), np.uint8)
WRONG = {
    "nothing": (None, "NoneType"),
    "a number": (3, "int"),
    "no pictures": ([], "got none"),
    "no rows": (PHOTO[:0], "shape"),
    "an empty batch": (PHOTO[None][:0], "got none"),
    "numbers in lists": ([[1, 2], [3, 4]], "list"),
    "a list in a list": ([["x.png"]], "list"),
    "a batch in a list": ([PHOTO[None]], "shape"),
    "an iterator": (iter(["x.png"]), "list of them"),
    "a dict": ({"image": PHOTO}, "dict"),
    "floats from 0 to 1": (PHOTO / 255.0, "uint8.*float64"),
    "pixels as a model takes them": (np.zeros((1, 16, 16, 3), np.float32), "the model itself"),
    "16 bits": (PHOTO.astype(np.uint16), "uint8.*uint16"),
    "whole numbers": (PHOTO.astype(np.int64), "uint8.*int64"),
    "truth values": (PHOTO > 0, "uint8.*bool"),
    "objects": (np.asarray(["x.png"], object), "uint8.*object"),
    "channels first": (PHOTO.transpose(2, 0, 1), "channels last"),
    "two channels": (PHOTO[..., :2], "shape"),
    "five dimensions": (PHOTO[None, None], "shape"),
    "a missing file": ("missing.png", "no such file"),
    "letters": ("abc", "no such file"),
    "a name with a zero byte": ("a\0b.png", "cannot be read"),
    "bytes that are no picture": (b"hello", "cannot be read"),
    "a folder": (os.path.dirname(__file__), "a folder"),
    "a device": ("/dev/zero", "no regular file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_anything_else_is_refused_in_a_sentence(trained, case):
    given, words = WRONG[case]
    with pytest.raises(UserError, match=words):
        trained(given)
    if case != "an iterator":  # it is used up
        with pytest.raises(UserError, match=words):
            vit_jax.features(trained, given)


@pytest.mark.parametrize("wrong", ["x.png", ["x.png"], PHOTO, None])
def test_a_model_itself_takes_pixels(trained, wrong):
    with pytest.raises(UserError, match='pixels "b H W c"'):
        vit_jax.features(trained.model, wrong)


# ---- commands --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(trained, monkeypatch, capsys):
    for command in ("predict", "embed"):
        monkeypatch.setattr(f"vit_jax.commands.{command}.load", lambda path: trained)

    def call(*argv, status=0):
        try:
            found = cli.main([str(word) for word in argv])
        except SystemExit as ended:  # argparse
            found = ended.code
        captured = capsys.readouterr()
        assert found == status, captured.err
        return captured

    return call


@pytest.fixture
def folder(tmp_path, picture):
    root = tmp_path / "some"
    (root / "deep").mkdir(parents=True)
    for number in range(5):
        (root / "deep" / f"{number}.png").write_bytes(picture.read_bytes())
    (root / "broken.jpg").write_bytes(b"no picture")
    os.mkfifo(root / "pipe.jpg")
    (root / "gone.jpg").symlink_to("nothing")
    (root / "circle").symlink_to(".")
    return root


def test_predict_takes_folders_and_names_what_it_leaves_out(run, folder, picture):
    said = run("predict", "weights", picture, folder, "--json", "--batch", 2)
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["picture"] for row in rows] == [str(picture), *(str(folder / "deep" / f"{n}.png") for n in range(5))]
    assert all(row["probabilities"] == rows[0]["probabilities"] for row in rows)
    assert f"left out, unreadable: {folder}/broken.jpg" in said.err


def test_embed_is_not_ended_by_one_bad_picture(run, folder, tmp_path):
    for out in (tmp_path / "f.npz", tmp_path / "f.parquet"):
        said = run("embed", "weights", folder, "--out", out, "--batch", 2)
        assert "5 pictures x 16" in said.out
        assert f"left out, unreadable: {folder}/broken.jpg" in said.err
    found = np.load(tmp_path / "f.npz")
    assert found["feature"].shape == (5, 16)
    assert list(found["name"]) == [str(folder / "deep" / f"{n}.png") for n in range(5)]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_what_is_named_itself_must_be_a_picture(run, folder, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    broken = run(command, "weights", folder / "deep" / "0.png", folder / "broken.jpg", status=2)
    assert "broken.jpg" in broken.err
    assert not broken.out
    for name, words in (
        ("pipe.jpg", "no regular file"),
        ("gone.jpg", "a link to nothing"),
        ("none.jpg", "no such file"),
    ):
        begun = time.monotonic()
        assert words in run(command, "weights", folder / name, status=2).err
        assert time.monotonic() - begun < 60
    (tmp_path / "bad").mkdir()
    assert "found none" in run(command, "weights", tmp_path / "bad", status=2).err
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no")
    assert "none of 1 is" in run(command, "weights", tmp_path / "bad", status=2).err
    for wrong in ("0", "-1", "x"):
        assert "from 1 to" in run(command, "weights", folder, "--batch", wrong, status=2).err
    assert "from 1 to" in run("predict", "weights", folder, "--top", 0, status=2).err
    assert not list(tmp_path.glob("features*"))


def test_embed_tries_its_file_before_the_work(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vit_jax.commands.embed.load", lambda path: pytest.fail("work was begun"))
    (tmp_path / "a.npz").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for out in ("no/such/folder/f.npz", tmp_path / "a.npz", tmp_path / "file" / "f.npz", "/proc/f.npz"):
        assert "change --out" in run("embed", "weights", folder, "--out", out, status=2).err


def test_embed_leaves_an_older_file_until_the_new_one_is_whole(run, folder, tmp_path, monkeypatch):
    (tmp_path / "f.npz").write_bytes(b"old")

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert "No space left" in run("embed", "weights", folder, "--out", tmp_path / "f.npz", status=2).err
    assert (tmp_path / "f.npz").read_bytes() == b"old"
    assert not list(tmp_path.glob("*.part"))


def test_names_that_no_terminal_prints(run, tmp_path, picture):
    (tmp_path / "odd").mkdir()
    with open(os.fsencode(tmp_path / "odd") + b"/a\xff\n.png", "wb") as file:
        file.write(picture.read_bytes())
    (line,) = run("predict", "weights", tmp_path / "odd").out.splitlines()
    assert "a\\udcff\\n.png" in line
    line.encode("utf-8")
    run("embed", "weights", tmp_path / "odd", "--out", tmp_path / "f.parquet")
