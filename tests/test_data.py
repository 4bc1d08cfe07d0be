"""Odd pictures, folder layouts, crops and augmentation, and an order that nothing but the seed decides."""

import ast
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import UserError, configuration
from vit_jax.contracts import Record
from vit_jax.data import augment
from vit_jax.data.decoding import UnreadablePicture, decode, open_picture
from vit_jax.data.loader import eval_batches, train_batches
from vit_jax.data.prepare import prepare
from vit_jax.data.sources import check_classes, open_source
from vit_jax.data.transforms import Preprocess, mirrored, random_resized_box, shifted

# TFDS and ArrayRecord warn of their own doings
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def preprocess(**pp):
    config = configuration.default_fields()
    config.pp.update(pp)
    return Preprocess.from_config(config.pp)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def read(data, channels=3):
    record = Record(data, -1, "x")
    return np.asarray(decode(open_picture(record, channels), channels, "x"))


def gradient(size=(24, 16)):
    width, height = size
    across = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 1))
    return Image.fromarray(np.concatenate([across, across[:, ::-1], np.full_like(across, 40)], -1).astype(np.uint8))


# ---- pictures --------------------------------------------------------------------------------------------------


def test_colour_and_grey_in_and_out():
    np.testing.assert_array_equal(read(encoded(gradient())), np.asarray(gradient()))
    grey = gradient().convert("L")
    assert read(encoded(grey)).shape == (16, 24, 3)
    np.testing.assert_array_equal(read(encoded(grey))[:, :, 1], np.asarray(grey))
    np.testing.assert_array_equal(read(encoded(gradient()), 1), np.asarray(grey))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.asarray([[0, 257, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read(encoded(Image.fromarray(values), kind), 1), [[0, 1, 128, 255]])


def test_transparency_is_laid_on_white_or_kept():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    np.testing.assert_array_equal(read(encoded(picture)), [[[255, 0, 0], [255, 255, 255]]])
    np.testing.assert_array_equal(read(encoded(picture), 4)[0, 1], [0, 0, 0, 0])
    palette = gradient().quantize(8)
    assert read(encoded(palette, "GIF")).shape == (16, 24, 3)
    palette.info["transparency"] = 0
    assert (read(encoded(palette, "PNG", transparency=0)) == 255).all(axis=-1).any()


def test_cmyk_jpeg_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    found = read(encoded(red.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found.astype(int) - [220, 30, 40]).max() < 12


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to look right
    found = read(encoded(gradient(), "JPEG", quality=95, exif=exif))
    assert found.shape == (24, 16, 3)
    assert found[0, :, 0].mean() < found[-1, :, 0].mean()


def test_unreadable_pictures_are_named():
    with pytest.raises(UnreadablePicture, match="x"):
        read(b"no picture")
    with pytest.raises(UnreadablePicture):
        read(encoded(gradient((200, 200)), "JPEG")[:300])
    with pytest.raises(UserError, match=r"pp\.channels"):
        read(encoded(gradient()), 2)


# ---- transforms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (300, 200), (40, 41)])
@pytest.mark.parametrize("train_crop", ["random_resized", "simple", "resize"])
@pytest.mark.parametrize("crop", [32, (16, 48)])
def test_every_view_has_the_size_of_the_crop(size, train_crop, crop):
    record = Record(encoded(gradient(size), "JPEG"), -1, "x")
    wanted = (32, 32, 3) if crop == 32 else (16, 48, 3)
    for resize in (None, 40):
        views = preprocess(
            crop=crop, train_crop=train_crop, resize=resize, randaugment="rand-m9-mstd0.5-inc1", erasing=1.0
        )
        assert views.train(record, np.random.default_rng(0)).image.shape == wanted
        assert views.evaluate(record).image.shape == wanted


def test_random_resized_box_area_and_aspect():
    rng = np.random.default_rng(0)
    boxes = np.asarray([random_resized_box((300, 200), (0.2, 0.8), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 60_000, width / height
    assert 0.19 < area.min() < 0.23
    assert 0.75 < area.max() < 0.81
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= 300).all()
    # a picture that no box fits: the largest centre crop of the allowed shape
    assert random_resized_box((1000, 10), (0.9, 1.0), (3 / 4, 4 / 3), rng) == (493, 0, 506, 10)


def test_reduced_decoding_shows_the_same_crop():
    """JPEG draft mode decodes fewer pixels: the view must stay the same picture."""
    big = gradient((1200, 900))
    views = preprocess(crop=32, interpolation="bicubic", flip=False)
    by_jpeg = views.train(Record(encoded(big, "JPEG", quality=95), -1, "x"), np.random.default_rng(5)).image
    by_png = views.train(Record(encoded(big, "PNG"), -1, "x"), np.random.default_rng(5)).image
    assert np.abs(by_jpeg.astype(int) - by_png).max() < 8


def test_evaluation_takes_the_centre():
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    np.testing.assert_array_equal(preprocess(crop=40, resize=40).evaluate(Record(picture, -1, "x")).image, 255)


def test_shifted_mirrors_at_the_border():
    array = np.arange(8)[:, None, None] * np.ones((1, 8, 1))
    seen = {tuple(shifted(array.astype(np.uint8), (8, 8), np.random.default_rng(s))[:, 0, 0]) for s in range(40)}
    assert seen == {(0, 0, 1, 2, 3, 4, 5, 6), tuple(range(8)), (1, 2, 3, 4, 5, 6, 7, 7)}


def test_flip_half_the_time():
    array = np.asarray([[[0], [255]]], np.uint8)
    views = preprocess(crop=(1, 2), channels=1, train_crop="resize")
    flipped = [views.train(Record(array, -1, "x"), np.random.default_rng(s)).image[0, 0, 0] for s in range(400)]
    assert 0.4 < np.mean(np.asarray(flipped) == 255) < 0.6


def test_randaugment_is_timms_set_and_ranges():
    assert len(augment.NAMES) == 15
    assert "Cutout" not in augment.NAMES
    parsed = augment.RandAugment.parse("rand-m9-mstd0.5-inc1", (1, 2, 3))
    assert parsed == augment.RandAugment(9.0, 2, 0.5, 0.5, (1, 2, 3))
    for wrong in ("rand-x3", "augmix-m9", "rand-m"):
        with pytest.raises(UserError, match=r"pp\.randaugment"):
            augment.RandAugment.parse(wrong, (0, 0, 0))
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    rng = np.random.default_rng(0)

    def apply(name, level):
        return np.asarray(augment.OPERATIONS[name](grey, float(level), rng, Image.Resampling.BILINEAR, (7,))).reshape(
            -1
        )

    np.testing.assert_array_equal(apply("SolarizeAdd", 10)[:130], [*(np.arange(128) + 110), 128, 129])
    np.testing.assert_array_equal(apply("Solarize", 5), [*range(128), *(255 - np.arange(128, 256))])
    np.testing.assert_array_equal(apply("Posterize", 5), np.arange(256) // 64 * 64)
    np.testing.assert_array_equal(apply("Invert", 9), 255 - np.arange(256))
    moved = apply("TranslateXRel", 10).reshape(16, 16)  # 0.45 of 16 pixels, either way
    assert (moved == 7).all(axis=0).sum() in (7, 8)
    brightness = {round(apply("Brightness", 10)[100] / 100, 2) for _ in range(20)}
    assert brightness == {0.1, 1.9}


def test_randaugment_applies_each_draw_half_the_time(monkeypatch):
    calls = Counter()
    for name in augment.NAMES:
        monkeypatch.setitem(
            augment.OPERATIONS, name, lambda picture, *rest, name=name: (calls.update([name]), picture)[1]
        )
    policy, rng = augment.RandAugment(9.0, 2, 0.5), np.random.default_rng(0)
    for _ in range(3000):
        policy(gradient(), rng, None)
    assert 0.48 < calls.total() / 6000 < 0.52
    assert set(calls) == set(augment.NAMES)
    assert max(calls.values()) < 1.35 * min(calls.values())


def test_erasing_covers_a_bounded_area_with_noise():
    array, rng = np.full((64, 64, 3), 3, np.uint8), np.random.default_rng(0)
    erased = [augment.erase(array, rng, (0.5,), (0.2,)) for _ in range(200)]
    shares = [float((picture != 3).any(axis=-1).mean()) for picture in erased]
    assert 0.015 < min(shares) < 0.06
    assert 0.25 < max(shares) < 0.36


def colours(channels):
    shape = (24, 24) if channels == 1 else (24, 24, channels)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("name", augment.NAMES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_operation_takes_every_kind_of_picture(name, channels):
    picture, bilinear = colours(channels), Image.Resampling.BILINEAR
    for level in (0.0, 5.0, 10.0):
        found = augment.OPERATIONS[name](picture, level, np.random.default_rng(1), bilinear, (7,) * channels)
        assert (found.mode, found.size) == (picture.mode, picture.size)
        if channels < 4:
            continue
        plain = augment.OPERATIONS[name](picture.convert("RGB"), level, np.random.default_rng(1), bilinear, (7,) * 3)
        if name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):  # transparency moves along
            alpha = picture.getchannel("A")
            expected = augment.OPERATIONS[name](alpha, level, np.random.default_rng(1), bilinear, (7,))
            np.testing.assert_array_equal(np.asarray(found)[..., 3], np.asarray(expected))
        else:  # the colours are those of an opaque picture, transparency stays
            np.testing.assert_array_equal(np.asarray(found)[..., :3], np.asarray(plain))
            np.testing.assert_array_equal(np.asarray(found)[..., 3], np.asarray(picture)[..., 3])


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": (0.5, 0.5)},
        {"std": (0.5,) * 4},
        {"channels": 1, "mean": (0.4, 0.5, 0.6)},
        {"channels": 5, "randaugment": "rand-m9"},
        {"crop_area": (0.8, 0.2)},
        {"crop_area": (0.0, 1.0)},
        {"crop_aspect": (2.0, 1.0)},
        {"randaugment": "rand-m9.5.5"},
        {"randaugment": "rand-m99"},
        {"randaugment": "rand-p7"},
        {"randaugment": "rand-n1.5"},
        {"randaugment": "rand--m9"},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_each_other(wrong):
    with pytest.raises(UserError, match=r"pp\."):
        preprocess(**wrong)


def test_a_crop_of_a_tiny_picture_has_a_pixel():
    pixel = Record(np.zeros((1, 1, 3), np.uint8), -1, "x")
    for train_crop in ("random_resized", "random_resized_once"):
        views = preprocess(crop=8, train_crop=train_crop, crop_area=(0.08, 0.1), crop_aspect=(0.1, 0.2))
        for seed in range(20):
            assert views.train(pixel, np.random.default_rng(seed)).image.shape == (8, 8, 3)


@pytest.mark.parametrize("wrong", [{"interpolation": "cubic"}, {"train_crop": "random"}, {"crop": 0}])
def test_bad_transform_settings(wrong):
    with pytest.raises(UserError, match="pp"):
        preprocess(**wrong)


# ---- sources ---------------------------------------------------------------------------------------------------


def fill(folder, count=3, kind="png"):
    folder.mkdir(parents=True)
    for number in range(count):
        gradient((12, 12 + number)).save(folder / f"{number}.{kind}")


def test_digits_are_the_real_ones():
    train, test = open_source("digits", "train"), open_source("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == tuple("0123456789")
    assert train[0].image.shape == (8, 8, 1)
    assert max(int(train[i].image.max()) for i in range(50)) == 255
    keys = {train[i].image.tobytes() for i in range(1437)} & {test[i].image.tobytes() for i in range(360)}
    assert len(keys) <= 2  # the data set holds a few identical digits


def test_split_syntax():
    assert len(open_source("digits", "train[:98%]")) == 1408
    assert len(open_source("digits", "train[98%:]")) == 29
    part = open_source("digits", "train[100:103]")
    np.testing.assert_array_equal(part[0].image, open_source("digits", "train")[100].image)
    for wrong in ("train[", "tran", "train[5:5]"):
        with pytest.raises(UserError, match=r"pp\.train"):
            open_source("digits", wrong)


def test_folder_with_a_split(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "ant"):
            fill(tmp_path / split / name)
    (tmp_path / "train" / "ant" / ".hidden.png").write_bytes(b"")
    source = open_source(str(tmp_path), "train")
    assert source.class_names == ("ant", "cat")
    assert [source[i].label for i in range(len(source))] == [0, 0, 0, 1, 1, 1]
    assert Path(source[3].name).parent.name == "cat"
    assert len(open_source(str(tmp_path), "test")) == 6


@pytest.mark.parametrize("flat", [False, True])
def test_folder_without_a_split_gets_a_seeded_one(tmp_path, flat):
    fill(tmp_path / "a" if not flat else tmp_path / "x", 20)
    root = tmp_path / "x" if flat else tmp_path

    def names(split, seed=0):
        source = open_source(str(root), split, seed=seed)
        assert (source.class_names is None) == flat
        assert {source[i].label for i in range(len(source))} == ({-1} if flat else {0})
        return {source[i].name for i in range(len(source))}

    assert len(names("train")) == 18
    assert not names("train") & names("test")
    assert len(names("train") | names("test")) == 20
    assert names("test") == names("test")
    assert names("test") != names("test", seed=1)


def test_folder_mistakes(tmp_path):
    with pytest.raises(UserError, match="folder of pictures"):
        open_source(str(tmp_path / "nothing"), "train")
    with pytest.raises(UserError, match="found none"):
        open_source(str(tmp_path), "train")
    fill(tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="'b'"):
        open_source(str(tmp_path), "train")
    (tmp_path / "b").rmdir()
    fill(tmp_path / "c" / "train" / "x")
    fill(tmp_path / "c" / "test" / "y")
    with pytest.raises(UserError, match="'x', 'y'"):
        open_source(str(tmp_path / "c"), "train")


def test_prepared_tfds_data_set_comes_back_as_it_was(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "cat"):
            fill(tmp_path / "in" / split / name, 4, "jpg")
    gradient().save(tmp_path / "in" / "train" / "cat" / "odd.bmp")
    summary = prepare(tmp_path / "in", tmp_path / "out")
    assert summary == {"splits": {"train": 9, "test": 8}, "classes": ["ant", "cat"], "unreadable": []}
    ours, theirs = open_source(str(tmp_path / "in"), "train"), open_source(str(tmp_path / "out"), "train")
    assert theirs.class_names == ours.class_names
    given = Counter((ours[i].image, ours[i].label) for i in range(9) if ours[i].name.endswith("jpg"))
    stored = Counter((theirs[i].image, theirs[i].label) for i in range(9))
    assert given <= stored
    assert len(open_source(str(tmp_path / "out"), "train[:50%]")) in (4, 5)
    with pytest.raises(UserError, match="holds something"):
        prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="train"):
        open_source(str(tmp_path / "out"), "validation")


def test_prepare_names_unreadable_pictures_and_leaves_nothing_behind(tmp_path):
    fill(tmp_path / "in", 5)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("side", "kinds", "split"),
    [(20, ("png",), False), (70, ("jpg", "png"), True), (150, ("jpg", "webp"), False), (300, ("bmp",), True)],
)
def test_a_prepared_set_gives_the_recipe_of_its_folder(tmp_path, side, kinds, split):
    from vit_jax.commands import cli

    rng = np.random.default_rng(side)
    for number in range(40):
        part = ("train", "test")[number >= 30] if split else ""
        place = tmp_path / "in" / part / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(side, 1.1 * side, 2)
        gradient((int(width), int(height))).save(place / f"{number}.{kinds[number % len(kinds)]}")
    assert cli.main(["prepare", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    for stage in ("quick", "scratch", "pretrain"):
        ours, prepared = (
            configuration.plain(configuration.load(f"folder.py:{stage},{tmp_path / name}")) for name in ("in", "out")
        )
        assert ours.pop("dataset") != prepared.pop("dataset")
        assert ours == prepared


def test_a_set_prepared_by_others_counts_exactly_and_says_what_it_does_not_know(tmp_path, caplog):
    import json

    configuration.use_recipes()
    from configs.folder import look_at

    fill(tmp_path / "in" / "a", 5)
    fill(tmp_path / "in" / "b", 6)
    prepare(tmp_path / "in", tmp_path / "out")
    assert look_at(tmp_path / "out") == (9, 224)  # of 11, two are the test split
    assert "does not say how large" in caplog.text
    written = next(tmp_path.rglob("features.json"))
    features = json.loads(written.read_text())
    features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = ["32", "48", "3"]
    written.write_text(json.dumps(features))
    assert look_at(tmp_path / "out" / "pictures") == (9, 32)


def test_what_cannot_be_learned_from_is_a_sentence(tmp_path):
    fill(tmp_path / "one" / "cat", 20)
    with pytest.raises(UserError, match=r"two classes or more.*cat alone"):
        check_classes(open_source(str(tmp_path / "one"), "train"))
    with pytest.raises(UserError, match="names of folders"):
        check_classes(open_source(str(tmp_path / "one" / "cat"), "train"))
    fill(tmp_path / "one" / "dog", 20)
    assert check_classes(open_source(str(tmp_path / "one"), "train")) == 2


def test_prepare_refuses_names_that_tfds_cannot_keep(tmp_path):
    fill(tmp_path / "in" / "a")
    fill(tmp_path / "in" / "b\nc")
    with pytest.raises(UserError, match=r"'b\\nc'"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_said():
    class Empty:
        name, class_names = "nothing test", ("ant", "cat")

        def __len__(self):
            return 0

        def __getitem__(self, index):
            raise IndexError(index)

    source = Empty()
    with pytest.raises(UserError, match="the split is empty"):
        eval_batches(source, preprocess(), batch=4)


def test_unknown_tfds_name(tmp_path):
    with pytest.raises(
        UserError, match=r"folder .*no_such_dataset does not exist \(and no data set of TFDS has this name"
    ):
        open_source("no_such_dataset", "train", tfds_data_dir=str(tmp_path))


# ---- order -----------------------------------------------------------------------------------------------------


def take(count, **options):
    given = {"batch": 12, "seed": 3} | options
    batches = train_batches(open_source("fake", "train[:40]"), preprocess(crop=8, train_crop="simple"), **given)
    return [next(batches) for _ in range(count)]


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_every_epoch_holds_every_example_once_in_a_new_order():
    source = open_source("fake", "train[:40]")
    plain = preprocess(crop=32, train_crop="resize", flip=False)
    stream = train_batches(source, plain, batch=10, seed=3)
    seen = np.concatenate([next(stream).image for _ in range(12)])
    whole = {source[i].image.tobytes() for i in range(40)}
    epochs = [[row.tobytes() for row in seen[start : start + 40]] for start in (0, 40, 80)]
    for epoch in epochs:
        assert set(epoch) == whole
    assert epochs[0] != epochs[1] != epochs[2]


def test_workers_threads_and_the_starting_point_change_nothing():
    reference = take(7)
    assert not same(reference, take(7, seed=4))
    assert same(reference, take(7, num_threads=4))
    assert same(reference[4:], take(3, start=4))


@pytest.mark.filterwarnings("ignore")
def test_worker_processes_change_nothing():
    assert same(take(5), take(5, num_workers=2))


def test_processes_share_the_same_global_batch():
    """Whichever rows a process asks for, also ones apart or asked for twice (`tensor` over processes)."""
    whole = take(3)
    for rows in (range(4), range(8, 12), [0, 1, 6, 7], [11]):
        for part, batch in zip(take(3, rows=rows), whole, strict=True):
            np.testing.assert_array_equal(part.image, batch.image[list(rows)])
            np.testing.assert_array_equal(part.label, batch.label[list(rows)])


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_sees_every_example_once(size, processes):
    source = open_source("fake", f"test[:{size}]")
    plain = preprocess(crop=32)
    counts = set()
    images = []
    for process in range(processes):
        batches = list(eval_batches(source, plain, batch=8, rows=range(8)[process::processes]))
        counts.add(len(batches))
        assert all(batch.image.shape[0] == 8 // processes for batch in batches)
        images += [
            image.tobytes() for batch in batches for image, w in zip(batch.image, batch.weight, strict=True) if w
        ]
    assert len(counts) == 1
    assert Counter(images) == Counter(source[i].image.tobytes() for i in range(size))


def test_unreadable_pictures_are_replaced_until_there_are_too_many(tmp_path):
    fill(tmp_path / "train" / "a", 30)
    fill(tmp_path / "test" / "a", 2)
    (tmp_path / "train" / "a" / "broken.png").write_bytes(b"no")
    source = open_source(str(tmp_path), "train")
    stream = train_batches(source, preprocess(crop=8), batch=len(source), seed=0, max_unreadable=0.5)
    assert next(stream).weight.all()
    strict = train_batches(source, preprocess(crop=8), batch=len(source), seed=0)
    with pytest.raises(UserError, match=r"broken\.png.*max_unreadable"):
        next(strict)
    rows = list(eval_batches(source, preprocess(crop=8), batch=4, max_unreadable=0.5))
    assert sum(batch.weight.sum() for batch in rows) == len(source) - 1


def test_the_data_room_knows_no_jax_and_no_tensorflow():
    folder = Path(augment.__file__).parent
    files = sorted(folder.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"jax", "flax", "optax", "tensorflow", "torch"}, file


WORKER = """
from vit_jax import configuration
from vit_jax.contracts import Record
from vit_jax.data.loader import train_batches
from vit_jax.data.transforms import Preprocess
import numpy as np

class Spy:
    name, class_names = "spy", None
    def __len__(self): return 8
    def __getitem__(self, index):
        import os, sys
        from jax._src import xla_bridge
        used = xla_bridge.backends_are_initialized() or "tensorflow" in sys.modules or "torch" in sys.modules
        return Record(np.zeros((4, 4, 3), np.uint8), int(used) if os.getpid() != PARENT else 7, "x")

import os
PARENT = int(os.environ.setdefault("PARENT", str(os.getpid())))  # workers inherit it
if __name__ == "__main__":
    config = configuration.default_fields()
    config.pp.crop = 4
    stream = train_batches(Spy(), Preprocess.from_config(config.pp), batch=4, seed=0, num_workers=1)
    print("labels", sorted(set(next(stream).label.tolist())))
"""


def test_a_loader_worker_starts_no_backend(tmp_path):
    script = tmp_path / "spy.py"
    script.write_text(
        WORKER.replace("PARENT = os.getpid()", "PARENT = int(os.environ.setdefault('PARENT', str(os.getpid())))")
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert "labels [0]" in done.stdout, done.stdout + done.stderr[-2000:]


def test_a_folder_of_test_pictures_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "val" / name / "x.png")
    source = open_source(str(tmp_path), "test")
    assert source.class_names == ("a", "b")
    assert len(source) == 2
    with pytest.raises(UserError, match="there is only val"):
        open_source(str(tmp_path), "train")


def test_the_linear_probes_crop_is_one_draw_cut_to_the_picture():
    from vit_jax.data.transforms import random_resized_box_once

    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_box_once((90, 30), (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 90).all()
    assert (bottom <= 30).all()
    # Half of the draws are higher than the picture; a draw over again would have made them lower than it.
    assert 0.3 < (bottom - top == 30).mean() < 0.9
    assert ((right - left) / (bottom - top) > 4 / 3 + 0.1).any()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mirrored_exchanges_left_and_right(channels):
    array = np.random.default_rng(0).integers(0, 256, (3, 5, channels), dtype=np.uint8)
    np.testing.assert_array_equal(mirrored(array), array[:, ::-1])
