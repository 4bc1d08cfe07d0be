"""The clock of a run: what interrupts training is no part of a step's time, and is counted as often as it comes again."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from vit_jax import train
from vit_jax.training import progress as module
from vit_jax.training.progress import STEPS_AHEAD, Progress, Window
from vit_jax.training.tracker import fitting, headline

EVERY = {"eval": 10, "figures": 0, "checkpoint": 0}


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def steps(window, count, clock, seconds):
    for _ in range(count):
        clock(seconds)
        window.reports.append(None)


def test_an_interruption_is_no_part_of_the_pace(clock):
    """Twenty steps of two seconds; an evaluation of an hour after the tenth, in which the device takes the last two."""
    progress, window = Progress(100, EVERY), Window()
    steps(window, STEPS_AHEAD, clock, 0.0)  # handed out, not waited for
    steps(window, 10 - STEPS_AHEAD, clock, 2.0)
    with progress.pause("eval", window):
        clock(3600.0)
    steps(window, STEPS_AHEAD, clock, 0.0)
    steps(window, 10 - STEPS_AHEAD, clock, 2.0)
    clock(STEPS_AHEAD * 2.0)  # the log line waits for all
    progress.add(window)
    assert window.steps == 20 - STEPS_AHEAD
    assert progress.pace == pytest.approx(2.0)
    # 80 steps, and an evaluation at 20 (which is due now), 30, ... 90 and at the end
    assert progress.left(20) == pytest.approx(80 * 2.0 + 9 * 3600.0)
    assert progress.left(21) == pytest.approx(79 * 2.0 + 8 * 3600.0)
    assert progress.left(100) == pytest.approx(3600.0)
    assert progress.next_evaluation(20) == (20, 0.0)
    assert progress.next_evaluation(21) == (30, pytest.approx(18.0))
    assert Progress(100, EVERY | {"eval": 0}).next_evaluation(21)[0] == 100
    assert Progress(25, EVERY).next_evaluation(21)[0] == 25


def test_the_pace_moves_along(clock):
    progress = Progress(1000, EVERY)
    for seconds in (60.0, *[1.0] * module.WINDOWS):
        window = Window()
        steps(window, 5, clock, seconds)
        progress.add(window)
    assert progress.pace == pytest.approx(1.0)


def test_the_first_steps_foretell_once(clock):
    progress, window, found = Progress(1000, EVERY), Window(), []
    clock(50.0)  # the first step waits for the data
    for step in range(1, 40):
        clock(0.5)
        found.append(progress.forecast(step))
        if step == 5:
            with progress.pause("figures", window):
                clock(100.0)
    told = [(step, value) for step, value in enumerate(found, 1) if value]
    first = 6 + STEPS_AHEAD  # it begins anew after the interruption, once what was under way is done
    ((step, (left, pace, measured)),) = told
    assert (step, measured) == (first + module.FIRST_STEPS, module.FIRST_STEPS)
    assert pace == pytest.approx(0.5)
    assert left == pytest.approx((1000 - step) * 0.5 + 100.0)


def test_slow_steps_need_not_be_many_and_short_runs_are_not_foretold(clock):
    slow, short = Progress(1000, EVERY), Progress(30, EVERY)
    for step in range(1, 30):
        clock(1.0)
        assert short.forecast(step) is None
    found = {}
    for step in range(1, 20):
        clock(30.0)
        found[step] = slow.forecast(step)
    assert [step for step, value in found.items() if value] == [1 + STEPS_AHEAD + 3]


def test_a_run_says_all_of_it(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "WORTH_SAYING", 0.0)
    monkeypatch.setattr(module, "FIRST_STEPS", 3)
    train.run(small("scratch", total_steps=8, progress_every=3, eval_every=6, checkpoint_every=0), tmp_path)
    said = capsys.readouterr().out
    assert "CPU cores" not in said  # by its FLOPs it is too short for that
    lines = [line for line in said.splitlines() if line.startswith(("step", "about"))]
    number = r"[\d.,e+-]+"
    expected = [
        rf"step 3/8  left 0:\d\d  loss {number}  {number} img/s  next test at 6 in 0:\d\d  accuracy .*data_wait {number}",
        rf"about 1 minute to go, as measured over 3 steps of {number} s",
        r"step 6/8  .* img/s  a test follows  .*",
        r"step 6  test  .*",
        r"step 8/8  .* img/s  test accuracy \S+ at 6  a test follows  .*",
        r"step 8  test  .*",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_what_is_watched():
    rates = {"loss": 1.0, "accuracy": 0.5, "top5": 0.9, "examples": 10}
    assert headline(rates, None) == "accuracy"
    assert headline(rates, "top5") == "top5"
    assert headline({"examples": 10, "loss": 1.0}, None) == "loss"


@pytest.mark.parametrize(("columns", "words"), [(3, "ste"), (19, "step 1/20"), (20, "step 1/20  left 1:00")])
def test_a_line_is_as_long_as_the_terminal_is_wide(columns, words):
    assert fitting(["step 1/20", "left 1:00", "loss 2"], columns) == words


def test_on_a_terminal_the_line_is_redrawn(tmp_path):
    """A real one, of forty columns."""
    script = """if True:
        import sys, time
        from vit_jax.training.progress import Progress, Window
        from vit_jax.training.tracker import Tracker
        tracker, progress = Tracker(sys.argv[1], step=0, total_steps=20, loggers=()), Progress(20, {"eval": 10})
        for step in (1, 2):
            tracker.line(step, {"loss": 1.0, "accuracy": 0.5, "img/s": 12345.6}, progress)
        tracker.say("a line that stays")
        tracker.close()
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    bare = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], stdout=theirs, env=bare, check=True)
    os.close(theirs)
    shown = os.read(ours, 4096).decode().split("\r\x1b[2K")
    os.close(ours)
    assert shown[1:3] == [f"step {step}/20  left ?  loss 1  12,346 img/s" for step in (1, 2)]
    assert max(map(len, shown[1:3])) < 40
    assert shown[3].splitlines() == ["a line that stays", ""]
