"""Workdirs in a bucket: what a run leaves there, who may write, and going on from it on another machine."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from etils import epath

import vit_jax
from tests import bucket_kills
from tests.buckets import Bucket
from tests.test_processes import FIELDS, Group, final_digest, losses, training
from vit_jax import UserError, places, train, workdir_lock
from vit_jax.bucket_lock import lock_of
from vit_jax.commands.cli import main
from vit_jax.places import Mirror, place
from vit_jax.run_figures import draw_run
from vit_jax.training.tracker import read_metrics


@pytest.fixture(scope="module")
def bucket():
    with Bucket() as found:
        yield found


# ---- addresses ----


def test_a_path_is_absolute_and_an_address_stays_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert os.fspath(place("runs/a")) == str(tmp_path / "runs" / "a")
    assert os.fspath(place("~/a")) == str(tmp_path / "home" / "a")
    assert os.fspath(place("file:///a/b")) == "/a/b"
    for written in ("gs://bucket/run/", Path("gs://bucket/run"), epath.Path("gs://bucket/run")):
        assert os.fspath(place(written)) == "gs://bucket/run"
    assert not places.in_bucket(place("odd:name")), "a colon alone is a name"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://host/run", "an address that begins with gs:// or s3://"),
        ("hdfs://host/run", "an address that begins with gs:// or s3://"),
        ("gs://", "name the bucket"),
        ("s3://bucket/run", r"the package s3fs.*pip install \"vit_jax\[s3\]\""),
    ],
)
def test_other_addresses_are_refused_before_anything_is_made(address, words, small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = places.importlib.util.find_spec
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: real(name) if name != "s3fs" else None)
    with pytest.raises(UserError, match=words):
        train.run(small(), address)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "predict {} x.png --csv gs://bucket/x.csv",
        "export {} gs://bucket/out",
        "probe {} --dataset digits --cache gs://bucket/c",
    ],
)
def test_what_commands_write_goes_to_a_disk(words, capsys):
    assert main(words.format("runs/none").split()) == 2
    assert "expected a path on a disk, got 'gs://bucket/" in capsys.readouterr().err


# ---- the lock ----


def holds(bucket, **changes):
    """Write the lock as another run would."""
    place("gs://bucket/run/.lock").write_text(json.dumps(workdir_lock.who() | {"beat": 0} | changes))


@pytest.fixture
def free(bucket):
    yield place("gs://bucket/run")
    place("gs://bucket/run/.lock").unlink(missing_ok=True)


def test_the_lock_is_one_runs_and_is_given_back(bucket, free):
    lock = lock_of(free)
    lock.take()
    with pytest.raises(UserError, match=rf"process {os.getpid()} on \S+ uses it: .*another --workdir"):
        lock_of(free).take()
    lock.check()
    lock.close()
    assert bucket.names("run/") == []


def test_of_two_that_find_no_lock_one_gets_it(bucket, free, monkeypatch):
    """Both have looked before either writes."""
    first, second = lock_of(free), lock_of(free)
    looks = iter([{}])
    real = second._now
    monkeypatch.setattr(second, "_now", lambda: next(looks, None) or real())
    first.take()
    with pytest.raises(UserError, match="uses it"):
        second.take()
    first.check()
    first.close()


def test_a_dead_holder_here_is_replaced_and_one_elsewhere_waited_for(bucket, free, monkeypatch, caplog):
    monkeypatch.setattr(workdir_lock, "PATIENCE_SECONDS", 1)
    holds(bucket, started="17")  # this process's number, used again
    lock = lock_of(free)
    lock.take()
    lock.close()
    assert "waiting" not in caplog.text
    holds(bucket, machine="another", host="elsewhere", pid=7)
    other = lock_of(free)
    other.take()
    assert "process 7 on elsewhere is dead" in caplog.text
    other.close()


def test_a_holder_elsewhere_that_writes_its_lock_anew_lives(bucket, free, monkeypatch):
    monkeypatch.setattr(workdir_lock, "PATIENCE_SECONDS", 5)
    ended = threading.Event()

    def live():
        beat = 0
        while not ended.wait(0.1):
            holds(bucket, machine="another", host="elsewhere", pid=7, beat=(beat := beat + 1))

    holds(bucket, machine="another", host="elsewhere", pid=7)
    beats = threading.Thread(target=live)
    beats.start()
    with pytest.raises(UserError, match="process 7 on elsewhere uses it"):
        lock_of(free).take()
    ended.set()
    beats.join()


def test_the_lock_beats_and_who_lost_it_hears_of_it(bucket, free, monkeypatch):
    monkeypatch.setattr(workdir_lock, "BEAT_SECONDS", 0.05)
    lock, deadline = lock_of(free), time.monotonic() + 20
    lock.take()
    while json.loads(bucket.read("run/.lock"))["beat"] < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    holds(bucket, host="elsewhere", pid=7)
    time.sleep(0.2)
    with pytest.raises(UserError, match="process 7 on elsewhere has taken it"):
        lock.check()
    lock.close()
    assert b"elsewhere" in bucket.read("run/.lock"), "what is not ours stays"


def test_a_bucket_that_is_not_there_is_one_sentence(bucket, small):
    with pytest.raises(UserError, match=r"Expected to reach gs://nobody/run, it failed \(there is none\)"):
        train.run(small(), "gs://nobody/run")


# ---- the files beside the checkpoints ----


def test_a_mirror_copies_what_changed_and_brings_it_back(bucket):
    mirror = Mirror(place("gs://bucket/mirrored"))
    (mirror.local / "figures").mkdir()
    (mirror.local / "figures" / "a.png").write_bytes(b"a")
    (mirror.local / "metrics.jsonl").write_text("1\n")
    (mirror.local / "half.tmp").write_text("no")
    mirror.push()
    assert bucket.names("mirrored/") == ["mirrored/figures/a.png", "mirrored/metrics.jsonl"]
    before = len(bucket.uploads)
    mirror.push()
    assert len(bucket.uploads) == before
    with (mirror.local / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    mirror.push()
    assert bucket.uploads[before:] == ["mirrored/metrics.jsonl"]
    other = Mirror(place("gs://bucket/mirrored"))
    other.pull()
    assert {path.name: path.read_text() for path in other.local.iterdir()} == {"metrics.jsonl": "1\n2\n"}
    other.push()
    assert len(bucket.uploads) == before + 1, "what was fetched is there"
    for one in (mirror, other):
        one.close()
        assert not one.local.exists()


def test_a_disk_is_its_own_mirror(tmp_path):
    mirror = Mirror(place(tmp_path))
    (tmp_path / "a").touch()
    mirror.pull()
    mirror.push()
    mirror.close()
    assert mirror.local == tmp_path
    assert (tmp_path / "a").exists()


# ---- runs ----


@pytest.fixture(scope="module")
def half(bucket, make_small):
    """A run of six steps whose last checkpoint is of step 3, as if it had been killed after that."""
    where = "gs://bucket/half"
    train.run(make_small(eval_every=3), where, draw=draw_run)
    epath.Path(f"{where}/checkpoints/6/commit_success.txt").unlink()
    return where


def test_a_run_leaves_in_a_bucket_what_it_leaves_on_a_disk(bucket, half, small, tmp_path):
    train.run(small(eval_every=3), tmp_path / "run", draw=draw_run)

    def files(names):
        return {name for name in names if not name.startswith((".lock", "checkpoints", "tensorboard"))}

    ours = files(
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    assert files(name.removeprefix("half/") for name in bucket.names("half/")) == ours
    assert any(name.startswith("half/tensorboard/events") for name in bucket.names())
    assert [(row["step"], row["kind"]) for row in read_metrics(half)] == [
        (row["step"], row["kind"]) for row in read_metrics(tmp_path / "run")
    ]


def test_an_unfinished_upload_is_no_checkpoint_and_the_run_goes_on_from_the_one_before(half, small, tmp_path, capsys):
    train.run(small(eval_every=3), tmp_path / "whole")
    assert vit_jax.load(half).step == 3
    train.run(small(eval_every=3), half)
    assert "continuing at step 3" in capsys.readouterr().out
    ours, theirs = vit_jax.load(half), vit_jax.load(tmp_path / "whole")
    assert ours.step == theirs.step == 6
    assert main(["inspect", half]) == 0
    told = capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "whole")]) == 0
    digest = next(line for line in told.splitlines() if "sha256" in line)
    assert digest in capsys.readouterr().out
    evaluations = [
        [{**row, "time": 0} for row in read_metrics(place) if row["kind"] == "eval"]
        for place in (half, tmp_path / "whole")
    ]
    assert evaluations[0] == evaluations[1]


def test_a_report_of_it_is_that_of_a_disk(half, tmp_path):
    page = vit_jax.report(half, tmp_path / "bucket.html", model=False).read_text()
    assert "finished 6 steps" in page or "step 6" in page
    with pytest.raises(UserError, match=r"gs://bucket/none is none"):
        vit_jax.report("gs://bucket/none", tmp_path / "none.html")
    with pytest.raises(UserError, match="twice"):
        vit_jax.report([half, f"{half}/"], tmp_path / "twice.html")


def test_another_run_begins_with_it(half, small, tmp_path, capsys):
    train.run(small(init_from=half, total_steps=1, warmup_steps=0), tmp_path)
    assert f"from {half} step" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_in_the_middle_of_uploads_it_ends_alike(tmp_path):
    trials = bucket_kills.run(2, seed=1, folder=tmp_path)
    assert [trial.wrong for trial in trials] == [[], []]


@pytest.mark.slow
def test_two_processes_share_a_bucket_and_go_on_from_it_on_fresh_machines(bucket, tmp_path):
    """One is killed; every start has a disk of its own that holds nothing."""

    def start(name, workdir):
        (tmp_path / name).mkdir()
        os.environ["TMPDIR"] = str(tmp_path / name)
        return Group(2, tmp_path / name, training(workdir))

    whole = start("whole", "gs://bucket/whole2")
    assert whole.wait() == [0, 0], whole.words()
    group, deadline = start("first", "gs://bucket/run2"), time.monotonic() + 240
    while max(losses("gs://bucket/run2"), default=0) < 20:
        assert time.monotonic() < deadline, group.words()
        assert [member.poll() for member in group.members] == [None, None], group.words()
        time.sleep(0.1)
    group.members[1].send_signal(signal.SIGKILL)
    assert 0 not in group.wait()
    group = start("second", "gs://bucket/run2")
    assert group.wait() == [0, 0], group.words()
    assert "continuing at step" in group.words()
    assert final_digest("gs://bucket/run2") == final_digest("gs://bucket/whole2")
    rows = [row["step"] for row in read_metrics("gs://bucket/run2") if row["kind"] == "eval"]
    assert rows == [15, 30, 45, FIELDS["total_steps"]]
