"""Damaged checkpoints are named and put aside, the step before is used, and no wrong number is ever read."""

import json
import shutil

import jax
import numpy as np
import pytest

from vit_jax import UserError, train
from vit_jax.api import load
from vit_jax.commands import cli
from vit_jax.commands.inspect import digest
from vit_jax.devices import make_mesh
from vit_jax.methods import method_of
from vit_jax.ops.checksums import checksum, checksum_on_device
from vit_jax.ops.paths import flat_params
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program
from vit_jax.weights import open_weights


def flip(path, place=None):
    """One bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2 if place is None else place] ^= 4
    path.write_bytes(data)


def flip_some(path):
    """A bit every few bytes: what a file holds may lie anywhere in it, and some of it is nobody's."""
    data = bytearray(path.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 64)):
        data[place] ^= 4
    path.write_bytes(data)


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


DAMAGE = {
    "one bit in the middle": flip,
    "one bit near the end": lambda path: flip(path, max(0, path.stat().st_size - 5)),
    "half of it": lambda path: cut(path, 0.5),
    "nothing left": lambda path: cut(path, 0),
    "deleted": lambda path: path.unlink(),
    "words": lambda path: path.write_text("{} not what was here\n"),
}


def tiny(small):
    config = small("scratch", ema=0.9)
    config.mesh.update({"data": 4, "fsdp": 2})
    return config


class Finished:
    """A finished run with the checkpoints 3 and 6."""

    def __init__(self, config, workdir):
        train.run(config, workdir)
        mesh = make_mesh(config)
        self.config, self.workdir = config, workdir
        self.program = make_program(
            config, method_of(config).objective(config, 10), make_schedule(config, 6, 2), 10, mesh
        )
        self.averages = {step: digest(Checkpoints(workdir, read_only=True).params(step)) for step in (3, 6)}
        self.digests = {step: self.digest(self.restore(Checkpoints(workdir, read_only=True), step)) for step in (3, 6)}
        assert self.digests[3] != self.digests[6]

    def restore(self, checkpoints, step):
        checkpoints.read(step)
        return checkpoints.restore(step, self.program.abstract, self.program.layout)

    def digest(self, state):
        return digest({path: np.asarray(leaf) for path, leaf in flat_params(state).items()})

    def copy(self, place):
        shutil.copytree(self.workdir, place)
        return place

    def files(self):
        newest = self.workdir / "checkpoints" / "6"
        found = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
        assert len(found) > 20
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_small):
    return Finished(tiny(make_small), tmp_path_factory.mktemp("damage") / "run")


def check(finished, workdir, caplog):
    """What is read is the newest step or the one before, with its own numbers; returns which."""
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    caplog.clear()
    weights, looked_at = open_weights(workdir)
    assert digest(weights.params) == finished.averages[looked_at]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before, "looking changes nothing"
    assert ("is damaged" in caplog.text) == (looked_at != max(int(name) for name in before if name.isdecimal()))
    caplog.clear()
    checkpoints = Checkpoints(workdir)
    step, state = checkpoints.newest(lambda step: finished.restore(checkpoints, step))
    assert finished.digest(state) == finished.digests[step]
    assert checkpoints.latest() == step, "what is damaged was moved away"
    assert step <= looked_at
    return step


def damage_alone(finished, place, caplog, file, damage):
    """The step that is used once `damage` has been done to one file of the newest step."""
    workdir = finished.copy(place)
    damage(workdir / "checkpoints" / "6" / file)
    step = check(finished, workdir, caplog)
    assert (workdir / "checkpoints" / "6.damaged").is_dir() == (step == 3), (file, damage)
    shutil.rmtree(workdir)
    return step


@pytest.mark.slow
def test_every_file_damaged_in_some_way(finished, tmp_path, caplog):
    kinds = list(DAMAGE.values())
    used = [
        damage_alone(finished, tmp_path / "run", caplog, file, kinds[number % len(kinds)])
        for number, file in enumerate(finished.files())
    ]
    assert used.count(3) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_every_file_damaged_in_every_way(finished, tmp_path, caplog, damage):
    used = [damage_alone(finished, tmp_path / "run", caplog, file, damage) for file in finished.files()]
    assert used.count(3) >= 5


def emptied(folder):
    shutil.rmtree(folder / "6")
    (folder / "6").mkdir()


def largest(folder, item):
    return max((folder / "6" / item).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def of_another_step(folder, item):
    shutil.rmtree(folder / "6" / item)
    shutil.copytree(folder / "3" / item, folder / "6" / item)


def reworded(folder, item, change):
    path = folder / "6" / item / "metadata"
    note = json.loads(path.read_text())
    change(note)
    path.write_text(json.dumps(note))


WHOLE_STEPS = {
    "an empty folder of a later step": lambda folder: (folder / "999").mkdir(),
    "a file where a step should be": lambda folder: (folder / "7").write_text("nothing"),
    "a link to nowhere": lambda folder: (folder / "7").symlink_to(folder / "gone"),
    "an empty step": emptied,
    "no parameters": lambda folder: shutil.rmtree(folder / "6" / "params"),
    "no optimiser": lambda folder: shutil.rmtree(folder / "6" / "train"),
    "no average": lambda folder: shutil.rmtree(folder / "6" / "ema"),
    "no configuration": lambda folder: shutil.rmtree(folder / "6" / "config"),
    "no names": lambda folder: shutil.rmtree(folder / "6" / "metadata"),
    "no position": lambda folder: shutil.rmtree(folder / "6" / "data"),
    "bits of the parameters": lambda folder: flip_some(largest(folder, "params")),
    "bits of the optimiser": lambda folder: flip_some(largest(folder, "train")),
    "bits of the average": lambda folder: flip_some(largest(folder, "ema")),
    "half of the parameters": lambda folder: cut(largest(folder, "params"), 0.5),
    "a lost file of the optimiser": lambda folder: largest(folder, "train").unlink(),
    "parameters of another step": lambda folder: of_another_step(folder, "params"),
    "an optimiser of another step": lambda folder: of_another_step(folder, "train"),
    "another rate": lambda folder: reworded(folder, "config", lambda note: note.update(base_lr=9.0)),
    "another position": lambda folder: reworded(folder, "data", lambda note: note.update(next_batch=5)),
    "another class name": lambda folder: reworded(folder, "metadata", lambda note: note["class_names"].reverse()),
    "a lying size": lambda folder: reworded(
        folder, "metadata", lambda note: note["checksums"]["arrays"]["params.head_out.bias"][0].append(2**40)
    ),
    "no JSON": lambda folder: (folder / "6" / "config" / "metadata").write_bytes(b"\xff\x00{"),
    "other JSON": lambda folder: (folder / "6" / "metadata" / "metadata").write_text("[1]"),
    "a half-written step beside it": lambda folder: shutil.copytree(folder / "6", folder / "9.orbax-checkpoint-tmp"),
    "a folder of another name": lambda folder: (folder / "backup").mkdir(),
}
HARMLESS = ("a half-written step beside it", "a folder of another name")


@pytest.mark.parametrize("damage", WHOLE_STEPS)
def test_steps_that_are_no_checkpoints(finished, tmp_path, caplog, damage):
    workdir = finished.copy(tmp_path / "run")
    WHOLE_STEPS[damage](workdir / "checkpoints")
    later = damage in ("an empty folder of a later step", "a file where a step should be", "a link to nowhere")
    assert check(finished, workdir, caplog) == (6 if later or damage in HARMLESS else 3)


def test_only_if_none_is_whole_it_stops(finished, tmp_path, capsys):
    workdir = finished.copy(tmp_path / "run")
    for step in (3, 6):
        flip(workdir / "checkpoints" / str(step) / "config" / "metadata")
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"every one is damaged \(6: .*; 3: .*another --workdir"):
        train.run(finished.config, workdir)
    for command in ("inspect", "eval"):
        assert cli.main([command, str(workdir)]) == 2
        words = capsys.readouterr().err
        assert words.startswith("error: Expected a whole checkpoint")
        assert len(words.splitlines()) == 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before
    with pytest.raises(UserError, match=r"checkpoints/6 as it was written, it is damaged"):
        load(workdir, step=6)


def test_a_run_goes_on_from_the_step_before(finished, tmp_path, capsys):
    workdir = finished.copy(tmp_path / "run")
    flip(largest(workdir / "checkpoints", "params"))
    assert cli.main(["inspect", str(workdir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 3
    train.run(finished.config, workdir)
    assert "continuing at step 3" in capsys.readouterr().out
    assert Checkpoints(workdir).steps() == [3, 6]
    assert (workdir / "checkpoints" / "6.damaged").is_dir()
    assert finished.digest(finished.restore(Checkpoints(workdir), 6)) == finished.digests[6]


def test_checkpoints_of_earlier_versions_have_no_checksums_and_open(finished, tmp_path, caplog):
    workdir = finished.copy(tmp_path / "run")
    reworded(workdir / "checkpoints", "metadata", lambda note: note.pop("checksums"))
    assert check(finished, workdir, caplog) == 6


def test_what_may_not_be_read_is_no_damage(finished, tmp_path, monkeypatch):
    workdir = finished.copy(tmp_path / "run")
    checkpoints = Checkpoints(workdir)

    def forbidden(self, step, name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Checkpoints, "_place", forbidden)
    with pytest.raises(UserError, match="change the permissions"):
        checkpoints.newest(checkpoints.read)
    assert (workdir / "checkpoints" / "6").is_dir()


def test_config_json_is_for_people(finished, tmp_path, capsys):
    """Every command and the next start read the checkpoint's own."""
    workdir = finished.copy(tmp_path / "run")
    (workdir / "config.json").unlink()
    for command in ("inspect", "eval"):
        assert cli.main([command, str(workdir)]) == 0
    train.run(finished.config, workdir)
    assert "--config.init_from" in capsys.readouterr().out  # it is finished, and the way on is named


@pytest.mark.parametrize("keep", [0, -1])
def test_a_run_keeps_at_least_one(tmp_path, keep):
    with pytest.raises(UserError, match="keep_checkpoints of at least 1"):
        Checkpoints(tmp_path, keep=keep)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_checksums_know_every_bit_and_every_place(dtype):
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (4, 6), (8, 3, 5), (70_000,)):
        array = np.asarray(jax.numpy.asarray(rng.normal(size=shape) * 50).astype(dtype))
        there = checksum(array)
        assert there == int(jax.jit(checksum_on_device)(array))
        if array.ndim and array.shape[0] % 4 == 0:
            mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
            spread = jax.device_put(array, jax.NamedSharding(mesh, jax.P("x")))
            assert there == int(jax.jit(checksum_on_device)(spread))
        if array.size > 1 and dtype != "bool":
            assert checksum(np.roll(array, 1)) != there
            flipped = array.copy()
            flipped.reshape(-1).view(np.uint8)[array.nbytes // 2] ^= 1
            assert checksum(flipped) != there


def test_two_changed_signs_are_two_changes():
    """The highest bits alone: sums with odd weights would lose them."""
    array = np.ones(8, np.float32)
    changed = array.copy()
    changed[[2, 5]] = -1
    assert checksum(array) != checksum(changed)
