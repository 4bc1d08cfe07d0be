"""Loggers are told what metrics.jsonl is told, once and to the end; trouble of theirs is never the run's."""

import importlib.machinery
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import types

import pytest

from vit_jax import UserError, configuration, loggers, train
from vit_jax.loggers import weights_and_biases
from vit_jax.run_figures import draw_run
from vit_jax.training.tracker import Tracker, read_metrics

NOT_LOGGED = {"step", "kind", "time"}


def as_metrics(history):
    """Rows as W&B has them -> {(kind, step): {name: value}}, the later one where a step was logged twice."""
    found = {}
    for row in history:
        kinds = {name.partition("/")[0] for name in row if "/" in name and not name.startswith("_")}
        for kind in kinds - {"figures"}:
            values = {name.partition("/")[2]: value for name, value in row.items() if name.startswith(f"{kind}/")}
            found[kind, row["step"]] = values
    return found


def recorded(workdir):
    return {
        (row["kind"], row["step"]): {name: value for name, value in row.items() if name not in NOT_LOGGED}
        for row in read_metrics(workdir)
    }


class Service:
    """What we use of the package wandb, and what it was told."""

    def __init__(self):
        self.begun, self.history, self.finished = [], [], 0
        self.key, self.mode = True, "online"
        self.url, self.offline = "https://wandb.example/run", False
        self.dir = "there/files"

    def init(self, **fields):
        self.begun.append(fields)
        return self

    def log(self, row):
        self.history.append(row)

    def finish(self):
        self.finished += 1

    def define_metric(self, name, **more):
        assert (name, more) in (("step", {"hidden": True}), ("*", {"step_metric": "step"}))

    def module(self):
        made = types.ModuleType("wandb")
        made.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
        made.init, made.login = lambda **fields: self.init(**fields), lambda prompt: self.key
        made.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))
        made.Settings, made.Image = dict, lambda path: path
        return made


@pytest.fixture
def service(monkeypatch):
    made = Service()
    monkeypatch.setitem(sys.modules, "wandb", made.module())
    return made


def test_weights_and_biases_gets_what_metrics_jsonl_gets_and_one_run_a_workdir(small, tmp_path, service, capsys):
    config = small("scratch", loggers=("tensorboard", "wandb"), eval_every=2)
    train.run(config, tmp_path, draw=draw_run)
    assert "Weights & Biases: https://wandb.example/run" in capsys.readouterr().out
    assert as_metrics(service.history) == recorded(tmp_path)
    assert {kind for kind, _ in recorded(tmp_path)} == {"run", "train", "eval"}
    (figures,) = [row for row in service.history if "figures/curves" in row]
    assert figures == {"step": 6, "figures/curves": str(tmp_path / "figures" / "curves.png")}
    (begun,) = service.begun
    assert begun["config"]["model"] == configuration.plain(config)["model"]
    assert service.finished == 1

    shutil.rmtree(tmp_path / "checkpoints" / "6")  # stopped after step 3
    config.loggers = ("wandb",)  # another field of the same run
    train.run(config, tmp_path)
    assert [again["id"] for again in service.begun] == [begun["id"]] * 2
    assert all(again["resume"] == "allow" and again["allow_val_change"] for again in service.begun)
    assert as_metrics(service.history) == recorded(tmp_path)
    assert service.finished == 2


def test_none_is_fine_and_what_there_is_not_is_refused(small, tmp_path, monkeypatch):
    tracker = Tracker(tmp_path, step=0, total_steps=1, loggers=())
    tracker.record("train", 1, {"loss": 1.0})
    tracker.close()
    assert not (tmp_path / "tensorboard").exists()
    assert len(read_metrics(tmp_path)) == 1
    with pytest.raises(UserError, match=r"config\.loggers of tensorboard, wandb, got 'wandbb'"):
        train.run(small("scratch", loggers=("wandbb",)), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # as W&B leaves it behind; it is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    for gone in (lambda: None, lambda: sys.modules.pop("wandb") and None):
        gone()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(UserError, match=r'pip install "vit_jax\[wandb\]"'):
            train.run(small("scratch", loggers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def told(tmp_path, rows=3, close=True):
    tracker = Tracker(tmp_path, step=0, total_steps=9, loggers=("wandb",))
    for step in range(1, rows + 1):
        tracker.record("train", step, {"loss": 1.0})
        time.sleep(0.02)
    tracker.close()
    assert len(read_metrics(tmp_path)) == rows


@pytest.mark.parametrize("where", ["log", "finish", "define_metric"])
def test_a_failure_is_said_once_and_the_run_goes_on(tmp_path, service, monkeypatch, capsys, where):
    def fail(*_, **__):
        raise SystemExit("no more disk")

    monkeypatch.setattr(service, where, fail)
    told(tmp_path)
    said = capsys.readouterr().out
    assert said.count("NOTE: Weights & Biases failed (SystemExit: no more disk); the run goes on") == 1


@pytest.mark.parametrize("why", ["network", "key"])
def test_without_the_service_it_is_written_to_the_disk(tmp_path, service, monkeypatch, capsys, why):
    def init(**fields):
        if fields["mode"] == "online":
            raise TimeoutError("nobody answers")
        service.offline = True
        return service

    monkeypatch.setattr(service, "init", init)
    service.key = why != "key"
    told(tmp_path)
    said = capsys.readouterr().out
    assert {"network": "nobody answers", "key": "`wandb login` or WANDB_API_KEY"}[why] in said
    assert "`wandb sync there` uploads it" in said
    assert as_metrics(service.history) == recorded(tmp_path)


def test_files_of_a_bucket_are_uploaded_from_there(tmp_path, service, monkeypatch, capsys):
    """The folder that they are written in goes when the run ends."""
    service.offline = True
    Tracker(tmp_path, step=0, total_steps=1, loggers=("wandb",), bucket="gs://bucket/run").close()
    said = capsys.readouterr().out
    assert "copy gs://bucket/run/wandb/there to a disk when the run has ended, `wandb sync there` uploads it" in said


def test_what_never_answers_is_not_waited_for(tmp_path, service, monkeypatch, capsys):
    never = threading.Event()
    monkeypatch.setattr(service, "init", lambda **_: never.wait(60) and service)
    monkeypatch.setattr(weights_and_biases, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(weights_and_biases, "FINISH_SECONDS", 0.1)
    began = time.monotonic()
    told(tmp_path)
    assert time.monotonic() - began < 10
    assert "does not answer: the run ends without waiting for it" in capsys.readouterr().out
    never.set()


def test_only_the_first_process_logs(tmp_path, service):
    tracker = Tracker(tmp_path, step=0, total_steps=1, writes=False, loggers=("wandb",))
    tracker.record("train", 1, {"loss": 1.0})
    tracker.figures(1)
    tracker.close()
    assert not service.begun
    assert not list(tmp_path.iterdir())


def test_every_logger_imports_its_package_only_when_it_is_opened():
    names = [logger.package for logger in loggers.LOGGERS.values()]
    script = f"import sys, vit_jax.train; assert not set({names}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# ---- the real package ------------------------------------------------------------------------------------------

SETTINGS = [
    "--config=digits.py:scratch", "--config.dataset=fake", "--config.pp.channels=3", "--config.pp.train=train",
    "--config.total_steps=6", "--config.warmup_steps=2", "--config.batch=16", "--config.batch_eval=32",
    "--config.model.hidden_size=16", "--config.progress_every=2", "--config.checkpoint_every=3",
    "--config.loggers=tensorboard,wandb",
]  # fmt: skip


def start(workdir, *more, **variables):
    free = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.main", f"--workdir={workdir}", *SETTINGS, *more], env=free | variables,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def records(file):
    """The records of a W&B file: after 7 bytes a log of LevelDB, blocks of 32 KiB of (crc, length, type, part of one)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if place % 2**15 > 2**15 - 7:
            place += -place % 2**15
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
        place += 7 + length


@pytest.mark.slow
def test_offline_it_holds_what_metrics_jsonl_holds(tmp_path):
    pytest.importorskip("wandb")
    first = start(tmp_path, WANDB_MODE="offline")
    assert "`wandb sync " in first
    (tmp_path / "checkpoints" / "6").rename(tmp_path / "6")  # stopped after step 3
    time.sleep(1.1)  # the folder's name has seconds
    start(tmp_path, "--config.eval_every=2", WANDB_MODE="offline")
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    found = [record for file in files for record in records(file)]
    (name,) = {record.run.run_id for record in found if record.WhichOneof("record_type") == "run"}
    assert name == json.loads((tmp_path / "wandb.json").read_text())["id"]
    rows = [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    logged, wanted = as_metrics(rows), recorded(tmp_path)
    assert {place: logged[place] for place in wanted} == wanted
    assert any("figures/curves/path" in row for row in rows)
    assert "batch" in {item.key for record in found for item in record.run.config.update}
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in found
            if record.WhichOneof("record_type") == "metric"}  # fmt: skip
    assert axes["*"] == "step"


@pytest.mark.slow
def test_without_a_network_a_run_ends_as_it_should(tmp_path):
    pytest.importorskip("wandb")
    began = time.monotonic()
    said = start(tmp_path, WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_CONFIG_DIR=str(tmp_path))
    assert time.monotonic() - began < 150
    assert re.search(r"NOTE: Weights & Biases is not to be had \(.*\)", said)
    assert "wandb sync" in said
    assert len(recorded(tmp_path)) > 3
