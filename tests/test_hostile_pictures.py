"""Pictures and folders that nobody would make on purpose: each comes out right, or is refused in one sentence."""

import io
import os
import re
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from vit_jax import UserError, configuration
from vit_jax.contracts import Record
from vit_jax.data import decoding, folders
from vit_jax.data.decoding import UnreadablePicture, decode, open_picture
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import MAX_RESIZED, Preprocess

RED = (220, 30, 40)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def red(size=(24, 16), mode="RGB"):
    return Image.new("RGB", size, RED).convert(mode)


def corner(size=(24, 16)):
    """Red with its upper left quarter black."""
    picture = red(size)
    picture.paste((0, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return picture


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *, depth=8, colour=2, rows=b"", before=()):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(kind, data) for kind, data in before) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def png_with(kind, data):
    plain = encoded(red())
    return plain[:33] + chunk(kind, data) + plain[33:]


def png_sixteen(colour, pixel, size=4):
    row = b"\0" + struct.pack(f">{len(pixel)}H", *pixel) * size
    return png(size, size, depth=16, colour=colour, rows=row * size)


def gif(frames):
    still = encoded(red((4, 4)).quantize(2), "GIF")
    start = still.index(b"\x2c")  # the image: descriptor and data, repeated
    return still[:start] + still[start:-1] * frames + b";"


def several(kind, **options):
    pages = [red(), Image.new("RGB", (24, 16), "blue")]
    return encoded(pages[0], kind, save_all=True, append_images=pages[1:], **options)


def with_exif(exif, kind="JPEG"):
    return encoded(corner(), kind, exif=exif)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return with_exif(exif)


def adobe_cmyk(transform):
    """As Photoshop writes it: inverted, as CMYK (0) or YCCK (2)."""
    inverted = Image.merge("CMYK", [band.point(lambda v: 255 - v) for band in red(mode="CMYK").split()])
    data = encoded(inverted, "JPEG", quality=95)
    if transform:  # the marker alone would change the colours' meaning: what matters is that nothing falls over
        place = data.index(b"Adobe")
        data = data[: place + 11] + bytes([transform]) + data[place + 12 :]
    return data


def big_tiff():
    return encoded(red(), "TIFF", big_tiff=True)


def tiff_declaring(width, height):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(encoded(Image.new("L", (4, 4)), "TIFF", tiffinfo=info))
    for tag, value in ((256, width), (257, height)):
        place = data.index(struct.pack("<HHI", tag, 4, 1))
        data[place + 8 : place + 12] = struct.pack("<I", value)
    return bytes(data)


NONE_OF = "none of JPEG, PNG"
FINE = "fine"
BLACK_CORNER = {1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left"} | {
    5: "top left", 6: "top right", 7: "bottom right", 8: "bottom left", 9: "top left", 0: "top left",
}  # fmt: skip
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
CASES = {
    # what is declared, and not there
    "a PNG of 100,000 x 100,000": (lambda: png(100_000, 100_000), "pixels"),
    "a PNG a little above the bound": (lambda: png(2**14, 2**13 + 1, rows=b"\0"), "16384 x 8193 pixels, more than"),
    "a GIF screen of 65,535 x 65,535": (lambda: b"GIF89a" + b"\xff" * 4 + b"\0\0\0" + gif(1)[13:], "."),
    "a BMP of 2 billion rows": (
        lambda: encoded(red(), "BMP")[:18] + struct.pack("<ii", 9, 2**31 - 1) + encoded(red(), "BMP")[26:], "."),
    "a TIFF of 60,000 x 60,000": (lambda: tiff_declaring(60_000, 60_000), "pixels"),
    "a PPM of 99,999 x 99,999": (lambda: b"P6 99999 99999 255\n", "pixels"),
    "a WebP canvas of 16,000 x 16,000": (
        lambda: b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<IB", 10, 0) + b"\0\0\0" + b"\x7f\x3e\0" * 2,
        "."),
    "a PNG with 16 MB of text in 16 KB": (
        lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))), "MAX_TEXT_CHUNK|too large"),
    "a PNG with a profile of 16 MB in 16 KB": (
        lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24))), "MAX_TEXT_CHUNK|too large"),
    # what is no picture
    "an empty file": (lambda: b"", "empty"),
    "one byte": (lambda: b"\xff", NONE_OF),
    "an 11-byte PNG": (lambda: encoded(red())[:11], NONE_OF),
    "the start of a JPEG": (lambda: b"\xff\xd8\xff", "."),
    "zeros": (lambda: bytes(10_000), NONE_OF),
    "text": (lambda: b"hello", NONE_OF),
    "a web page": (lambda: b"<!doctype html><title>404</title>", NONE_OF),
    "an SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', NONE_OF),
    "an EPS, which would start Ghostscript": (lambda: EPS, NONE_OF),
    "a PDF": (lambda: b"%PDF-1.4\n1 0 obj\n", NONE_OF),
    "an icon": (lambda: encoded(red((16, 16)), "ICO"), NONE_OF),
    "a PNG without pixels": (lambda: png(4, 4), "."),
    "a PNG of 0 x 0": (lambda: png(0, 0), "."),
    # good pixels in odd clothes
    "CMYK": (lambda: encoded(red(mode="CMYK"), "JPEG", quality=95), RED),
    "CMYK of Adobe": (lambda: adobe_cmyk(0), FINE),
    "YCCK of Adobe": (lambda: adobe_cmyk(2), FINE),
    "16-bit grey PNG": (lambda: png_sixteen(0, [32896]), (128, 128, 128)),
    "16-bit colour PNG": (lambda: png_sixteen(2, [65535, 257, 0]), (255, 1, 0)),
    "16-bit grey TIFF, most significant byte first": (
        lambda: encoded(Image.fromarray(np.full((4, 4), 32896, ">u2")), "TIFF"), (128, 128, 128)),
    "1 bit": (lambda: encoded(Image.new("1", (9, 9), 1)), (255, 255, 255)),
    "a palette with transparency": (
        lambda: encoded(red().quantize(2), transparency=red().quantize(2).getpixel((0, 0))), (255, 255, 255)),
    "grey with transparency": (lambda: encoded(Image.new("LA", (9, 9), (7, 0))), (255, 255, 255)),
    "whole numbers of 32 bits": (lambda: encoded(Image.new("I", (9, 9), 100_000), "TIFF"), "65535"),
    "floating point": (lambda: encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "floating point"),
    "BigTIFF": (big_tiff, RED),
    "a TIFF of two pages": (lambda: several("TIFF"), RED),
    "two pictures in a JPEG (MPO)": (lambda: several("MPO"), RED),
    "a GIF of 10,000 frames": (lambda: gif(10_000), RED),
    "an animated PNG": (lambda: several("PNG"), RED),
    "an animated WebP": (lambda: several("WEBP", lossless=True), RED),
    "damaged EXIF": (lambda: with_exif(b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + b"\x01\x12" * 40), FINE),
    "EXIF that is none": (lambda: with_exif(b"Exif\0\0nonsense"), FINE),
    "a damaged colour profile": (lambda: encoded(red(), "JPEG", quality=95, icc_profile=os.urandom(999)), RED),
    "a progressive JPEG": (lambda: encoded(red((300, 200)), "JPEG", quality=95, progressive=True), RED),
    "one pixel": (lambda: encoded(red((1, 1))), RED),
    "1 x 65,000": (lambda: encoded(red((1, 65_000)), "JPEG", quality=95), RED),
    "65,000 x 1": (lambda: encoded(red((65_000, 1)), "JPEG", quality=95), RED),
}  # fmt: skip


def views(crop=32, resize=256, **pp):
    config = configuration.default_fields()
    config.pp.update({"crop": crop, "resize": resize, **pp})
    return Preprocess.from_config(config.pp)


def seen(data):
    """The picture as evaluation and every way of training sees it."""
    record = Record(data, -1, "x.jpg")
    found = [views().evaluate(record).image]
    for train_crop in ("random_resized", "random_resized_once", "simple", "resize"):
        found += [views(train_crop=train_crop).train(record, np.random.default_rng(seed)).image for seed in range(3)]
    return np.stack(found)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("case", CASES)
def test_a_hostile_picture_is_fine_or_said_to_be_none(case):
    make, expected = CASES[case]
    data = make()
    if isinstance(expected, str) and expected != FINE:
        with pytest.raises(UnreadablePicture, match=expected) as refused:
            seen(data)
        assert "\n" not in str(refused.value)
        assert "0x" not in str(refused.value)  # the address of an object tells a user nothing
        return
    found = seen(data)
    assert found.shape == (13, 32, 32, 3)
    if expected != FINE:
        assert np.abs(found.astype(int) - np.asarray(expected)).max() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_picture_cut_off_anywhere_is_named(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    for tenth in range(10):
        with pytest.raises(UnreadablePicture, match=r"x\.jpg \("):
            seen(whole[: len(whole) * tenth // 10])


@pytest.mark.parametrize("orientation", BLACK_CORNER)
def test_every_orientation_is_made_upright_and_wrong_ones_are_left(orientation):
    record = Record(turned(orientation), -1, "x")
    found = np.asarray(decode(open_picture(record, 3), 3, "x")).mean(axis=-1)
    assert found.shape == ((24, 16) if orientation in (5, 6, 7, 8) else (16, 24))
    halves = [
        ("top" if y < found.shape[0] / 2 else "bottom") + (" left" if x < found.shape[1] / 2 else " right")
        for y, x in [np.argwhere(found < 40).mean(axis=0)]
    ]
    assert halves == [BLACK_CORNER[orientation]]


def test_ghostscript_is_never_asked(monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **named: pytest.fail("Ghostscript was started"))
    with pytest.raises(UnreadablePicture):
        seen(EPS)


# ---- crops of long pictures ------------------------------------------------------------------------------------


def plainly(preprocess, picture):
    """Resized as a whole, then cropped: what `evaluate` means."""
    (height, width), short = preprocess.crop, preprocess.resize
    scale = max(short / min(picture.size), width / picture.width, height / picture.height)
    size = max(round(picture.width * scale), width), max(round(picture.height * scale), height)
    picture = picture.resize(size, Image.Resampling.BILINEAR) if size != picture.size else picture
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(picture.crop((left, top, left + width, top + height)))


@pytest.mark.parametrize("size", [(64, 48), (33, 500), (300, 200), (40, 40), (3, 7), (1000, 31), (2, 400)])
@pytest.mark.parametrize("crop", [32, (24, 40)])
def test_ordinary_pictures_are_resized_and_then_cropped_to_the_bit(size, crop):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for resize in (36, 40, 64):
        preprocess = views(crop, resize)
        expected = plainly(preprocess, Image.fromarray(noise))
        np.testing.assert_array_equal(preprocess.evaluate(Record(noise, -1, "x")).image, expected)


def test_long_pictures_are_the_same_without_the_rest_of_them(monkeypatch):
    """Where only the part is made, a grey level may round the other way, and no more."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 3000, 3), dtype=np.uint8)
    records = [Record(noise, -1, "x"), Record(np.ascontiguousarray(noise.transpose(1, 0, 2)), -1, "x")]

    def all_views():
        trained = views(train_crop="simple", flip=False)
        return [
            view
            for record in records
            for view in (
                views(resize=40).evaluate(record).image,
                *(trained.train(record, np.random.default_rng(s)).image for s in range(20)),
            )
        ]

    whole = all_views()
    monkeypatch.setattr("vit_jax.data.transforms.MAX_RESIZED", 0)
    for one, other in zip(whole, all_views(), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_nothing_larger_than_the_bound_is_ever_made(monkeypatch):
    made = []
    resize = Image.Image.resize

    def spy(self, size, *args, **named):
        made.append(size[0] * size[1])
        return resize(self, size, *args, **named)

    monkeypatch.setattr(Image.Image, "resize", spy)
    seen(encoded(red((1, 65_000)), "JPEG"))
    assert made
    assert max(made) <= MAX_RESIZED


# ---- folders ---------------------------------------------------------------------------------------------------


def fill(folder, count=3, name="{}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        red((12, 12 + number)).save(folder / name.format(number))


def two_classes(root):
    fill(root / "ant")
    fill(root / "cat")


def with_file(make, where="ant/x.jpg"):
    def build(root):
        two_classes(root)
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        make(root / where)

    return build


def unix_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # an address is at most 107 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**42)


def made(*folders_of_pictures, files=(), links=()):
    def build(root):
        for name in folders_of_pictures:
            fill(root / name)
        for name in files:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"no")
        for name, target in links:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(target)

    return build


def class_elsewhere(root):
    fill(root.parent / "elsewhere")
    fill(root / "ant")
    (root / "cat").symlink_to(root.parent / "elsewhere")


def odd_names(root):
    two_classes(root)
    for name in (
        b"new\nline.png",
        b"\xff\xfe.png",
        b"a" * 251 + b".png",
        "żółw 🐢.png".encode(),
        b" .PNG",
        b"-rf.JPEG",
    ):
        with open(os.path.join(os.fsencode(root / "ant"), name), "wb") as file:
            file.write(encoded(red()))


def class_of_bytes(root):
    two_classes(root)
    os.rename(root / "ant", os.path.join(os.fsencode(root), b"a\xffnt\n"))


def nested(root):
    two_classes(root)
    fill(root / "ant" / os.path.join(*["d"] * 300))


# (what makes it, pictures that can be read of those that are listed | a sentence, a line of warning or None)
FOLDERS = {
    "a pipe": (with_file(os.mkfifo), (6, 6), "x.jpg .*no regular file"),
    "a socket": (with_file(unix_socket), (6, 6), "x.jpg .*no regular file"),
    "a link to a device": (with_file(lambda p: p.symlink_to("/dev/zero")), (6, 6), "x.jpg .*no regular file"),
    "a link to nothing": (with_file(lambda p: p.symlink_to("nothing")), (6, 6), "x.jpg .*links to nothing"),
    "a link to itself": (with_file(lambda p: p.symlink_to(p)), (6, 6), "x.jpg .*links to nothing"),
    "a class that is a link to nothing": (made("ant", "cat", links=[("dog", "gone")]), (6, 6), "dog .*links to nothing"),
    "a folder named x.jpg": (made("ant/x.jpg", "cat"), (6, 6), None),
    "a file of four terabytes": (with_file(sparse), (6, 7), None),
    "an empty file": (with_file(lambda p: p.write_bytes(b"")), (6, 7), None),
    "an 11-byte PNG": (with_file(lambda p: p.write_bytes(encoded(red())[:11]), "ant/x.png"), (6, 7), None),
    "a link up": (made("ant", "cat", links=[("ant/up", "..")]), (6, 6), None),
    "links in a circle": (made("ant/a", "ant/b", "cat", links=[("ant/a/x", "../b"), ("ant/b/y", "../a")]), (9, 9), None),
    "a class that is a link to its folder": (made("ant", "cat", links=[("dog", ".")]), (6, 6), "dog .*around it"),
    "a class that is a link to everything": (made("ant", "cat", links=[("dog", "../..")]), (6, 6), "dog .*around it"),
    "a class on another disk": (class_elsewhere, (6, 6), None),
    "names with line breaks, bytes, 255 letters": (odd_names, (12, 12), None),
    "a class of bytes and a line break": (class_of_bytes, (6, 6), None),
    "upper-case suffixes": (lambda root: [fill(root / "ant", 3, name) for name in ("{}.PNG", "{}.Jpeg")], (6, 6), None),
    "hidden files and folders": (made("ant", "cat", "ant/.cache", ".git", files=["ant/.x.png"]), (6, 6), None),
    "Thumbs.db and notes": (made("ant", "cat", files=["ant/Thumbs.db", "cat/readme.txt"]), (6, 6), None),
    "classes in two cases": (made("Cat", "cat"), (6, 6), "in case alone: Cat, cat"),
    "folders 300 deep": (nested, (9, 9), None),
    "an empty class": (lambda root: (two_classes(root), (root / "dog").mkdir()), "'dog'", None),
    "nothing": (lambda root: root.mkdir(exist_ok=True), "found none", None),
    "one picture": (lambda root: fill(root, 1), "too few to split", None),
    "pictures beside classes": (made("ant", "cat", "."), (6, 6), "0.png.*beside the folders of classes"),
    "labels in a file": (made(".", files=["labels.csv"]), (3, 3), "labels.csv .*names of folders"),
    "nothing readable": (made(files=["ant/0.png", "ant/1.png", "cat/0.png", "cat/1.png"]), (0, 4), None),
    "only Test": (made("Test/ant", "Test/cat"), "there is only Test", None),
    "Train and TEST": (made("Train/ant", "TEST/ant"), (6, 6), None),
    "train and Train": (made("train/ant", "Train/ant", "test/ant"), "one folder train.*Train and train", None),
    "train, val and test": (made("train/ant", "val/ant", "test/ant"), (6, 6), "val .*beside the split"),
    "a class called train": (made("train", "car", "bus"), "train to be a split.*bus", None),
}  # fmt: skip


def is_readable(record):
    try:
        return views().evaluate(record).image.shape == (32, 32, 3)
    except UnreadablePicture:
        return False


@pytest.mark.parametrize("case", FOLDERS)
def test_a_hostile_folder_is_read_or_refused_in_a_sentence(case, tmp_path, caplog):
    build, expected, warning = FOLDERS[case]
    build(root := tmp_path / "in")
    configuration.use_recipes()
    from configs.folder import look_at

    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as refused:
            [open_source(str(root), split) for split in ("train", "test")]
        assert "\n" not in str(refused.value)
    else:
        records = [
            source[i] for s in ("train", "test") for source in [open_source(str(root), s)] for i in range(len(source))
        ]
        assert len({record.name for record in records}) == len(records)
        readable = sum(map(is_readable, records))
        assert (readable, len(records)) == expected
        assert look_at(root)[0] >= readable
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(set(said))  # training and test splits say it once
    if warning is None:
        assert not said
    else:
        (line,) = said
        assert re.search(warning, line)


def test_a_file_that_vanishes_or_turns_into_a_pipe_is_unreadable(tmp_path):
    two_classes(tmp_path)
    source = open_source(str(tmp_path), "train")
    for index, change in ((0, lambda path: None), (1, os.mkfifo)):
        path = source.whole.paths[index]
        path.unlink()
        change(path)
        with pytest.raises(UnreadablePicture, match="could not be read"):
            views().evaluate(source[index])


def test_what_cannot_be_listed_is_a_sentence(tmp_path, monkeypatch):
    two_classes(tmp_path)

    def refuse(place):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be listed \(Permission denied\)"):
        open_source(str(tmp_path), "train")


def test_the_bound_on_pixels_lets_large_photographs_through():
    assert 12_000 * 9_000 < decoding.MAX_PIXELS < Image.MAX_IMAGE_PIXELS * 2
    assert PngImagePlugin.MAX_TEXT_CHUNK <= 2**20  # what Pillow bounds itself
