"""Whole runs: resuming bit for bit, being killed, being told to stop, bad settings, transfer of weights."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vit_jax import UserError, api, configuration, processes, train
from vit_jax.commands.inspect import digest
from vit_jax.methods.building import build
from vit_jax.ops.paths import flat_params
from vit_jax.ops.positions import resample_table
from vit_jax.run_figures import draw_run
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.tracker import Tracker, read_metrics
from vit_jax.training.transfer import transfer


def final_digest(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    found = digest(checkpoints.params(checkpoints.latest(), averaged=False))
    checkpoints.close()
    return found


@pytest.mark.parametrize("stage", ["scratch", "pretrain"])
def test_a_run_in_two_parts_is_the_run_in_one(small, tmp_path, stage):
    config = small(stage, mixup=0.0 if stage == "pretrain" else 0.8, ema=0.99)
    whole = train.run(config, tmp_path / "whole", draw=draw_run)
    assert whole.step == 6
    assert np.isfinite(whole.metrics["loss"])
    assert whole.metrics["examples"] == 64

    # stop at step 3 by leaving only that checkpoint, then go on with the same command
    train.run(config, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    again = train.run(config, tmp_path / "parts")
    assert again.metrics == whole.metrics
    assert final_digest(tmp_path / "parts") == final_digest(tmp_path / "whole")
    rows = [row["step"] for row in read_metrics(tmp_path / "parts") if row["kind"] == "train"]
    assert rows == sorted(set(rows)), "resuming must not write a step twice"

    figures = {path.name for path in (tmp_path / "whole" / "figures").iterdir()}
    assert figures == {"curves.png"} | ({"reconstructions.png"} if stage == "pretrain" else set())
    assert list((tmp_path / "whole" / "tensorboard").iterdir())
    trained = api.load(tmp_path / "whole")
    assert trained.step == 6
    assert (trained.class_names is None) == (stage == "pretrain")
    assert trained([np.zeros((40, 20, 3), np.uint8)]).shape[0] == 1


def test_a_workdir_of_another_configuration_is_refused(small, tmp_path):
    config = small("scratch", total_steps=2, warmup_steps=1)
    train.run(config, tmp_path)
    before = final_digest(tmp_path)
    other = small("scratch", total_steps=2, warmup_steps=1, weight_decay=0.5)
    with pytest.raises(UserError, match=r"weight_decay.*another --workdir"):
        train.run(other, tmp_path)
    assert final_digest(tmp_path) == before
    # where and how may change
    train.run(small("scratch", total_steps=2, warmup_steps=1, unroll=2, eval_every=1), tmp_path)
    with pytest.raises(UserError, match="workdir with checkpoints"):
        api.load(tmp_path / "nowhere")


def test_an_encoder_moves_into_a_classifier(small, tmp_path):
    pretrain = small("pretrain", total_steps=2, warmup_steps=1)
    train.run(pretrain, tmp_path / "mae")
    source = api.load(tmp_path / "mae")
    config = small("finetune", init_from=str(tmp_path / "mae"), total_steps=1, warmup_steps=0, base_lr=0.0)
    train.run(config, tmp_path / "classifier")
    moved = api.load(tmp_path / "classifier").model
    np.testing.assert_array_equal(
        moved.transformer.blocks.mlp.fc1.kernel[...], source.model.encoder.transformer.blocks.mlp.fc1.kernel[...]
    )
    np.testing.assert_array_equal(moved.embedding.kernel[...], source.model.encoder.embedding.kernel[...])
    np.testing.assert_array_equal(moved.norm.scale[...], np.ones(16))  # after pooling: a new layer

    wide = small("finetune", init_from=str(tmp_path / "mae"), total_steps=1, warmup_steps=0)
    wide.model.hidden_size = 32
    with pytest.raises(UserError, match=r"expected .*, got .*init_from"):
        train.run(wide, tmp_path / "wide", typed=frozenset({"model.hidden_size"}))
    assert not (tmp_path / "wide" / "config.json").exists()


def test_a_larger_picture_resamples_learned_positions(small, tmp_path):
    config = small("scratch", total_steps=1, warmup_steps=0)
    config.model.positions = "learn"
    train.run(config, tmp_path / "small")
    larger = small("scratch", total_steps=1, warmup_steps=0, base_lr=0.0, init_from=str(tmp_path / "small"))
    larger.model.positions, larger.pp.crop = "learn", 12
    train.run(larger, tmp_path / "large")
    assert api.load(tmp_path / "large").model.positions.shape == (1 + 36, 16)


@pytest.mark.parametrize("resampling", ["google", "bicubic"])
def test_positions_are_resampled_as_their_source_does(small, resampling):
    config, larger = small("scratch"), small("scratch")
    config.model.positions = larger.model.positions = "learn"
    larger.pp.crop = 12
    shapes = [flat_params(jax.eval_shape(lambda config=config: build(config, 10))) for config in (config, larger)]
    source = {path: np.random.default_rng(0).normal(size=leaf.shape) for path, leaf in shapes[0].items()}
    moved = transfer(source, config, {path: leaf.shape for path, leaf in shapes[1].items()}, larger, resampling)
    by_hand = resample_table(source["positions"], (4, 4), (6, 6), resampling)
    np.testing.assert_array_equal(moved.params["positions"], by_hand)


def test_a_loss_that_stays_non_finite_stops_the_run_and_keeps_the_batch(small, tmp_path):
    config = small("scratch", max_skipped_steps=2)
    config.pp.std = (1e-38,)
    with pytest.raises(UserError, match="finite loss"):
        train.run(config, tmp_path)
    kept = np.load(tmp_path / "skipped" / "batch_0.npz")
    assert kept["image"].shape == (16, 8, 8, 3)


def test_nothing_is_saved_from_a_streak_and_the_advice_works(small, tmp_path, capsys):
    """A rate that explodes from step 3 on: step 3 stays the last checkpoint, and a lower rate goes on from there."""
    train.run(small("scratch", ema=0.9), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    before = final_digest(tmp_path)
    exploding = small("scratch", ema=0.9, base_lr=1e30, grad_norm_clip=None, checkpoint_every=1, max_skipped_steps=2)
    exploding.progress_every = 1
    with pytest.raises(UserError, match=r"finite loss.*lower base_lr or set grad_norm_clip.*continues from step 4; where "
                       r"that does not help, remove \S+/4, and it continues from step 3"):  # fmt: skip
        train.run(exploding, tmp_path)
    assert "base_lr 0.004 -> 1e+30 from here on" in capsys.readouterr().out
    assert Checkpoints(tmp_path).steps() == [3, 4]  # 5 and 6 had no finite loss
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    assert final_digest(tmp_path) == before
    train.run(small("scratch", ema=0.9, base_lr=0.001), tmp_path)
    assert "base_lr 0.004 -> 0.001 from here on" in capsys.readouterr().out
    assert [row["base_lr"] for row in read_metrics(tmp_path) if row["kind"] == "run"][-1] == 0.001
    assert Checkpoints(tmp_path).steps() == [3, 6]


def test_a_run_that_is_told_to_stop_in_a_streak_saves_nothing(small, tmp_path, capsys, monkeypatch):
    config = small("scratch", max_skipped_steps=100, eval_every=2)
    config.pp.std = (1e-38,)
    told = lambda run: setattr(run.stop, "told", True)  # noqa: E731
    monkeypatch.setattr(train.Run, "judge", told)
    assert train.run(config, tmp_path).stopped
    assert not (tmp_path / "checkpoints").exists()
    assert "stopped at step 2, not saved as its loss was not finite" in capsys.readouterr().out


def test_a_last_step_without_a_finite_loss_is_no_end(small, tmp_path):
    config = small("scratch", max_skipped_steps=100)
    config.pp.std = (1e-38,)
    with pytest.raises(UserError, match=r"the last step \(6\) had none: .*nothing was saved yet"):
        train.run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_workdir_that_vanishes_is_an_error(small, tmp_path):
    config = small("scratch", figures_every=2, checkpoint_every=0)
    with pytest.raises(UserError, match="removed"):
        train.run(config, tmp_path / "run", draw=lambda workdir, *_: shutil.rmtree(workdir))


def test_metrics_that_are_none_are_left_out(tmp_path):
    lines = [b'{"step": 1, "kind": "train", "loss": 2.0}', b"\xff\x00\x80", b"{}", b"[]", b"3", b'{"step": "x"}',
             b'{"kind": "train"}', b'{"step": 2, "kind": "eval"}', b'{"step": 3, "ki']  # fmt: skip
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    tracker = Tracker(tmp_path, step=1, total_steps=3)
    tracker.record("train", 2, {"loss": 1.5})
    tracker.close()
    assert [(row["step"], row["kind"]) for row in read_metrics(tmp_path)] == [(1, "train"), (2, "train")]


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

    assert RecordWriter
    tracker = Tracker(tmp_path, step=4, total_steps=9)
    tracker.record("train", 5, {"loss": 1.5})
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, events = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert [event.step for event in events] == [0, 5, 5]
    assert events[1].session_log.status == 1  # START: what came after is forgotten
    assert (events[2].summary.value[0].tag, events[2].summary.value[0].simple_value) == ("train/loss", 1.5)


def test_a_full_disk_is_one_sentence(tmp_path):
    """No file above 100 KB, as on a disk that fills up while a checkpoint is written."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100 && exec "$@"', "bash", sys.executable, "-m", "vit_jax.main",
         f"--workdir={tmp_path}/run", *SETTINGS, "--config.model.hidden_size=64"],
        env={**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: Expected to write a checkpoint into")
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "/nowhere/at/all"}, "folder of pictures"),
        ({"batch": 12}, r"config\.batch"),
        ({"batch_eval": 12}, "batch_eval"),
        ({"init_from": "/nowhere"}, "workdir with checkpoints"),
        ({"optim": "adam"}, "optim"),
        ({"loss": "sofmax"}, r"config\.loss"),
        ({"remat": "some"}, r"config\.remat"),
        ({"pp.crop": 9}, r"pp\.crop or model\.patches\.size"),
        ({"pp.crop": 1}, r"pp\.crop or model\.patches\.size"),
        ({"pp.train": "tran"}, "train, test"),
        ({"pp.train": "train[:0%]"}, "empty"),
        ({"pp.channels": 7}, r"pp\.channels"),
        ({"model.classifier": "tokn"}, r"model\.classifier"),
        ({"model.transformer.num_heads": 3}, "num_heads"),
        ({"mesh.data": 3}, r"config\.mesh"),
    ],
)
def test_bad_settings_are_one_clear_sentence(small, tmp_path, change, message):
    config = small("scratch")
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_more_visible_patches_than_there_are(small, tmp_path):
    config = small("pretrain")
    config.mae.num_visible = 99
    with pytest.raises(UserError, match=r"mae\.num_visible"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_workdir_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="workdir"):
        train.run(small("scratch"), tmp_path / "file" / "run")


def test_a_failed_write_is_an_error_and_the_last_good_step_stays(small, tmp_path, monkeypatch):
    config = small("scratch", total_steps=3, warmup_steps=1)
    train.run(config, tmp_path)
    before = final_digest(tmp_path)
    checkpoints = Checkpoints(tmp_path)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.manager, "check_for_errors", full_disk)
    with pytest.raises(UserError, match=r"No space left.*last good one is step 3"):
        checkpoints.check()
    assert final_digest(tmp_path) == before


def test_config_files_and_fields():
    with pytest.raises(UserError, match=r"did you mean digits\.py"):
        configuration.load("digts.py")
    with pytest.raises(UserError, match="scratch"):
        configuration.load("digits.py:scrach")
    config = configuration.load("digits.py:scratch").to_dict()
    config["bach"] = 3
    with pytest.raises(UserError, match="'batch'"):
        configuration.check(config)
    del config["bach"], config["batch"]
    with pytest.raises(UserError, match="batch"):
        configuration.check(config)


# ---- other processes -------------------------------------------------------------------------------------------

SETTINGS = [
    "--config=digits.py:scratch", "--config.total_steps=60", "--config.warmup_steps=5", "--config.checkpoint_every=7",
    "--config.progress_every=5", "--config.batch=32", "--config.eval_every=0", "--config.dataset=fake",
    "--config.pp.channels=3", "--config.pp.train=train", "--config.batch_eval=64", "--config.model.hidden_size=16",
    "--config.mixup=0.5", "--config.ema=0.9",
]  # fmt: skip


def start(workdir, *more, settings=SETTINGS):
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "vit_jax.main", f"--workdir={workdir}", *settings, *more],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


def wait_for(path, process, seconds=120):
    deadline = time.time() + seconds
    while not path.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    return path.exists()


def kill_at_random_moments(tmp_path, kills, seed, *more):
    """SIGKILL the run `kills` times, then let it finish; returns how many of the kills hit a running step."""
    rng, hits = np.random.default_rng(seed), 0
    for _ in range(kills):
        process = start(tmp_path / "killed", *more)
        wait_for(tmp_path / "killed" / "metrics.jsonl", process)
        time.sleep(rng.uniform(0, 4))
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(tmp_path / "killed", *more))
    return hits


def check_killed_run(tmp_path, kills, seed, hits, *more):
    finish(start(tmp_path / "whole", *more))
    assert kill_at_random_moments(tmp_path, kills, seed, *more) >= hits
    assert final_digest(tmp_path / "killed") == final_digest(tmp_path / "whole")
    last = [row for row in read_metrics(tmp_path / "killed") if row["kind"] == "eval"][-1]
    whole = [row for row in read_metrics(tmp_path / "whole") if row["kind"] == "eval"][-1]
    assert {**last, "time": 0} == {**whole, "time": 0}


def test_killed_and_continued_is_bit_equal(tmp_path):
    check_killed_run(tmp_path, 2, 0, 1)


@pytest.mark.slow
def test_killed_twenty_times_is_bit_equal(tmp_path):
    check_killed_run(tmp_path, 20, 1, 18, "--config.total_steps=1500", "--config.checkpoint_every=25")


def test_sigterm_saves_and_exits_with_zero(tmp_path):
    process = start(tmp_path / "run", "--config.total_steps=100000", "--config.checkpoint_every=100000")
    assert wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while len(read_metrics(tmp_path / "run")) < 3 and process.poll() is None:
        time.sleep(0.05)
    told = time.time()
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert time.time() - told < 20
    assert "saved; the same command continues" in output
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    assert checkpoints.latest() > 0
    assert checkpoints.next_batch(checkpoints.latest()) == checkpoints.latest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=digits.py:scratch"], "--workdir"),
        (["--workdir=run", "--config=digits.py:scratch", "--config.bach=3"], "batch"),
        (["--workdir=run", "--config=digits.py:scratch", "--config.batch=many"], "batch"),
        (["--workdir=run", "--config=digits.py:scratch", "more"], "unrecognized arguments: more"),
    ],
)
def test_command_line_mistakes(tmp_path, arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.main", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(configuration.recipes_root())},
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_metrics_lines_are_json(small, tmp_path):
    train.run(small("scratch", total_steps=2, warmup_steps=1), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"run", "train", "eval"}
    assert {"loss", "lr", "img/s", "data_wait"} <= {name for row in rows for name in row}


def test_ctrl_c_saves_and_ends_with_130(tmp_path):
    process = start(tmp_path / "run", "--config.total_steps=100000", "--config.checkpoint_every=100000")
    assert wait_for(tmp_path / "run" / "metrics.jsonl", process)
    while len(read_metrics(tmp_path / "run")) < 3 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Ctrl-C again ends at once" in output
    assert "the same command continues" in output
    assert "Traceback" not in output
    assert Checkpoints(tmp_path / "run", read_only=True).latest() > 0


def test_signals_are_given_back_and_ignored_ones_stay_ignored():
    held = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stop = processes.Stop()
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop()
    assert stop.interrupted
    with pytest.raises(KeyboardInterrupt):  # the second one does not ask
        os.kill(os.getpid(), signal.SIGINT)
    stop.close()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == held
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with contextlib.closing(processes.Stop()) as stop:
            stop.listen()
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, held[1])


def test_the_compilation_cache_lies_in_the_home_unless_the_user_chose(tmp_path):
    script = (
        "from vit_jax.devices import use_compilation_cache as use; import jax;"
        "use(); print(jax.config.jax_compilation_cache_dir)"
    )
    bare = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}

    def place(**more):
        return subprocess.run(
            [sys.executable, "-c", script], env=bare | more, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert place(XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / "vit_jax" / "xla")
    assert place(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine")) == str(tmp_path / "mine")


def test_nothing_is_compiled_again_and_the_host_reads_only_at_log_lines(small, tmp_path, monkeypatch):
    """After the first evaluation and the first checkpoint no step, evaluation or save compiles anything."""
    compiled, read, at_line = [], [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    fetch, line = jax.device_get, Tracker.line

    def counted_fetch(tree):
        read.append(sys._getframe(1).f_code.co_name)
        return fetch(tree)

    def counted_line(self, step, values, eta):
        at_line.append((step, len(compiled)))
        line(self, step, values, eta)

    monkeypatch.setattr(jax, "device_get", counted_fetch)
    monkeypatch.setattr(Tracker, "line", counted_line)
    train.run(small("scratch", total_steps=20, progress_every=5, eval_every=5, checkpoint_every=5), tmp_path)
    seen = dict(at_line)
    assert seen[5] > 0
    assert seen[20] == seen[15] == seen[10]
    assert read.count("loop") == 4
    assert set(read) == {"loop", "evaluate"}
