"""What figures say, in numbers: panels, labels, limits, dimming, which pictures and which of their pixels."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from vit_jax import UserError, configuration
from vit_jax.commands import figures
from vit_jax.contracts import Record
from vit_jax.data.loader import spread_batch
from vit_jax.data.sources import Fake, open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.run_figures import save, trained_under
from vit_jax.visualisation import attention_maps, confusion, curves, positions, reconstructions

TRAIN = [{"step": s, "kind": "train", "loss": 1 / s, "lr": 0.1 * s} for s in range(1, 21)]


def labels(axis):
    return [line.get_label() for line in axis.lines]


def test_curves_have_a_panel_for_what_there_is():
    masked = [*TRAIN, {"step": 20, "kind": "eval", "loss": 0.5, "baseline": 1.0, "examples": 3}]
    assert [axis.get_title() for axis in curves.draw(masked).axes] == ["loss", "learning rate"]
    classified = [*TRAIN, {"step": 20, "kind": "eval", "loss": 0.5, "accuracy": 0.25}]
    figure = curves.draw(classified)
    assert [axis.get_title() for axis in figure.axes] == ["loss", "metrics", "learning rate"]
    assert all(axis.get_visible() and axis.lines for axis in figure.axes)


def test_curves_say_what_training_was_measured_under():
    rows = [{**row, "accuracy": 0.1} for row in TRAIN] + [{"step": 20, "kind": "eval", "loss": 0.5, "accuracy": 0.2}]
    losses, metrics, _ = curves.draw(rows, {"accuracy": "mixup", "loss": "mixup, smoothing"}).axes
    assert labels(losses) == ["train loss (under mixup, smoothing)", "test loss"]
    assert labels(metrics) == ["train accuracy (under mixup)", "test accuracy"]
    config = configuration.default_fields()
    assert trained_under(config) == {}
    config.cutmix, config.label_smoothing = 1.0, 0.1
    assert trained_under(config) == {"loss": "cutmix, smoothing", "accuracy": "cutmix", "top5": "cutmix"}
    config.task = "multilabel"
    assert trained_under(config) == {"loss": "cutmix, smoothing", "f1": "cutmix", "exact": "cutmix"}
    config.task = "regression"
    assert trained_under(config) == {"loss": "cutmix", "abs_error": "cutmix", "baseline": "cutmix"}
    config.objective = "mae"
    assert trained_under(config) == {}


def test_curves_leave_a_gap_for_what_was_not_finite_and_show_a_single_point():
    (line,) = curves.draw([TRAIN[0], {**TRAIN[1], "loss": None}, TRAIN[2]]).axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.0, np.nan, 1 / 3])
    (line,) = curves.draw(TRAIN[:1]).axes[0].lines
    assert line.get_marker() == "."
    assert curves.draw(TRAIN).axes[0].lines[0].get_marker() == "None"


def test_columns_are_drawn_as_they_are_with_their_titles():
    rng = np.random.default_rng(0)
    columns = {name: rng.random((2, 8, 8, 3)).astype(np.float32) for name in ("original", "codes", "filled in")}
    figure = reconstructions.draw(columns, "a note")
    assert [axis.get_title() for axis in figure.axes[:3]] == list(columns)
    for place, axis in enumerate(figure.axes):
        given = list(columns.values())[place % 3][place // 3]
        np.testing.assert_array_equal(axis.images[0].get_array(), given)
    assert figure.get_supxlabel() == "a note"
    assert len(reconstructions.draw(columns, "", max_rows=1).axes) == 3


@pytest.fixture
def folder(tmp_path):
    """Ten classes of seven test pictures, the n-th class of red 20 n."""
    for split in ("train", "test"):
        for number in range(10):
            (tmp_path / split / f"c{number}").mkdir(parents=True)
            for index in range(7):
                path = tmp_path / split / f"c{number}" / f"{index}.png"
                Image.new("RGB", (8, 8), (20 * number, index, 0)).save(path)
    return tmp_path


def test_pictures_drawn_of_a_run_are_of_different_classes(folder):
    source, views = open_source(str(folder), "test"), Preprocess(crop=(8, 8))
    batch = spread_batch(source, views)
    assert len(batch.image) == len(set(batch.label.tolist())) == 8
    assert batch.label.max() == 9
    np.testing.assert_array_equal(batch.image[:, 0, 0, 0], 20 * batch.label)
    np.testing.assert_array_equal(spread_batch(source, views).image, batch.image)
    broken = batch.image[0, 0, 0]
    (folder / "test" / f"c{broken[0] // 20}" / f"{broken[1]}.png").write_bytes(b"broken")
    assert len(spread_batch(source, views).image) == 7


@pytest.mark.parametrize(("size", "classes", "different"), [(3, 10, 3), (64, 10, 8), (5000, 3, 3), (5000, 8, 8)])
def test_pictures_drawn_of_any_order_are_few_to_read(size, classes, different):
    """One class after the other, as made-up pictures come, and every label at once."""
    read = []

    class Counted(Fake):
        def __len__(self):
            return size

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    batch = spread_batch(Counted("test", classes), Preprocess(crop=(32, 32)))
    assert len(batch.image) == min(size, 8)
    assert len(set(batch.label.tolist())) == different
    assert len(set(read)) <= 64
    assert max(read) - min(read) > 0.8 * size or size == 3


def test_attention_is_drawn_with_a_colour_bar_over_pictures_of_any_size():
    pictures = [np.zeros((30, 40, 3)), np.zeros((300, 200, 3))]
    maps = np.random.default_rng(0).random((2, 2, 3, 4))
    titles = ["layer 0, head 0", "layer 0, head 5"]
    small = attention_maps.draw(pictures, maps, titles)
    *panels, bar = small.axes
    assert [axis.get_title() for axis in panels[:3]] == ["picture", *titles]
    assert "largest" in bar.get_ylabel()
    assert bar.get_ylim() == (0.0, 1.0)
    assert panels[5].images[1].get_extent() == [-0.5, 199.5, 299.5, -0.5]
    large = attention_maps.draw(pictures, maps, titles, own_size=True)
    assert small.get_size_inches()[0] < large.get_size_inches()[0]
    large.canvas.draw()
    extent = large.axes[5].get_window_extent()
    assert (extent.width, extent.height) == pytest.approx((200, 300), abs=1)


def test_distances_are_whole_and_layers_count_from_zero():
    distances = np.array([[0.0, 3.0], [1.0, 8.0], [2.0, 8.0]])
    (axis,) = attention_maps.draw_distances(distances).axes
    points = axis.collections[0].get_offsets()
    np.testing.assert_array_equal(points[:, 0], [0, 0, 1, 1, 2, 2])
    assert axis.get_xlim()[0] < 0 < 2 < axis.get_xlim()[1]
    low, high = axis.get_ylim()
    assert low <= 0.0
    assert high > 8.0
    assert not axis.collections[0].get_clip_on()
    (axis,) = attention_maps.draw_distances(np.zeros((2, 2))).axes
    assert axis.get_ylim()[1] > 0


def test_positions_say_where_they_are_from():
    figure = positions.draw_similarity(np.eye(6), (2, 3), "learned positions")
    assert figure.get_suptitle() == "learned positions"


@pytest.mark.parametrize(("resize", "region"), [(None, (0, 0, 40, 60)), (20, (4, 14, 36, 46)), (10, (0, 10, 40, 50))])
def test_what_evaluation_sees_at_the_pictures_own_resolution(resize, region):
    ramp = np.arange(40 * 60 * 3).reshape(60, 40, 3) % 251
    record = Record(ramp.astype(np.uint8), 0, "x")
    left, top, right, bottom = region
    found = Preprocess(crop=(16, 16), resize=resize).seen(record)
    np.testing.assert_array_equal(found, record.image[top:bottom, left:right])


def test_layers_and_heads_count_from_zero_or_from_the_end():
    assert figures.chosen([0, -1, 11, 3], 12, "layers") == [0, 11, 3]
    for wrong in ([], [12], [-13], [0, 99]):
        with pytest.raises(UserError, match=r"from 0 to 11.*change --layers"):
            figures.chosen(wrong, 12, "layers")


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    figure = curves.draw(TRAIN)
    with pytest.raises(UserError, match="cannot be written"):
        save(figure, tmp_path / "file" / "x.png")


def test_nothing_of_a_confusion_matrix_is_cut_off():
    figure = confusion.draw(np.eye(10, dtype=np.int64), [str(number) for number in range(10)])
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        box = axis.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height
