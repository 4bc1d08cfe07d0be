"""ImageNet's tars as TFDS would write them, whatever interrupts the writing; damaged ones by a sentence."""

import contextlib
import fcntl
import io
import itertools
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from vit_jax import UserError
from vit_jax.commands.cli import main
from vit_jax.data import imagenet, shards
from vit_jax.data.imagenet import as_jpeg, prepare_imagenet
from vit_jax.data.sources import open_source
from vit_jax.data.tars import members

SYNSETS = {"n01440764": 0, "n02105855": 230, "n15075141": 999}  # and their places among the thousand
# The first answers of the published ground truth, in the order of synsets.
VALIDATION = {1: 65, 2: 970, 3: 230, 4: 809, 5: 516, 8: 415}


def picture(seed, form="JPEG", mode="RGB"):
    channels = {"RGB": 3, "CMYK": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 7, channels), dtype=np.uint8).squeeze()
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, form)
    return buffer.getvalue()


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), 1.5  # Python's tarfile writes an extended header for the half
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


TRAIN = {
    synset: {f"{synset}_{number}.JPEG": picture(100 * place + number) for number in range(1, 6)}
    for place, synset in enumerate(SYNSETS)
}
TRAIN["n02105855"]["n02105855_2933.JPEG"] = picture(1, "PNG")
TRAIN["n02105855"]["n02105855_7.JPEG"] = picture(2, mode="CMYK")
TRAIN["n15075141"]["n15075141_54.JPEG"] = picture(3, mode="L")
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": picture(500 + number) for number in VALIDATION}


@pytest.fixture
def tars(tmp_path):
    (tmp_path / "train.tar").write_bytes(tar_of({f"{name}.tar": tar_of(files) for name, files in TRAIN.items()}))
    (tmp_path / "val.tar").write_bytes(tar_of(VAL))
    return tmp_path / "train.tar", tmp_path / "val.tar"


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_tfds(folder):
    """The same pictures, written by TFDS's own builder."""
    import tensorflow_datasets as tfds

    folder.mkdir()
    theirs = tfds.builder("imagenet2012", data_dir=folder / "empty")
    train = {name: (image, synset) for synset, files in TRAIN.items() for name, image in files.items()}
    names = theirs.info.features["label"].names
    val = {name: (VAL[name], names[label]) for name, label in zip(VAL, VALIDATION.values(), strict=True)}

    class MadeUp(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "imagenet2012"
        VERSION = theirs.version
        pkg_dir_path = folder

        def _info(self):
            return self.dataset_info_from_configs(features=theirs.info.features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples(train), "validation": self._generate_examples(val)}

        def _generate_examples(self, pictures):
            for name, (image, synset) in pictures.items():
                yield name, {"image": io.BytesIO(as_jpeg(image, name)), "label": synset, "file_name": name}

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        MadeUp(data_dir=folder / "out", file_format="array_record").download_and_prepare()
    return folder / "out"


def records(path):
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    found = reader.read_all()
    reader.close()
    return found


def test_the_files_are_those_of_tfds(tars, tmp_path):
    from tensorflow_datasets.proto import tf_example_pb2

    prepare_imagenet(*tars, tmp_path / "ours")
    theirs = by_tfds(tmp_path / "tfds")
    assert set(tree(tmp_path / "ours")) == set(tree(theirs))
    for name, content in tree(theirs).items():
        if "array_record" in name:  # whose features TFDS writes in any order
            ours = records(tmp_path / "ours" / name)
            parsed = [[tf_example_pb2.Example.FromString(x) for x in found] for found in (ours, records(theirs / name))]
            assert parsed[0] == parsed[1]
            for record in ours:
                assert record.index(b"file_name") < record.index(b"image") < record.rindex(b"label")
        elif not name.endswith("dataset_info.json"):  # its texts are theirs
            assert (tmp_path / "ours" / name).read_bytes() == content


def test_the_command_says_what_is_there_and_recipes_find_it(tars, tmp_path, capsys):
    assert main(["prepare", "--imagenet", *map(str, tars), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "train      18 pictures (a part: ImageNet has 1,281,167)" in said
    assert "validation 6 pictures (a part: ImageNet has 50,000)" in said
    assert "3 of 1,000" in said
    assert "2 as JPEG in RGB: n02105855_2933.JPEG, n02105855_7.JPEG" in said
    train, val = (
        open_source("imagenet2012", split, tfds_data_dir=str(tmp_path / "out")) for split in ("train", "validation")
    )
    assert (len(train), len(val), len(train.class_names)) == (18, 6, 1000)
    found = {bytes(val[place].image): val[place].label for place in range(6)}
    assert found == {VAL[f"ILSVRC2012_val_{number:08d}.JPEG"]: label for number, label in VALIDATION.items()}
    stored = [(bytes(train[place].image), train[place].label) for place in range(18)]
    given = {image: SYNSETS[synset] for synset, files in TRAIN.items() for image in files.values()}
    assert len(given.items() & set(stored)) == 16  # all but the two that are written anew
    for image, label in set(stored) - given.items():
        assert (label, Image.open(io.BytesIO(image)).format, Image.open(io.BytesIO(image)).mode) == (230, "JPEG", "RGB")
    assert len({label for _, label in stored[:8]}) > 1  # shuffled: train[:99%] leaves no class out
    assert main(["prepare", "--imagenet", *map(str, tars), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_odd_pictures_keep_their_colours():
    cmyk = np.asarray(Image.open(io.BytesIO(as_jpeg(TRAIN["n02105855"]["n02105855_7.JPEG"], "x"))), np.float32)
    there = np.asarray(Image.open(io.BytesIO(TRAIN["n02105855"]["n02105855_7.JPEG"])), np.float32) / 255
    assert np.abs(cmyk / 255 - (1 - there[..., :3]) * (1 - there[..., 3:])).mean() < 0.1  # JPEG of noise


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(tars, tmp_path, monkeypatch):
    from tensorflow_datasets.core.utils import shard_utils

    monkeypatch.setattr(shard_utils.ShardConfig, "get_number_shards", lambda *args: 3)
    prepare_imagenet(*tars, tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    assert len(whole) == 2 * 3 + 3
    for start in itertools.count(1):  # ends at its own first, second, ... sync to disk
        syncs = itertools.count(1)

        def sync(handle, syncs=syncs, start=start):
            if next(syncs) == start:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", sync)
        with contextlib.suppress(KeyboardInterrupt):
            prepare_imagenet(*tars, tmp_path / "out")
            break
        (unfinished,) = tmp_path.glob("out/*/*.unfinished")
        assert not (unfinished.parent / "5.1.0").exists()
        (unfinished / "imagenet2012-train.array_record-00002-of-00003.part").write_bytes(b"half a shard")
        if start == 3:  # half a line
            noted = unfinished / shards.NOTED
            noted.write_text(noted.read_text()[:-9])
    assert start > 3
    assert tree(tmp_path / "out") == whole


def test_it_is_not_continued_from_other_tars_nor_by_two(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "set_splits", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_imagenet(*tars, tmp_path / "out")
    (unfinished,) = tmp_path.glob("out/*/*.unfinished")
    handle = os.open(unfinished, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="one process at a time"):
        prepare_imagenet(*tars, tmp_path / "out")
    os.close(handle)
    tars[1].write_bytes(tar_of(dict(list(VAL.items())[1:])))
    with pytest.raises(UserError, match="begun from"):
        prepare_imagenet(*tars, tmp_path / "out")


def test_names_with_folders_before_them(tars, tmp_path):
    tars[1].write_bytes(tar_of({f"./val/{name}": image for name, image in VAL.items()} | {"./val/._x": b"a Mac's"}))
    assert prepare_imagenet(*tars, tmp_path / "out")["splits"] == {"train": 18, "validation": 6}


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


INNER = tar_of({f"{name}.tar": tar_of(files) for name, files in TRAIN.items()})
DAMAGED = {
    "cut off": (INNER[: len(INNER) // 2], "goes on beyond its end|in the middle"),
    "cut off at a picture": (INNER[: 512 * (len(INNER) // 1024)], "goes on beyond its end|in the middle"),
    "a web page": (b"<html>log in first</html>" * 50, "byte 0"),
    "empty": (b"", "in the middle"),
    "a flipped bit": (flipped(INNER, INNER.index(b"n02105855.tar") + 3), "bad checksum at byte"),
    "a flipped bit within": (flipped(INNER, INNER.index(b"n02105855_3.JPEG") + 3), "bad checksum at byte"),
    "the other tar": (tar_of(VAL), "first and ILSVRC2012_img_val.tar second"),
    "another class": (tar_of({"n00000001.tar": tar_of({"n00000001_1.JPEG": picture(1)})}), "n01440764.tar"),
    "no pictures": (tar_of({}), "holds none"),
    "no picture": (tar_of({"n01440764.tar": tar_of({"n01440764_1.JPEG": b"text"})}), "n01440764_1.JPEG"),
    "a class twice": (tar_of({f"{place}/n01440764.tar": tar_of(TRAIN["n01440764"]) for place in "ab"}), "comes twice"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_tars_are_a_sentence(damage, tars, tmp_path):
    content, words = DAMAGED[damage]
    tars[0].write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        prepare_imagenet(*tars, tmp_path / "out")
    assert str(tars[0]) in str(error.value) or "twice" in words
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*/5.1.0"))


def test_the_validation_tar_is_no_training_tar(tars, tmp_path):
    with pytest.raises(UserError, match=r"got n01440764\.tar"):
        prepare_imagenet(tars[0], tars[0], tmp_path / "out")
    for wrong in (tmp_path / "nowhere.tar", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            prepare_imagenet(tars[0], wrong, tmp_path / "out")


def test_a_full_disk_is_said_before_anything_is_written(tars, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="GB free"):
        prepare_imagenet(*tars, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_members_are_where_tarfile_says(tars):
    with tarfile.open(tars[0]) as tar:
        given = [(entry.name, entry.offset_data, entry.size) for entry in tar]
    handle = os.open(tars[0], os.O_RDONLY)
    assert [tuple(member) for member in members(handle, tars[0], 0, tars[0].stat().st_size)] == given
    os.close(handle)
