"""One run at a time in a workdir, whoever died there before; what is stored means the same from any folder."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vit_jax import UserError, configuration, train, workdir_lock, workdirs
from vit_jax.data.sources import open_source
from vit_jax.workdir_lock import LOCK, Lock

HOLDER = (
    "import sys, time; from vit_jax.workdir_lock import Lock; lock = Lock(sys.argv[1]); lock.take();"
    "print('held', flush=True);"
    "sys.stdin.read(); lock.close()"
)


def start_holder(workdir):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_second_start_is_refused_and_a_dead_holder_is_replaced(tmp_path, caplog):
    holder = start_holder(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match=rf"process {holder.pid} on \S+ uses it: .*another --workdir"):
        Lock(tmp_path).take()
    assert files(tmp_path) == before
    holder.kill()
    holder.communicate()
    lock = Lock(tmp_path)
    lock.take()
    assert f"process {holder.pid}" in caplog.text
    assert "is dead" in caplog.text
    lock.check()
    lock.close()
    caplog.clear()
    after = start_holder(tmp_path)  # what was given back is free, without a word
    after.communicate("")
    Lock(tmp_path).take()
    assert not caplog.text


def test_a_second_run_touches_nothing(small, tmp_path):
    """In particular not the other one's checkpoint that is being written."""
    lock = Lock(tmp_path)
    lock.take()
    unfinished = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"Expected the workdir .* to be free, this process uses it"):
        train.run(small("scratch", total_steps=1, warmup_steps=0), tmp_path)
    assert files(tmp_path) == before
    lock.close()
    assert (tmp_path / LOCK).read_text() == ""


def written_by(workdir, **changes):
    (workdir / LOCK).write_text(json.dumps(workdir_lock.who() | changes))


@pytest.mark.parametrize("lockable", [True, False], ids=["", "on a disk without locks"])
def test_a_holder_on_another_machine_shows_life_or_is_dead(tmp_path, monkeypatch, caplog, lockable):
    monkeypatch.setattr(workdir_lock, "PATIENCE_SECONDS", 1)
    if not lockable:
        monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    written_by(tmp_path, host="elsewhere", pid=7, machine="another")
    ended = threading.Event()

    def live():
        while not ended.wait(0.1):
            os.utime(tmp_path / LOCK)

    beats = threading.Thread(target=live)
    beats.start()
    with pytest.raises(UserError, match="process 7 on elsewhere uses it"):
        Lock(tmp_path).take()
    ended.set()
    beats.join()
    lock = Lock(tmp_path)
    lock.take()
    assert "process 7 on elsewhere is dead" in caplog.text
    lock.check()
    lock.close()


def test_a_process_number_used_again_is_not_the_holder(tmp_path, monkeypatch):
    """The number of this very process, of another time; and words that nobody wrote whole."""
    monkeypatch.setattr(workdir_lock, "PATIENCE_SECONDS", 0.5)
    written_by(tmp_path, started="17")
    lock = Lock(tmp_path)
    lock.take()
    lock.close()
    (tmp_path / LOCK).write_text('{"host": "cut o')
    lock = Lock(tmp_path)
    lock.take()
    lock.close()


def test_the_lock_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "BEAT_SECONDS", 0.05)
    lock = Lock(tmp_path)
    lock.take()
    before, deadline = (tmp_path / LOCK).stat().st_mtime_ns, time.monotonic() + 20
    while (tmp_path / LOCK).stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.close()


def test_who_lost_the_lock_or_the_workdir_hears_of_it(tmp_path):
    lock = Lock(tmp_path)
    lock.take()
    written_by(tmp_path, host="elsewhere", pid=7)
    with pytest.raises(UserError, match="process 7 on elsewhere has taken it"):
        lock.check()
    lock.close()
    assert "elsewhere" in (tmp_path / LOCK).read_text(), "what is not ours stays"
    other = Lock(tmp_path / "run")
    (tmp_path / "run").mkdir()
    other.take()
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="removed or moved"):
        other.check()
    other.close()


def test_paths_are_stored_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "digits", "weights"):
        Path(folder).mkdir()
    config = configuration.default_fields()
    config.update({"dataset": "pictures", "pretrained_dir": "./weights", "tfds_data_dir": "gs://bucket/tfds"})
    stored = workdirs.lasting(config)
    assert stored["dataset"] == str(tmp_path / "pictures")
    assert stored["pretrained_dir"] == str(tmp_path / "weights")
    assert stored["tfds_data_dir"] == "gs://bucket/tfds"
    config.dataset = "digits"  # the data set of this name, not the folder
    assert workdirs.lasting(config)["dataset"] == "digits"


@pytest.mark.parametrize(
    "dataset", ["pictures", "./pictures", "my/pictures", "My_pictures", "~/no pictures", "/no/pictures"]
)
def test_a_missing_folder_is_called_one(dataset):
    with pytest.raises(UserError, match=r"the folder /.*pictures does not exist .*config\.dataset"):
        open_source(dataset, "train")


def test_a_data_set_of_tfds_that_is_not_prepared_is_called_that(tmp_path):
    with pytest.raises(UserError, match="Expected cifar10 to be prepared"):
        open_source("cifar10", "train", tfds_data_dir=str(tmp_path))


def test_make_clean_leaves_runs_alone():
    makefile = Path(configuration.recipes_root()) / "Makefile"
    done = subprocess.run(
        ["make", "-n", "-f", str(makefile), "clean"], cwd=makefile.parent, capture_output=True, text=True, check=True
    )
    assert "rm -rf" in done.stdout
    assert "runs" not in done.stdout.split()
