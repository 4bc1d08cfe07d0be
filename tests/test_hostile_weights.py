"""Damaged and hostile files of weights: each loads with the numbers that were written, or is refused in one sentence.

Never another exception, never a name called, never more time or memory than the file is worth. The thousands of
`test_random_damage_at_length` take minutes; a few hundred of the same run always.
"""

import json
import math
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from vit_jax import UserError, configuration
from vit_jax.conversion.convert import Weights, param_shapes, read, write
from vit_jax.conversion.files import open_archive
from vit_jax.conversion.tensors import Tensor

MOST_SECONDS, MOST_BYTES = 4.0, 96 * 2**20  # of one file; the machine may be busy, so process time
FORMATS = ("x.npz", "compressed.npz", "zipped.pth", "stream.pth", "x.safetensors")
CHECKED = ("x.npz", "compressed.npz", "zipped.pth")  # formats with checksums: damage never passes


def defaults():
    return configuration.plain(configuration.default_fields())


@pytest.fixture(scope="module")
def tiny():
    """Weights of the smallest classifier."""
    config = defaults()
    config["pp"]["crop"] = 8
    config["model"] |= {"hidden_size": 8, "patches": {"size": [4, 4]}, "norm_eps": 1e-6, "init": "mae"}
    config["model"]["transformer"] |= {"num_layers": 2, "num_heads": 2, "mlp_dim": 8}
    config["model"]["activation"] = "gelu_erf"
    rng = np.random.default_rng(0)
    params = {
        path: rng.standard_normal(shape).astype(np.float32) for path, shape in sorted(param_shapes(config, 3).items())
    }
    return Weights(params, config, 3, None, "native")


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory):
    """One whole file of every format, and a folder."""
    folder = tmp_path_factory.mktemp("good")
    write(tiny, folder / "x.npz", "google")
    with np.load(folder / "x.npz") as arrays:
        np.savez_compressed(folder / "compressed.npz", **arrays)
    write(tiny, folder / "x.safetensors", "timm")
    write(tiny, folder / "hf", "hf")
    try:
        import torch
    except ImportError:
        return folder
    tensors = open_archive(folder / "x.safetensors").tensors
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    for name, zipped in (("zipped.pth", True), ("stream.pth", False)):
        torch.save({"model": state, "epoch": 3}, folder / name, _use_new_zipfile_serialization=zipped)
    return folder


def refusal(action):
    """The one sentence of a refusal, None where `action` went through; bounded in time."""
    began, said = time.process_time(), None
    try:
        action()
    except UserError as error:
        said = str(error)
    assert time.process_time() - began < MOST_SECONDS
    if said is not None:
        assert said.startswith("Expected")
        assert "\n" not in said
    return said


def damaged(content, rng):
    """The same bytes with something wrong, as disks, networks and people make it."""
    content = bytearray(content)
    kind = rng.choice(("bit", "bit", "bytes", "cut", "gone", "twice", "zeros", "number", "start"))
    place = rng.randrange(len(content))
    length = rng.randrange(1, 64)
    if kind == "bit":
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randrange(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "gone":
        del content[place : place + length]
    elif kind == "twice":
        content[place:place] = content[place : place + length]
    elif kind == "zeros":
        content[place : place + length] = bytes(length)
    elif kind == "number":  # a length, an offset, a count
        number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1)) % 2**64
        content[place : place + 8] = struct.pack("<Q", number)[: rng.choice((2, 4, 8))]
    else:  # the beginning, and the end, where directories lie
        for _ in range(3):
            content[rng.choice((rng.randrange(min(200, len(content))), -1 - rng.randrange(100)))] = rng.randrange(256)
    return bytes(content)


def fuzz(good, folder, name, count, seed):
    if not (good / name).exists():
        pytest.skip("writes .pth: the `torch` extra is not installed")
    whole = {key: np.array(tensor) for key, tensor in open_archive(good / name).tensors.items()}
    content, path = (good / name).read_bytes(), folder / name
    rng = random.Random(f"{name} {seed}")
    refused = 0
    for number in range(count):
        path.write_bytes(damaged(content, rng))
        found = {}

        def everything(found=found):
            found |= {key: np.array(tensor) for key, tensor in open_archive(path).tensors.items()}

        said = refusal(everything)
        refused += said is not None
        if said is None and name in CHECKED:
            assert all(np.array_equal(found[key], whole[key]) for key in found), f"{name} {seed} {number}"
    return refused


@pytest.mark.parametrize("name", FORMATS)
def test_random_damage(name, good, tmp_path):
    assert fuzz(good, tmp_path, name, 150, seed=0) > 15


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_random_damage_at_length(name, good, tmp_path):
    assert fuzz(good, tmp_path, name, 4000, seed=1) > 400


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "stream.pth"])
def test_random_damage_to_the_whole_way(name, good, tmp_path):
    """As `load` goes it: recognised, described, matched."""
    if not (good / name).exists():
        pytest.skip("writes .pth: the `torch` extra is not installed")
    content, rng, fields = (good / name).read_bytes(), random.Random(2), configuration.completed
    said = []
    for _ in range(12):
        (tmp_path / name).write_bytes(damaged(content, rng))
        said.append(refusal(lambda: read(tmp_path / name, fields, num_heads=2)))
    assert any(said)


# Values that no config.json should have; null means "not told" and is the default.
WRONG = (
    float("nan"),
    float("inf"),
    -1,
    0,
    1.5,
    2**40,
    10**400,
    "x",
    [],
    {},
    [1, 2, 3],
    [-1, 4],
    [[[[]]]],
    True,
    "\ud800",
)
FIELDS = {
    "config.json": ("num_attention_heads", "layer_norm_eps", "hidden_act", "image_size", "patch_size", "hidden_size",
                    "num_hidden_layers", "intermediate_size", "num_channels"),
    "preprocessor_config.json": ("image_mean", "image_std", "resample", "size", "do_center_crop"),
}  # fmt: skip
# Of these, some values of WRONG are fine.
FINE = {
    "layer_norm_eps": (0,), "resample": (0,), "do_center_crop": (True,), "size": ({},), "image_mean": ([1, 2, 3],),
    "image_std": ([1, 2, 3],),
}  # fmt: skip


@pytest.mark.parametrize(("place", "field"), [(place, field) for place, fields in FIELDS.items() for field in fields])
def test_wrong_values_in_json(place, field, good, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    for path in (good / "hf").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    told = json.loads((folder / place).read_text())
    told.setdefault("do_center_crop", field == "size")
    fields = configuration.completed
    for value in WRONG:
        (folder / place).write_text(json.dumps(told | {field: value}))
        said = refusal(lambda: read(folder, fields))
        if value not in FINE.get(field, ()):
            assert said is not None, (field, value)
            assert field in said, (field, value, said)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "3", "null", "[" * 100_000, '{"a":' * 100_000, "\x00", '{"hidden_act": ' + "1" * 5000 + "}"],
    ids=range(9),
)
def test_json_that_is_none(content, good, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((good / "hf" / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(content)
    assert "config.json" in refusal(lambda: read(tmp_path, configuration.completed))


def test_an_index_names_only_files_of_its_folder(good, tmp_path):
    (tmp_path / "outside.safetensors").write_bytes((good / "hf" / "model.safetensors").read_bytes())
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), 3, None):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        assert refusal(lambda: open_archive(folder))


@pytest.mark.parametrize(
    "given",
    [{"num_heads": -1}, {"num_heads": 0}, {"num_heads": 3}, {"num_heads": "x"}, {"num_heads": 10**9}, {"num_heads": 2.0},
     {"stored_size": 10**9}, {"stored_size": -8}, {"stored_size": (8,)}, {"stored_size": 0}, {"any_numbers": 1},
     {"heads": 2}],
    ids=str,
)  # fmt: skip
def test_wrong_values_by_hand(given, good):
    assert refusal(lambda: read(good / "x.safetensors", configuration.completed, **{"num_heads": 2} | given))


def test_norm_eps_of_infinity_by_its_bits_in_no_file(good):
    """The folder that the wrong values were put into is fine as it is."""
    assert refusal(lambda: read(good / "hf", configuration.completed)) is None


# ---- numbers

NUMBERS = {
    "complex": (np.complex64, "complex64"), "whole": (np.int32, "int32"), "bytes": (np.uint8, "uint8"),
    "bool": (np.bool_, "bool"), "nan": (np.nan, "not"), "inf": (np.inf, "not"), "too large": (1e300, "not"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_numbers_only_when_asked_for(kind, suffix, good, tmp_path):
    value, word = NUMBERS[kind]
    name = {".npz": "Transformer/encoder_norm/scale", ".safetensors": "norm.weight"}[suffix]
    arrays = {key: np.array(tensor) for key, tensor in open_archive(good / f"x{suffix}").tensors.items()}
    if isinstance(value, type):
        arrays[name] = arrays[name].astype(value)
    else:
        arrays[name] = arrays[name].astype(np.float64)
        arrays[name][3] = value
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    given = {} if suffix == ".npz" else {"num_heads": 2}
    said = refusal(lambda: read(path, configuration.completed, **given))
    assert name in said
    assert word in said
    with np.errstate(over="ignore"):
        expected = np.real(arrays[name]).astype(np.float32)
    found = read(path, configuration.completed, **given, any_numbers=True)
    np.testing.assert_array_equal(found.params["norm/scale"], expected)


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2", "fortran"])
def test_other_floats_are_the_same_numbers(kind, good, tmp_path):
    arrays = {key: np.array(tensor) for key, tensor in open_archive(good / "x.npz").tensors.items()}
    stored = {
        key: np.asfortranarray(array) if kind == "fortran" else array.astype(kind) for key, array in arrays.items()
    }
    np.savez(tmp_path / "x.npz", **stored)
    found, whole = read(tmp_path / "x.npz", configuration.completed), read(good / "x.npz", configuration.completed)
    for path, value in whole.params.items():
        np.testing.assert_array_equal(found.params[path], value.astype("<f2") if kind == "<f2" else value)


# ---- sizes that lie


def npy(descr="'<f4'", shape="(2,)", body=b"\0" * 8, version=1):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + body


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def replaced(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


# The compression of a member as the directory has it: none, and one that does not exist.
METHOD = (b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0c\0")
NPZ = {
    "a shape of terabytes": lambda p: zipped(p, [("a.npy", npy(shape="(1000000, 1000000)"))]),
    "a shape beyond 64 bits": lambda p: zipped(p, [("a.npy", npy(shape=f"({10**40},)"))]),
    "a shape of 100 axes": lambda p: zipped(p, [("a.npy", npy(shape="(" + "1, " * 100 + ")", body=b"\0" * 4))]),
    "a negative shape": lambda p: zipped(p, [("a.npy", npy(shape="(-2,)"))]),
    "objects": lambda p: zipped(p, [("a.npy", npy(descr="'|O'", body=pickle.dumps([1])))]),
    "records": lambda p: zipped(p, [("a.npy", npy(descr="[('a', '<f4')]"))]),
    "text": lambda p: zipped(p, [("a.npy", npy(descr="'<U2'"))]),
    "no such type": lambda p: zipped(p, [("a.npy", npy(descr="'<f3'"))]),
    "parentheses": lambda p: zipped(p, [("a.npy", npy(shape="(" * 9000))]),
    "a header of 4 GiB": lambda p: zipped(p, [("a.npy", b"\x93NUMPY\x02\0\xff\xff\xff\xff{")]),
    "no array": lambda p: zipped(p, [("a.npy", b"hello"), ("b.txt", b"")]),
    "nothing": lambda p: zipped(p, []),
    "a bomb": lambda p: zipped(p, [("a.npy", npy(shape="(50000000,)", body=bytes(200_000_000)))], zipfile.ZIP_DEFLATED),
    "many members": lambda p: zipped(p, [(f"{n}.npy", b"") for n in range(45_000)]),
    "lzma": lambda p: replaced(
        zipped(p, [("a.npy", npy(body=b"1234567"))], zipfile.ZIP_LZMA), b"\x09\x04", b"\x09\x07"
    ),
    "an unknown compression": lambda p: replaced(zipped(p, [("a.npy", npy())]), *METHOD),
}


def measured(path, **given):
    """A refusal that took little memory."""
    tracemalloc.start()
    try:
        said = refusal(lambda: read(path, configuration.completed, **given))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES + 2 * path.stat().st_size
    finally:
        tracemalloc.stop()
    return said


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", NPZ)
def test_npz_that_lies(kind, tmp_path):
    assert measured(NPZ[kind](tmp_path / "x.npz") or tmp_path / "x.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_npz_with_one_name_twice(tmp_path):
    assert "twice" in measured(zipped(tmp_path / "x.npz", [("a.npy", npy()), ("a.npy", npy())]))


# Pickles by hand: opcodes of Python's `pickletools`.
FLOATS, REBUILD, ORDERED = (
    b"ctorch\nFloatStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


def storage(key=b"0", numbers=b"K\x08", kind=FLOATS, rest=b""):
    """8 float32 numbers."""
    return b"(" + text(b"storage") + kind + text(key) + text(b"cpu") + numbers + rest + b"tQ"


def tensor(offset=b"K\0", size=b"(K\x08t", stride=b"(K\x01t", held=None):
    held = storage() if held is None else held
    return REBUILD + b"(" + held + offset + size + stride + b"\x89" + ORDERED + b")RtR"


def pth(path, program, content=bytes(32)):
    return zipped(path, [("archive/data.pkl", b"\x80\x02" + program + b"."), ("archive/data/0", content)])


def state(*tensors):
    return b"}(" + b"".join(text(b"t%d" % n) + part for n, part in enumerate(tensors)) + b"u"


DOUBLING = b")q\0" + b"h\0h\0\x86q\0" * 60  # a tuple of itself twice, 60 times: 2**60 to walk
LONG = b"\x8b" + struct.pack("<i", 2**31 - 1)
PTH = {
    "a number": b"K\x07",
    "nothing": b"N",
    "a list": b"](K\x01K\x02e",
    "text": text(b"hello"),
    "an empty dict": b"}",
    "a model that is a number": b"}" + text(b"model") + b"K\x03s",
    "no opcodes": b"",
    "an unknown opcode": b"\xff",
    "a stack that is empty": b"000",
    "a long number cut off": LONG,
    "bytes of 2**62": b"\x8e" + struct.pack("<Q", 2**62),
    "text of 2**62": b"\x8d" + struct.pack("<Q", 2**62),
    "a memo of 2**32": b"Nr\xff\xff\xff\xff" + b"j\xff\xff\xff\xff",
    "a million digits": b"I" + b"9" * 1_000_000 + b"\n",
    "nested 30,000 deep": b")" + b"\x85" * 30_000,
    "nested names": b")" + b"\x85" * 30_000 + b"q\0h\0\x93",
    "a doubling tuple": DOUBLING,
    "a doubling tuple as key": b"}" + DOUBLING + b"N" + b"s",
    "a doubling tuple in a set": DOUBLING + b"\x8f(h\0\x90",
    "a doubling tuple as name": DOUBLING + b"h\0\x93",
    "a doubling tuple as storage": DOUBLING + b"h\0Q",
    "a doubling tuple as key of a storage": b"(" + text(b"storage") + FLOATS + DOUBLING + b"h\0K\x08tQ",
    "a list copied over and over": b"](" + b"N" * 100_000 + b"eq\0" + (ORDERED + b"h\0\x85R0") * 100_000,
    "lists of one list, copied": b"]("
    + b"N" * 1000
    + b"eq\0]("
    + b"h\0" * 1000
    + b"eq\1"
    + (ORDERED + b"h\1\x85R0") * 99,
    "a million steps": b"N0" * 600_000,
    "a thousand names": b"ctorch\nx\n0" * 5_000,
    "a long key": b"}" + text(b"x" * 1_000_000) + tensor() + b"s",
    "a shape of terabytes": state(tensor(size=b"(" + b"J\0\0\0\x40" * 3 + b"t", stride=b"(K\0K\0K\0t")),
    "one number expanded": state(tensor(size=b"(J\0\0\0\x40t", stride=b"(K\0t")),
    "a negative stride": state(tensor(offset=b"K\x07", stride=b"(J\xff\xff\xff\xfft")),
    "a negative offset": state(tensor(offset=b"J\xff\xff\xff\xff")),
    "a negative size": state(tensor(size=b"(J\xff\xff\xff\xfft")),
    "an offset past the end": state(tensor(offset=b"K\x01")),
    "axes without strides": state(tensor(stride=b")")),
    "a size of floats": state(tensor(size=b"(G@ \0\0\0\0\0\0t")),
    "a size that is text": state(tensor(size=text(b"8"))),
    "100 axes": state(tensor(size=b"(" + b"K\x01" * 100 + b"t", stride=b"(" + b"K\x01" * 100 + b"t")),
    "one storage 200 times": state(*[tensor()] * 200),
    "no such storage": state(tensor(held=storage(key=b"../../etc/passwd"))),
    "a storage that is a number": state(tensor(held=b"K\x03Q")),
    "a tensor of nothing": state(tensor(held=b"N")),
    "complex": state(tensor(held=storage(kind=b"ctorch\nComplexFloatStorage\n"), size=b"(K\x04t")),
}


@pytest.mark.parametrize("kind", PTH)
def test_pth_that_lies(kind, tmp_path):
    assert measured(pth(tmp_path / "x.pth", PTH[kind]))


@pytest.mark.parametrize("kind", PTH)
def test_stream_pth_that_lies(kind, tmp_path):
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path = tmp_path / "x.pth"
    path.write_bytes(
        magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + b"\x80\x02" + PTH[kind] + b"." + pickle.dumps(["0"], 2)
        + struct.pack("<Q", 8) + bytes(32)
    )  # fmt: skip
    assert measured(path)
    path.write_bytes(b"\x80\x02" + PTH[kind] + b".")
    assert measured(path)


def test_these_pickles_by_hand_are_pickles(tmp_path):
    """The same pieces, honest."""
    numbers = np.arange(8, dtype=np.float32)
    program = state(tensor(), tensor(offset=b"K\x02", size=b"(K\x03t"))
    archive = open_archive(pth(tmp_path / "x.pth", program, numbers.tobytes()))
    np.testing.assert_array_equal(archive.tensors["t0"], numbers)
    np.testing.assert_array_equal(archive.tensors["t1"], numbers[2:5])


@pytest.mark.parametrize("name", ["cos\nsystem\n", "cbuiltins\neval\n", "cposix\nsystem\n", "csubprocess\nPopen\n"])
def test_names_are_never_called(name, tmp_path):
    mark = tmp_path / "ran"
    program = name.encode() + text(f"touch {mark}".encode()) + b"\x85R"
    assert "nothing of it was executed" in measured(pth(tmp_path / "x.pth", program))
    (tmp_path / "y.pth").write_bytes(b"\x80\x02" + program + b".")
    assert "nothing of it was executed" in measured(tmp_path / "y.pth")
    assert not mark.exists()


def safe(header, body=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + body


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SAFE = {
    "a header of 2**63": safe(b"{}", length=2**63),
    "a header of 100 MB": safe(b"{" + b" " * 100_000_000),
    "a header past the end": safe(b"{}", length=1000),
    "nested": safe(b"[" * 1_000_000),
    "a shape of terabytes": safe({"a": ONE | {"shape": [2**40]}}, bytes(8)),
    "a shape beyond 64 bits": safe({"a": ONE | {"shape": [2**62, 2**62]}}, bytes(8)),
    "a negative shape": safe({"a": ONE | {"shape": [-2]}}, bytes(8)),
    "offsets past the end": safe({"a": ONE | {"data_offsets": [0, 2**40]}}, bytes(8)),
    "offsets the wrong way": safe({"a": ONE | {"data_offsets": [8, 0]}}, bytes(8)),
    "two in one place": safe({"a": ONE, "b": ONE}, bytes(8)),
    "an unknown type": safe({"a": ONE | {"dtype": "F99"}}, bytes(8)),
    "eight bits": safe({"patch_embed.proj.weight": ONE | {"dtype": "F8_E4M3", "shape": [2, 1, 2, 2]}}, bytes(8)),
    "nothing": safe({}),
    "many": safe({f"blocks.{n}.x": ONE | {"shape": [0], "data_offsets": [0, 0]} for n in range(10_000)}),
}


@pytest.mark.parametrize("kind", SAFE)
def test_safetensors_that_lie(kind, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(SAFE[kind])
    assert measured(tmp_path / "x.safetensors")


# ---- models that lie, in files that are whole: shapes without numbers, numberings with gaps


def refused_tensors(shapes, tmp_path, **given):
    path = tmp_path / "x.npz"
    bodies = {name: bytes(4 * math.prod(shape)) for name, shape in shapes.items()}
    zipped(path, [(f"{name}.npy", npy(shape=str(shape), body=bodies[name])) for name, shape in shapes.items()])
    return measured(path, **given)


@pytest.mark.parametrize(
    "shapes",
    [
        {"embedding/kernel": ()},
        {"embedding/kernel": (4, 4, 3, 0)},
        {"embedding/kernel": (4, 4, 3, 8)},
        {"embedding/kernel": (4, 4, 3, 8), "Transformer/encoderblock/x": (10**9, 0)},
        {"embedding/kernel": (4, 4, 3, 8), "Transformer/encoderblock_999999999/x": (1,)},
        {"embedding/kernel": (4, 4, 3, 8), "Transformer/encoderblock_" + "9" * 5000 + "/x": (1,)},
        {"embedding/kernel": (4, 4, 3, 8), "conv_root/kernel": (7, 7, 3, 65)},
        {"patch_embed.proj.weight": (8, 3, 4)},
        {"patch_embed.proj.weight": (8, 3, 4, 4), "blocks.77777.x": (1,)},
        {"patch_embed.proj.weight": (8, 3, 4, 4), "blocks.0.mlp.fc1.weight": (0, 10**15)},
        {"embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4)},
        {f"x{n}" + "y" * 100: (1,) for n in range(2000)},
    ],
    ids=range(12),
)
def test_models_that_lie(shapes, tmp_path):
    assert len(refused_tensors(shapes, tmp_path, num_heads=2)) < 2000


def test_pipes_and_devices_are_no_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "x.npz")
    assert "pipe" in refusal(lambda: read(tmp_path / "x.npz", configuration.completed))


def test_what_is_not_asked_for_is_not_read(good, monkeypatch):
    """Describing a file takes shapes alone."""
    read_numbers = []
    real = Tensor.__array__
    monkeypatch.setattr(
        Tensor, "__array__", lambda self, *a, **k: read_numbers.append(self.shape) or real(self, *a, **k)
    )
    open_archive(good / "x.npz")
    with pytest.raises(UserError, match="num_heads"):
        read(good / "x.safetensors", configuration.completed)
    assert not read_numbers
