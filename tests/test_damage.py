"""Damaged checkpoints are named and put aside, the step before is used, and no wrong number is ever read."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

from vit_jax import UserError, configuration, train
from vit_jax.api import load
from vit_jax.commands import cli
from vit_jax.commands.inspect import digest
from vit_jax.devices import make_mesh
from vit_jax.ops.checksums import checksum, checksum_on_device
from vit_jax.ops.paths import flat_params
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.objectives import make_objective
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program
from vit_jax.weights import open_weights


def flip(path, place=None):
    """One bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[len(data) // 2 if place is None else place] ^= 4
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
        self.program = make_program(config, make_objective(config, 10), make_schedule(config, 6, 2), 10, mesh)
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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_each_file_damaged_alone(finished, tmp_path, caplog, damage):
    """Of every file of a step, whatever it is for: the right numbers of this step or of the one before."""
    used = {3: 0, 6: 0}
    for number, file in enumerate(finished.files()):
        workdir = finished.copy(tmp_path / str(number))
        damage(workdir / "checkpoints" / "6" / file)
        before = sorted(path.name for path in (workdir / "checkpoints").iterdir())
        weights, looked_at = open_weights(workdir)
        averaged = Checkpoints(workdir, read_only=True).params(3)
        if looked_at == 3:
            assert "is damaged" in caplog.text
            assert digest(weights.params) == digest(averaged)
        assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == before, "looking changes nothing"
        caplog.clear()
        checkpoints = Checkpoints(workdir)
        step, state = checkpoints.newest(lambda step, checkpoints=checkpoints: finished.restore(checkpoints, step))
        assert finished.digest(state) == finished.digests[step], file
        assert (workdir / "checkpoints" / "6.damaged").is_dir() == (step == 3)
        assert ("moved to 6.damaged, step 3 is used" in caplog.text) == (step == 3)
        used[step] += 1
        shutil.rmtree(workdir)
    print(used)
    assert used[3] >= 5
