"""TFRecord sets, written by tensorboardX's writer, become the ArrayRecord set that they were made from."""

import json
import struct
import sys

import pytest
from tensorboardX.record_writer import RecordWriter

from tests.test_data import fill
from vit_jax import UserError
from vit_jax.commands.cli import main
from vit_jax.data import tfrecord
from vit_jax.data.prepare import prepare
from vit_jax.data.sources import open_source

pytest.importorskip("google_crc32c", reason="needs google-crc32c: pip install 'vit_jax[tfrecord]'")


@pytest.fixture
def sets(tmp_path):
    """The same data set in ArrayRecord and in TFRecord."""
    from array_record.python import array_record_module

    for name in ("ant", "cat"):
        fill(tmp_path / "in" / name, 12, "jpg")
    prepare(tmp_path / "in", tmp_path / "array")
    array, record = tmp_path / "array/pictures/1.0.0", tmp_path / "record"
    record.mkdir()
    for path in array.iterdir():
        if "array_record" not in path.name:
            (record / path.name).write_bytes(path.read_bytes())
            continue
        reader = array_record_module.ArrayRecordReader(str(path))
        writer = RecordWriter(str(record / path.name.replace("array_record", "tfrecord")))
        for content in reader.read_all():
            writer.write(content)
        writer.close()
        reader.close()
    info = json.loads((record / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (record / "dataset_info.json").write_text(json.dumps(info))
    return array, record


def test_the_records_are_the_same(sets, tmp_path, capsys):
    array, record = sets
    assert main(["prepare", "--tfrecord", str(record), str(tmp_path / "out")]) == 0
    assert "--config.dataset=pictures" in capsys.readouterr().out
    made = tmp_path / "out/pictures/1.0.0"
    assert {path.name for path in made.iterdir()} == {path.name for path in array.iterdir()}
    for path in array.glob("*array_record*"):
        assert (made / path.name).read_bytes() == path.read_bytes()
    for split in ("train", "test"):
        ours, theirs = open_source(str(made), split), open_source(str(array), split)
        assert ours.class_names == theirs.class_names
        assert [(ours[n].image, ours[n].label) for n in range(len(theirs))] == [
            (theirs[n].image, theirs[n].label) for n in range(len(theirs))
        ]


def test_training_names_the_command(sets, tmp_path):
    with pytest.raises(UserError, match=rf"is in tfrecord: `vit-jax prepare --tfrecord {sets[1]} OUT`"):
        open_source(str(sets[1]), "train")


def test_damage_is_found_wherever_it_is(tmp_path):
    writer = RecordWriter(str(tmp_path / "x"))
    for content in (b"first", b"", b"third record"):
        writer.write(content)
    writer.close()
    whole = (tmp_path / "x").read_bytes()
    assert list(tfrecord.records(tmp_path / "x")) == [b"first", b"", b"third record"]
    for place in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            list(tfrecord.records(tmp_path / "x"))
        (tmp_path / "x").write_bytes(whole[:place])
        if place not in (0, 21, 37):  # where a record ends
            with pytest.raises(UserError, match="is damaged"):
                list(tfrecord.records(tmp_path / "x"))
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**40) + whole[8:])
    with pytest.raises(UserError, match="is damaged"):
        list(tfrecord.records(tmp_path / "x"))


def test_what_cannot_be_copied_is_a_sentence(sets, tmp_path, monkeypatch):
    array, record = sets
    out = tmp_path / "out"
    with pytest.raises(UserError, match=f"holds no dataset_info.json: give {array}"):
        tfrecord.prepare_tfrecord(array.parent, out)
    with pytest.raises(UserError, match="can be trained from as it is"):
        tfrecord.prepare_tfrecord(array, out)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "google_crc32c", None)
        with pytest.raises(UserError, match=r"vit_jax\[tfrecord\]"):
            tfrecord.prepare_tfrecord(record, out)
    train, test = sorted(record.glob("*.tfrecord-*"), key=lambda path: "test" in path.name)
    content = train.read_bytes()
    train.write_bytes(content[: -(len(content) // 20 + 16)])
    with pytest.raises(UserError, match="is damaged"):
        tfrecord.prepare_tfrecord(record, out)
    first = struct.unpack("<Q", content[:8])[0] + 16
    train.write_bytes(content[first:])
    with pytest.raises(UserError, match="21 records of 22"):
        tfrecord.prepare_tfrecord(record, out)
    train.write_bytes(content)
    test.unlink()
    with pytest.raises(UserError, match="1 are missing"):
        tfrecord.prepare_tfrecord(record, tmp_path / "other")
    assert not (out / "pictures/1.0.0").exists()
    assert not (tmp_path / "other").exists()
    test.write_bytes(b"")
