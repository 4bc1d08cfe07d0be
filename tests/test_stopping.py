"""Ctrl-C, SIGTERM, `kill -9` and hangs: at any moment a command ends, and a run loses nothing that it need not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests import interruptions
from vit_jax import configuration, signals, train
from vit_jax.contracts import Record
from vit_jax.data.loader import eval_batches, train_batches
from vit_jax.data.transforms import Preprocess
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.tracker import read_metrics
from vit_jax.watchdog import HUNG, LEAST_SECONDS, STEPS, Watchdog

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {
    "total_steps": 30, "warmup_steps": 2, "batch": 4, "batch_eval": 8, "dataset": "fake", "pp.channels": 3, "pp.crop": 8,
    "pp.train": "train", "model.hidden_size": 16, "model.transformer.num_layers": 1, "model.transformer.num_heads": 2,
    "model.transformer.mlp_dim": 16, "eval_every": 0, "checkpoint_every": 0, "progress_every": 1, "num_threads": 1,
}  # fmt: skip


def start(*command, **variables):
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen(
        [sys.executable, *command], env=os.environ | quick | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process, seconds=60):
    """(exit status, stdout, stderr); it and whatever it left behind is killed where it does not end."""
    try:
        output, errors = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in output + errors, errors
    return process.returncode, output, errors


def wait_for(found, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def run_stuck(tmp_path):
    """A run with something that never answers, started and stuck; its workdir, and the file of who is stuck."""
    started = []

    def run(what, **fields):
        mark = tmp_path / "mark"
        words = [f"--config.{name}={value}" for name, value in (FIELDS | fields).items()]
        command = ("-m", "tests.stuck_run", f"--workdir={tmp_path / 'run'}", "--config=digits.py:scratch", *words)
        process = start(*command, STUCK=what, MARK=str(mark))
        started.append(process)
        wait_for(mark.exists, process)
        return process, tmp_path / "run", mark

    yield run
    for process in started:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def latest(workdir):
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.latest()


# ---- commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "slow"),
    [(["vit_jax.main"], "numpy"), (["vit_jax.main"], "absl"), (["vit_jax.commands.cli", "models"], "numpy")],
    ids=str,
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_during_its_imports(tmp_path, command, number, slow):
    (tmp_path / f"{slow}.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = start("-m", *command, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    status, _, errors = ended(process)
    assert status == 128 + number
    assert errors.strip() == signals.NAMES[number]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_command_that_is_inside_c(tmp_path, number):
    """As in a compiler: Python's own handlers would wait until it returns."""
    (tmp_path / "stuck.py").write_text("from tests.stuck_run import stuck\n\ndef get_config():\n    stuck()\n")
    mark = tmp_path / "mark"
    command = ("-m", "vit_jax.main", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / 'stuck.py'}")
    process = start(*command, MARK=str(mark))
    wait_for(mark.exists, process)
    process.send_signal(number)
    status, _, errors = ended(process)
    assert status == 128 + number
    assert errors.strip() == signals.NAMES[number]


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path):
    (tmp_path / "numpy.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    script = "import signal, runpy; signal.signal(signal.SIGINT, signal.SIG_IGN);"
    script += "runpy.run_module('vit_jax.commands.cli', run_name='__main__')"
    process = start("-c", script, "models", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143


def test_entry_points_import_nothing_before_they_hear_signals():
    script = (
        "import sys; before = set(sys.modules); import vit_jax.commands.cli;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "assert new == {'vit_jax'}, new"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_a_reader_that_goes_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.commands.cli", "models"], stdout=writer, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (signals.BROKEN_PIPE, "")


# ---- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_run_that_waits_for_data_stops_and_saves(run_stuck, workers, number, expected):
    process, workdir, _ = run_stuck("data", num_workers=workers)
    wait_for(lambda: any(row["step"] == 12 for row in read_metrics(workdir)), process)
    told = time.monotonic()
    os.killpg(process.pid, number) if workers else process.send_signal(number)  # as a terminal does
    status, output, _ = ended(process)
    assert time.monotonic() - told < 30
    assert status == expected
    assert "stopped at step 12, saved; the same command continues" in output
    assert latest(workdir) == 12


def test_a_second_ctrl_c_ends_at_once(run_stuck):
    process, _, _ = run_stuck("disk")  # the last save
    process.send_signal(signal.SIGINT)
    assert any("Ctrl-C again ends at once" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    status, _, errors = ended(process)
    assert (status, errors.strip()) == (130, "interrupted")


@pytest.mark.parametrize("what", ["figures", "exit"])
def test_at_the_end_of_a_run_ctrl_c_ends_it_at_once(run_stuck, what):
    process, workdir, _ = run_stuck(what)
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    assert latest(workdir) == 30


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_workers_end_with_their_parent(run_stuck):
    process, _, mark = run_stuck("data", num_workers=2)
    workers = [int(line) for line in mark.read_text().split()]
    assert process.pid not in workers
    process.kill()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate()


# ---- hangs -----------------------------------------------------------------------------------------------------


def test_a_run_that_hangs_says_why_and_ends(run_stuck):
    process, workdir, _ = run_stuck("data", hang_seconds=5)
    status, _, errors = ended(process)
    assert status == HUNG
    (sentence,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    place = workdir / "hang-12.txt"
    for words in ("training pictures", str(place), "hang_seconds", "the same command continues"):
        assert words in sentence
    assert "in stuck" in place.read_text()  # the function that hangs


def test_how_long_a_step_may_take(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    measured, given, never = (Watchdog(tmp_path, seconds) for seconds in (None, 7.0, 0.0))
    assert measured.limit() == LEAST_SECONDS
    for number in range(1, 6):
        clock[0] += 60.0 if number != 3 else 5000.0  # one was evaluated after
        measured.step(number)
    assert measured.limit() == STEPS * 60.0
    assert measured.limit(10.0) == 10 * STEPS * 60.0
    assert (given.limit(), given.limit(10.0)) == (7.0, 70.0)
    assert never.limit() == float("inf")
    for watch in (measured, given, never):
        watch.close()


def test_the_time_in_which_a_run_was_suspended_is_no_hang(tmp_path, monkeypatch):
    ends, passed = [], threading.Event()
    monkeypatch.setattr(Watchdog, "_give_up", lambda *arguments: ends.append(arguments))
    true, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: (passed.set(), true() + ahead[0])[1])
    with contextlib.closing(Watchdog(tmp_path, 2.0)) as watch:
        watch.waits_for("data")
        ahead[0] = 3600.0  # Ctrl-Z, an hour, fg
        passed.clear()
        assert passed.wait(5)
        time.sleep(0.3)
        assert not ends
    assert not ends


def test_long_waits_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_jax.watchdog.QUIET_SECONDS", 0.01)
    with contextlib.closing(Watchdog(tmp_path, 1.0)) as watch:
        watch.waits_for("the disk")
        deadline, said = time.monotonic() + 20, ""
        while "waiting for the disk, " not in said:
            assert time.monotonic() < deadline
            said += capsys.readouterr().out
            time.sleep(0.01)


# ---- data ------------------------------------------------------------------------------------------------------


class Slow:
    """Pictures that come when they are let go."""

    class_names = ("a", "b")
    name = "slow"

    def __init__(self):
        self.asked, self.go = threading.Event(), threading.Event()

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if threading.current_thread() is not threading.main_thread():
            self.asked.set()
            assert self.go.wait(60)
        return Record(np.zeros((8, 8, 3), np.uint8), 0, "x")


@pytest.mark.parametrize("batches_of", [train_batches, eval_batches])
def test_waiting_for_data_asks_whether_to_stop(batches_of):
    config = configuration.default_fields()
    config.pp.crop = 8
    source, told = Slow(), threading.Event()
    more = {"seed": 0} if batches_of is train_batches else {}
    batches = batches_of(source, Preprocess.from_config(config.pp), batch=4, num_threads=1, stop=told.is_set, **more)
    assert source.asked.wait(10)
    told.set()
    assert next(batches, None) is None
    source.go.set()
    batches.close()
    with contextlib.closing(batches_of(source, Preprocess.from_config(config.pp), batch=4, **more)) as again:
        assert next(again).image.shape == (4, 8, 8, 3)


# ---- what is said and saved ------------------------------------------------------------------------------------


def test_checkpoints_by_time_and_lines_from_the_start(small, tmp_path, capsys):
    train.run(small("scratch", checkpoint_every=0, checkpoint_minutes=1e-9, keep_checkpoints=10), tmp_path / "often")
    train.run(small("scratch", checkpoint_every=0, checkpoint_minutes=0, keep_checkpoints=10), tmp_path / "once")
    steps = {
        place: {int(path.name) for path in (tmp_path / place / "checkpoints").iterdir()} for place in ("often", "once")
    }
    assert steps == {"often": {1, 2, 3, 4, 5, 6}, "once": {6}}
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("waiting for ")]
    assert lines[0].startswith("fake -> ")
    assert lines[2] == "compiling the step ..."
    assert lines[3].startswith("compiled in ")


def rows(workdir):
    return [{**row, "time": 0} for row in read_metrics(workdir) if row["kind"] == "eval"]


def test_an_evaluation_that_was_cut_off_is_made_up_for_and_none_is_made_twice(small, tmp_path, monkeypatch):
    config = small("scratch", eval_every=2, checkpoint_every=0, batch_eval=8)
    whole = train.run(config, tmp_path / "whole")
    assert train.run(config, tmp_path / "whole").metrics == whole.metrics
    assert [row["step"] for row in rows(tmp_path / "whole")] == [2, 4, 6]

    from vit_jax import run

    evaluate, calls = run.evaluate, []

    def told_in_the_middle(*arguments, **more):
        calls.append(1)
        if len(calls) in (2, 4):  # at step 4; and the last one
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **more)

    monkeypatch.setattr(run, "evaluate", told_in_the_middle)
    results = [train.run(config, tmp_path / "parts") for _ in range(3)]
    assert [(result.step, result.stopped) for result in results] == [(4, True), (6, True), (6, False)]
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


# ---- at any moment ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["INT", "TERM", "KILL"])
def test_interrupted_at_random_moments_and_continued_it_is_the_same_run(tmp_path, name):
    """A few; `python -m tests.interruptions --signal INT --count 100` for many."""
    trials = interruptions.run(name, 4, folder=tmp_path)
    assert len(trials) == 4
    assert not [found for found in trials if found.wrong]
