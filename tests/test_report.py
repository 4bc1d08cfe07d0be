"""The page says what the runs' files say, whole, escaped, and draws it in a real browser without asking a network."""

import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import browser
from vit_jax import UserError, command_line, configuration, starts, train, workdirs
from vit_jax.places import place
from vit_jax.reporting import charts, looks, making, mistakes, page, repeating, runs, tables, times
from vit_jax.workdir_lock import LOCK

HOSTILE = "<img src=x onerror=document.title='taken'>"
HERE = {"step": 0, "time": 0.0, "recipe": None}


def told(config, rows=(), **start):
    """A run by hand."""
    given = [HERE | start] if start else []
    return runs.Told("name", place("runs/name"), workdirs.lasting(config), list(rows), given, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of grey pictures, one with a name that is a trap."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for grey, name in enumerate((HOSTILE, "cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(70 * grey, 70 * grey + 90, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(make_small, folder, tmp_path_factory):
    """A masked autoencoder and a classifier of the same pictures."""
    root = tmp_path_factory.mktemp("runs")
    for stage in ("pretrain", "scratch"):
        config = make_small(stage, dataset=str(folder), total_steps=4, warmup_steps=1, eval_every=2)
        config.model.head_std = 0.5
        train.run(config, root / stage, recipe=f"digits.py:{stage}")
    return [root / "pretrain", root / "scratch"]


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory):
    """Their page."""
    return making.report(trained, tmp_path_factory.mktemp("page") / "report.html")


# ---- the command that repeats a run ----


@pytest.mark.parametrize(
    ("recipe", "settings", "expected"),
    [
        ("digits.py:scratch", {}, []),
        ("digits.py:finetune", {"batch": "48", "init_from": "runs/x"}, ["batch", "init_from"]),
        ("digits.py:pretrain,beit", {"beit.tokenizer": "/a b"}, ["beit.tokenizer"]),
        ("mae.py:b16", {"mae.mask_ratio": "0.5", "total_epochs": "3"}, ["mae.mask_ratio", "total_epochs"]),
        ("vit.py:b16,cifar10", {"pp.crop": "(64, 32)"}, ["pp.crop", "pretrained_dir"]),  # "." was where it ran
        ("digits.py:scratch", {"objective": "simmim"}, ["objective"]),
    ],
)  # fmt: skip
def test_the_command_gives_the_configuration_again(recipe, settings, expected):
    config = command_line.configured(recipe, list(settings.items())).config
    for given in (recipe, None, "mine.py:x"):
        words = repeating.command(told(config, recipe=given))
        spec, typed, rest = command_line.split(words[2:])
        assert workdirs.lasting(command_line.configured(spec, typed).config) == workdirs.lasting(config)
        assert [word.partition("=")[0] for word in rest] == ["--workdir"]
        assert spec == (recipe if given == recipe else repeating.DEFAULTS)
        if given == recipe:
            assert sorted(field for field, _ in typed) == expected
    assert "'--config.beit.tokenizer=/a b'" in repeating.shell(words) or "beit" not in recipe


def test_a_recipe_of_a_folder_is_used_while_the_folder_is_there(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    spec = f"folder.py:scratch,{folder.name}"
    config = command_line.configured(spec, [("total_steps", "3000")]).config  # its rate and mixup follow
    here, gone = (
        told(config, recipe=given) for given in (workdirs.lasting_recipe(spec, config), "folder.py:scratch,x")
    )
    monkeypatch.chdir(tmp_path)
    words = repeating.command(here)
    assert words[3:] == [f"--config=folder.py:scratch,{folder}", "--config.total_steps=3000"]
    words = repeating.command(gone)
    assert words[3] == "--config=common.py"
    spec, typed, _ = command_line.split(words[2:])
    assert workdirs.lasting(command_line.configured(spec, typed).config) == gone.config


# ---- what the files say ----


def test_each_start_writes_down_what_it_ran_on(trained, make_small, tmp_path):
    (line,) = starts.read(trained[1])
    assert line["recipe"] == "digits.py:scratch"
    assert (line["device_kind"], line["devices"], line["total_steps"]) == ("cpu", 8, 4)
    assert (line["training_pictures"], line["test_pictures"]) == (36, 18)
    assert line["packages"]["jax"] == starts.version("jax")
    config = make_small(total_steps=2, warmup_steps=1)
    for _ in range(2):
        train.run(config, tmp_path)
    with (tmp_path / starts.FILE).open("a") as file:
        file.write('{"step": 2, "ti')  # cut off by a crash
    assert [line["step"] for line in starts.read(tmp_path)] == [0, 2]


def test_the_machine_that_trained_is_shown_not_this_one(trained, tmp_path):
    first, second = (runs.read_run(path, path.name) for path in trained)
    changed = copy.deepcopy(second.starts)
    changed[-1] |= {"device_kind": "TPU v9", "packages": {"jax": "9.8.7"}}
    table = tables.versions([first, second._replace(starts=changed)])
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["devices"] == ["8 x cpu (cpu)", "8 x TPU v9 (cpu)"]
    assert cells["jax"] == [starts.version("jax"), "9.8.7"]
    assert tables.versions([first, second]).header == ["", "every run"]
    assert {row[1] for row in tables.versions([first._replace(starts=[])]).rows} == {"not recorded"}


def test_time_is_added_up_by_hand(small):
    config = small(batch=10)
    rows = [
        {"step": 0, "kind": "run", "time": 100.0, "compile_seconds": 7.0},
        {"step": 20, "kind": "train", "time": 110.0, "img/s": 20.0, "data_wait": 0.25},  # 10 s
        {"step": 20, "kind": "eval", "time": 114.0},
        {"step": 20, "kind": "run", "time": 500.0, "compile_seconds": 1.0},  # the next day
        {"step": 30, "kind": "train", "time": 502.0, "img/s": 50.0, "data_wait": 0.5},  # 2 s
    ]
    found = times.spent(told(config, rows))
    assert (found.steps, found.waiting, found.compiling, found.rest) == (7.5 + 1.0, 2.5 + 1.0, 8.0, 4.0)
    assert found.rate == 35.0
    assert found.use is None
    assert times.spent(told(config)).total == 0.0


def test_use_of_the_peak_is_worked_out_from_the_data_sheet_or_not_at_all(small):
    rows = [
        {"step": 0, "kind": "run", "time": 0.0, "gflop_a_step": 9890.0},
        {"step": 5, "kind": "train", "time": 1.0, "img/s": 640.0},
    ]
    config = small(batch=16, compute_dtype="bfloat16")  # 40 steps a second: 395.6 of 2 x 989 TFLOP/s
    found = times.spent(told(config, rows, device_kind="NVIDIA H200", devices=2))
    assert found.use == pytest.approx(0.2)
    assert "data sheet of NVIDIA H200" in found.use_words
    for changes, kind, words in [
        ({}, "cpu", "no peak known of cpu"),
        ({"compute_dtype": "float32"}, "NVIDIA H200", "no peak known of NVIDIA H200 in float32"),
    ]:
        found = times.spent(
            told(small(batch=16, **{"compute_dtype": "bfloat16"} | changes), rows, device_kind=kind, devices=2)
        )
        assert (found.use, found.use_words) == (None, words)


def test_long_lines_are_thinned_without_losing_peaks_and_gaps(small):
    values = np.sin(np.arange(100_000) / 9000)
    values[[12_345, 54_321, 77_777]] = 50.0, -50.0, np.nan
    kept = charts.thinned(values)
    assert len(kept) <= 5 * charts.BUCKETS
    assert {0, 12_345, 54_321, 77_777, 99_999} <= set(kept.tolist())
    np.testing.assert_array_equal(charts.thinned(values[:1600]), np.arange(1600))
    rows = [
        {"step": step, "kind": "train", "loss": None if math.isnan(value) else value}
        for step, value in enumerate(values)
    ]
    (chart,) = charts.curves([told(small(), rows)])
    assert "100,000 points" in chart.thinned
    assert len(chart.json) < 60_000


def test_runs_of_one_method_share_a_chart_and_others_do_not(small):
    rows = [
        {"step": 1, "kind": "train", "loss": 1.0, "lr": 0.1},
        {"step": 1, "kind": "eval", "loss": 2.0, "accuracy": 0.5},
    ]
    both = charts.curves([told(small(), rows), told(small(), rows)])
    assert [chart.title for chart in both] == ["Loss", "Accuracy", "Learning rate"]
    assert [len(json.loads(chart.json)["data"]) for chart in both] == [4, 2, 2]
    several = charts.curves([told(small(), rows), told(small("pretrain"), rows[:1])])
    assert [chart.title for chart in several] == [
        "Loss (classify)",
        "Loss (mae)",
        "Accuracy (classify)",
        "Learning rate",
    ]


@pytest.mark.parametrize(
    ("locked", "rows", "words"),
    [
        (None, [], "nothing recorded yet"),
        ("{}", [4], "still training: step 4 of 6"),
        ("", [4], "ended at step 4 of 6"),  # given back
        (None, [4, 6], "finished 6 steps"),
    ],
)
def test_where_a_run_stands(small, tmp_path, locked, rows, words):
    lines = [{"step": step, "kind": "train", "loss": 1.0} for step in rows]
    if locked is not None:
        (tmp_path / LOCK).write_text(locked)
    assert told(small(), lines)._replace(workdir=place(tmp_path)).standing == words


def test_names_are_as_short_as_they_can_be():
    assert runs.names([Path("/a/b/mae"), Path("/a/c/vit")]) == ["mae", "vit"]
    assert runs.names([Path("/a/b/mae"), Path("/a/c/mae")]) == ["b/mae", "c/mae"]


# ---- what the model says ----


def test_the_worst_answers_come_first(small):
    said = np.asarray([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [np.nan, 0.0, 0.0], [0.3, 0.3, 0.4]])
    found = mistakes.worst(workdirs.lasting(small()), said, np.asarray([0, 0, 1, 0, 2]), ("a", "b", "c"))
    assert [(wrong.row, wrong.label, wrong.said) for wrong in found] == [
        (3, "a (nan%)", "no number"), (2, "b (5.0%)", "c (90%)"), (1, "a (20.0%)", "b (70%)")
    ]  # fmt: skip
    labels = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    said = np.asarray([[0.9, 0.1], [0.4, 0.6], [0.99, 0.01]])
    several = mistakes.worst(workdirs.lasting(small(task="multilabel")), said, labels, ("a", "b"))
    assert [(wrong.row, wrong.label, wrong.said) for wrong in several] == [(2, "b", "a"), (1, "a", "b")]
    config = workdirs.lasting(small(task="regression", target_std=(1.0, 100.0)))
    numbers = mistakes.worst(
        config, np.asarray([[0.0, 0.0], [1.0, 50.0]]), np.asarray([[0.5, 10.0], [1.0, 0.0]]), ("x", "y")
    )
    assert [wrong.row for wrong in numbers] == [0, 1]
    assert numbers[0].label == "x 0.5, y 10"


def test_a_thousand_classes_stay_readable():
    names = [f"class {place}" for place in range(1000)]
    confusion = np.zeros((1000, 1000), np.int64)
    confusion[3, 998], confusion[4, 4], confusion[5, 6] = 7, 50, 2
    each = {name: {"pictures": 1, "accuracy": place / 1000} for place, name in enumerate(names)}
    judged = looks.Judged({}, each, confusion)
    assert charts.confusion(confusion, names) is None
    assert charts.confusion(confusion[:30, :30], names[:30]) is not None
    pairs = tables.confused(judged, names)
    assert pairs.rows == [["class 3", "class 998", "7", "100%"], ["class 5", "class 6", "2", "100%"]]
    assert len(tables.hardest(judged).rows) == tables.HARDEST


def test_the_page_holds_what_there_is_of_each_run(made, trained):
    text = made.read_text()
    assert page.MARK in text[:200]
    for words in (
        "What it makes of test pictures", "Most wrong about", "Confusion of classes", "Where it looks",
        "Where the runs differ", "all 18 test pictures", "--config=digits.py:pretrain", "mae, no labels",
        "no peak known of cpu",
    ):  # fmt: skip
        assert words in text, words
    assert "http" not in text.partition('id="plotly"')[0].replace("http-equiv", "")
    assert HOSTILE not in text
    accuracy = runs.read_run(trained[1], "").evaluated[-1]["accuracy"]
    assert f'<div class="number">{accuracy:.1%}' in text


def test_fewer_pictures_and_less_time_are_said(trained):
    run = runs.read_run(trained[1], "scratch")
    few = looks.look(run, 5, 60.0).answers
    assert (few.pictures, few.of, few.why_not_all) == (5, 18, "a random 5 of the 18 test pictures")
    assert {wrong.image.shape for wrong in few.mistakes} <= {(8, 8, 3)}
    class_of = looks.Shuffled(looks.open_tests(looks.load(run.workdir)), 18)
    assert sorted(class_of.indices.tolist()) == list(range(18))
    assert len({class_of[index].label for index in range(6)}) > 1


def test_what_is_missing_is_said_and_the_rest_is_there(trained, tmp_path, small):
    run = runs.read_run(trained[1], "scratch")
    (note,) = looks.without_model(run, "because").notes
    assert note == "because"
    workdir = tmp_path / "begun"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(workdirs.lasting(small("pretrain"))))
    (workdir / "metrics.jsonl").write_text('{"step": 1, "kind": "train", "loss": null}\n{"step": 2, "ki')
    made = making.report(workdir, tmp_path / "x.html").read_text()
    assert "Nothing of the model is shown." in made
    assert "not finite" in made
    assert made.count("not recorded") > 5
    (workdir / "figures").mkdir()
    Image.new("RGB", (3, 2)).save(workdir / "figures" / "reconstructions.png")
    assert "As the run itself drew it." in making.report(workdir, tmp_path / "x.html", model=False).read_text()
    (workdir / "metrics.jsonl").unlink()
    assert "nothing recorded yet" in making.report(str(workdir), tmp_path / "x.html").read_text()


def test_mistakes_are_a_sentence_and_nothing_is_written(trained, tmp_path, monkeypatch):
    (tmp_path / "mine.html").write_text("<html>mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for given, out, words in [
        ([], "x.html", "got none"),
        ([tmp_path / "nowhere"], "x.html", "there is no such folder"),
        ([tmp_path], "x.html", "it has no config.json"),
        ([tmp_path / "broken"], "x.html", "cannot be read"),
        ([trained[0], str(trained[0])], "x.html", "each run once"),
        (trained, "x.png", "ending in .html"),
        (trained, "mine.html", "is something else"),
        (trained, "nowhere/x.html", "it failed"),
    ]:
        with pytest.raises(UserError, match=words):
            making.report(given, tmp_path / out)
    assert (tmp_path / "mine.html").read_text() == "<html>mine"
    assert {path.name for path in tmp_path.iterdir()} == {"mine.html", "broken"}
    monkeypatch.setattr(making, "LIBRARIES", ("plotly", "no_such_library"))
    with pytest.raises(UserError, match=r"pip install \"vit_jax\[report\]\""):
        making.report(trained, tmp_path / "x.html")


def test_an_interrupted_page_leaves_the_earlier_one(made, trained, monkeypatch):
    before = made.read_bytes()

    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(page, "page", interrupted)
    with pytest.raises(KeyboardInterrupt):
        making.report(trained, made, model=False)
    assert made.read_bytes() == before
    assert list(made.parent.iterdir()) == [made]


# ---- in a browser ----

DRAWN = "document.documentElement.dataset.drawn"


@pytest.fixture(scope="module")
def chromium():
    if browser.found() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    opened = browser.Browser()
    yield opened
    opened.close()


def test_a_browser_draws_it_all_without_an_error_or_a_network(made, chromium):
    chromium.open(made, wait=DRAWN)
    figures = chromium.ask("document.querySelectorAll('.chart').length")
    assert figures >= 7
    assert chromium.ask("document.querySelectorAll('.chart .main-svg .trace, .chart .hm').length") >= figures
    assert chromium.ask("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert chromium.ask("document.images.length") > 30
    assert chromium.ask("document.title") != "taken"
    assert chromium.errors == []
    assert {address.partition(":")[0] for address in chromium.requests} <= {"file", "data", "blob"}
    assert len([address for address in chromium.requests if address.startswith("file")]) == 1


@pytest.mark.parametrize("width", [390, 1400])
def test_it_fits_narrow_and_wide_windows_in_the_light_and_in_the_dark(made, chromium, width):
    seen = []
    for dark in (False, True):
        chromium.open(made, width=width, dark=dark, wait=DRAWN)
        assert chromium.ask("document.documentElement.scrollWidth") == width
        seen.append(chromium.ask("[getComputedStyle(document.body).backgroundColor, "
                                 "document.querySelector('.chart .xtick text').style.fill]"))  # fmt: skip
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_a_name_hides_its_run_and_the_lights_may_change_meanwhile(made, chromium):
    chromium.open(made, wait=DRAWN)
    lines = "document.querySelectorAll('.chart .scatterlayer .trace').length"
    before = chromium.ask(lines)
    chromium.ask("document.querySelector('.legend button').click()")
    chromium.ask("new Promise(done => setTimeout(done, 300))")
    fewer = chromium.ask(lines)
    assert 0 < fewer < before
    chromium.order("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    chromium.ask("new Promise(done => setTimeout(done, 300))")
    assert chromium.ask(lines) == fewer
    assert chromium.ask("document.querySelector('.chart .xtick text').style.fill") == "rgb(162, 169, 180)"
    chromium.ask("document.querySelector('.legend button').click()")
    chromium.ask("new Promise(done => setTimeout(done, 300))")
    assert chromium.ask(lines) == before
    assert chromium.errors == []


def test_the_command_and_the_function_are_the_same(trained, tmp_path, capsys, monkeypatch):
    import vit_jax
    from vit_jax.commands import cli

    monkeypatch.setattr(time, "strftime", lambda *given: "now")
    out = tmp_path / "command.html"
    assert cli.main(["report", *map(str, trained), "--out", str(out), "--no-model"]) == 0
    assert "MiB" in capsys.readouterr().out
    assert vit_jax.report(trained, tmp_path / "call.html", model=False).read_bytes() == out.read_bytes()
    assert configuration.load("common.py")  # the table of defaults is a recipe that --config takes
