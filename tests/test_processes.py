"""Real processes on one machine, joined by gloo: one run whatever their number, and down together when one is."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import tolerances
from tests.process_worker import metrics_of_every_length
from vit_jax import UserError, configuration, processes, sharding
from vit_jax.commands.inspect import digest
from vit_jax.methods import method_of
from vit_jax.ops.paths import flat_params
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program
from vit_jax.training.tracker import read_metrics

FIELDS = {
    "total_steps": 60, "warmup_steps": 2, "decay_type": "constant", "batch": 16, "batch_eval": 56, "progress_every": 5,
    "eval_every": 15, "checkpoint_every": 5, "num_threads": 1, "mixup": 0.8, "ema": 0.9, "mesh.data": 2, "mesh.fsdp": 2,
    "mesh.tensor": 2, "model.hidden_size": 16, "model.transformer.num_layers": 2, "model.transformer.num_heads": 2,
    "model.transformer.mlp_dim": 32, "model.transformer.dropout_rate": 0.1,
}  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def by_variables(number, count, port):
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


def by_slurm(number, count, port):
    return {
        "SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count), "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
    }  # fmt: skip


def by_open_mpi(number, count, port):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{port * 4096}.0;tcp://127.0.0.1:{port}", "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }  # fmt: skip


class Group:
    """`count` processes with 8 / count pretended devices each, started together."""

    def __init__(self, count, folder, command, launcher=by_variables):
        port, self.logs, self.members = free_port(), [], []
        for number in range(count):
            environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}"}
            environment |= launcher(number, count, port) if count > 1 else {}
            self.logs.append(folder / f"log.{random.getrandbits(40):x}.{number}")
            with self.logs[-1].open("w") as log:
                made = command(number) if callable(command) else command
                self.members.append(
                    subprocess.Popen([sys.executable, *made], env=environment, stdout=log, stderr=subprocess.STDOUT)
                )

    def wait(self, seconds=240):
        try:
            return [member.wait(seconds) for member in self.members]
        finally:
            for member in self.members:
                with contextlib.suppress(ProcessLookupError):
                    member.kill()

    def words(self, number=0):
        return self.logs[number].read_text(errors="replace")


def training(workdir, recipe="scratch", **changes):
    fields = [f"--config.{name}={value}" for name, value in (FIELDS | changes).items()]
    return ["-m", "vit_jax.main", f"--workdir={workdir}", f"--config=configs/digits.py:{recipe}", *fields]


def losses(workdir, kind="train"):
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if row["kind"] == kind}


def final_digest(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    assert checkpoints.latest() == FIELDS["total_steps"]
    found = digest(checkpoints.params(checkpoints.latest(), averaged=False))
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def two_by_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_by_four")
    group = Group(2, folder, training(folder / "run"))
    assert group.wait() == [0, 0], group.words()
    return folder / "run"


@pytest.mark.parametrize(("count", "launcher"), [(1, by_variables), pytest.param(4, by_slurm, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_nothing(two_by_four, tmp_path, count, launcher):
    """The order of examples, the losses and the exact evaluation (360 = 6 x 56 + 24 pictures) are the same."""
    group = Group(count, tmp_path, training(tmp_path / "run", total_steps=15), launcher)
    assert group.wait() == [0] * count, group.words()
    for kind in ("train", "eval"):
        ours, theirs = losses(tmp_path / "run", kind), losses(two_by_four, kind)
        assert set(ours) == ({5, 10, 15} if kind == "train" else {15})
        for step, loss in ours.items():
            np.testing.assert_allclose(loss, theirs[step], rtol=tolerances.SUM_ORDER)
    assert all(row["examples"] == 360 for row in read_metrics(tmp_path / "run") if row["kind"] == "eval")


@pytest.mark.slow
def test_a_killed_process_stops_the_others_and_the_restart_continues_exactly(two_by_four, tmp_path):
    """A worker killed, the coordinator killed, one told to stop, Ctrl-C on one: the same parameters in the end."""
    workdir = tmp_path / "run"
    interruptions = ((1, signal.SIGKILL, 10), (0, signal.SIGKILL, 20), (1, signal.SIGTERM, 30), (0, signal.SIGINT, 40))
    for victim, signal_number, step in interruptions:
        group = Group(2, tmp_path, training(workdir))
        deadline = time.monotonic() + 120
        while max(losses(workdir), default=0) < step:
            assert time.monotonic() < deadline, group.words()
            time.sleep(0.05)
        group.members[victim].send_signal(signal_number)
        began = time.monotonic()
        statuses = group.wait(60)
        assert time.monotonic() - began < 60
        if signal_number in (signal.SIGTERM, signal.SIGINT):
            assert statuses == ([0, 0] if signal_number == signal.SIGTERM else [130, 0])
            assert "saved; the same command continues" in group.words()
        else:
            assert statuses[1 - victim] != 0
            assert "another task died" in group.words(1 - victim) or "has ended" in group.words(1 - victim)
            assert "Thread 0x" not in group.words(1 - victim)
    group = Group(2, tmp_path, training(workdir))
    assert group.wait() == [0, 0], group.words()
    assert "continuing at step" in group.words()
    assert final_digest(workdir) == final_digest(two_by_four)


@pytest.mark.parametrize("sizes", [{"data": 1}, {"fsdp": 4}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_a_checkpoint_opens_on_another_mesh_and_as_numpy(two_by_four, sizes):
    config = configuration.load("digits.py:scratch")
    config.update_from_flattened_dict({name: value for name, value in FIELDS.items() if not name.startswith("mesh")})
    mesh = sharding.make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    program = make_program(config, method_of(config).objective(config, 10), make_schedule(config, 60, 2), 10, mesh)
    checkpoints = Checkpoints(two_by_four, read_only=True)
    state, plain = checkpoints.restore(60, program.abstract, program.layout), checkpoints.params(60, averaged=False)
    checkpoints.close()
    assert int(state.step) == 60
    for path, leaf in flat_params(state.params).items():
        assert type(plain[path]) is np.ndarray
        np.testing.assert_array_equal(np.asarray(leaf), plain[path])
        assert len(leaf.sharding.device_set) == mesh.devices.size


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
    group = Group(2, tmp_path, lambda number: training(tmp_path / f"run{number}"), by_open_mpi)
    assert group.wait(60) == [2, 2], group.words()
    for number in range(2):
        assert f"error: process {number} of 2: Expected a workdir that all processes share" in group.words(number)
    assert not (tmp_path / "run0" / "config.json").exists()


@pytest.mark.parametrize("count", [2])
def test_evaluation_is_exact_for_every_remainder(tmp_path, small, count):
    fields = {
        "batch": 16,
        "batch_eval": 16,
        "pp.crop": 8,
        "pp.channels": 3,
        "model.hidden_size": 16,
        "model.head_std": 0.1,
    }
    fields |= {
        f"model.transformer.{name}": size for name, size in (("num_layers", 1), ("num_heads", 2), ("mlp_dim", 32))
    }
    group = Group(count, tmp_path, ["-m", "tests.process_worker", json.dumps(fields)])
    assert group.wait() == [0] * count, group.words()
    together = json.loads(next(line for line in group.words().splitlines() if line.startswith("[{")))
    config = configuration.load("digits.py:scratch")
    config.update_from_flattened_dict(fields | {"batch_eval": 8})  # one process, other batches: the plain answer
    assert [row["examples"] for row in together] == list(range(1, 34))
    for length in (1, 15, 16, 17, 31, 32, 33):
        (alone,) = metrics_of_every_length(config, [length])
        for name, value in alone.items():
            np.testing.assert_allclose(together[length - 1][name], value, rtol=tolerances.SUM_ORDER)


def test_places_by_their_variables():
    found = [processes.find_place(launcher(1, 4, 5000)) for launcher in (by_variables, by_slurm, by_open_mpi)]
    assert [(place.processes, place.process, place.method) for place in found] == [
        (4, 1, None), (4, 1, "slurm"), (4, 1, "ompi"),
    ]  # fmt: skip
    assert found[0].coordinator == "localhost:5000"
    assert processes.find_place({}) is None
    assert processes.find_place(by_slurm(0, 1, 5000)) is None  # a job of one task is alone
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert processes.find_place(hosts).launcher == "TPU slice"
    assert processes.find_place(hosts | {"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize("missing", ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_half_a_place_is_an_error(missing):
    given = {name: value for name, value in by_variables(0, 2, 5000).items() if name != missing}
    with pytest.raises(UserError, match="--num_processes"):
        processes.find_place(given)
