#!/usr/bin/env bash
# One worker's part of launch/tpu.sh, which copies this file to every worker and runs it there.
# usage: tpu_worker.sh setup | idle | start CONFIG WORKDIR [flags of vit-jax train] | stop | verdict
# `setup` needs the network and a few GB of disk; with BUCKET it mounts that bucket at /mnt/bucket, to read data from. A WORKDIR
# on gs:// needs no mount.
set -euo pipefail

log=$HOME/vit_jax.log
program=$HOME/vit_jax_env/bin/vit-jax

training() { # the oldest one, since the processes it starts may look like it
  pgrep -o -u "$(id -u)" -f "^[^ ]*python[^ ]* $program train "
}

case ${1:-} in
  setup)
    # The images bring Python 3.10, vit_jax needs 3.11: uv fetches one.
    python3 -m pip install --quiet --user uv
    [[ -x ~/vit_jax_env/bin/python ]] || ~/.local/bin/uv venv --quiet --python 3.12 ~/vit_jax_env
    ~/.local/bin/uv pip install --quiet --python ~/vit_jax_env/bin/python --reinstall-package vit_jax \
      "$(cd "$(dirname "$0")" && pwd)[tpu]"
    if [[ -n ${BUCKET:-} ]] && ! mountpoint -q /mnt/bucket; then
      command -v gcsfuse >/dev/null || { sudo apt-get update -q && sudo apt-get install -y -q gcsfuse; } ||
        { echo "error: Expected gcsfuse on $(hostname), it is not there: install Cloud Storage FUSE, then setup." >&2; exit 2; }
      sudo mkdir -p /mnt/bucket
      sudo chown "$(id -u):$(id -g)" /mnt/bucket
      # No cached answers: a worker must see at once what another wrote. In a workdir on the mount, checkpoints are committed
      # by renaming a folder.
      gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$BUCKET" /mnt/bucket
    fi ;;
  idle)
    if number=$(training); then
      echo "error: Expected no training on $(hostname), process $number trains: launch/tpu.sh stop, or wait." >&2
      exit 1
    fi ;;
  start)
    config=$2 workdir=$3
    shift 3
    if [[ -e $log ]]; then mv -f "$log" "$HOME/vit_jax.previous.log"; fi
    # Detached, it outlives this connection. The shell lives through SIGTERM to write the last line.
    # shellcheck disable=SC2016
    setsid nohup bash -c 'trap : TERM; "$@"; echo "vit_jax exit status $?"' vit_jax \
      "$program" train "--workdir=$workdir" "--config=$config" "$@" >"$log" 2>&1 </dev/null &
    ;;
  stop)
    if number=$(training); then kill -TERM "$number"; else echo "nothing is training on $(hostname)"; fi ;;
  verdict)
    if training >/dev/null; then echo running; exit; fi
    last=$(grep -a '^vit_jax exit status ' "$log" 2>/dev/null | tail -n 1 || true)
    case ${last##* } in
      '') echo idle ;; # never started, or the machine was restarted under it
      130 | 143) echo stopped ;; # by hand or by a preemption, before there was a step to save
      0) if grep -aq 'stopped at step ' "$log"; then echo stopped; else echo finished; fi ;;
      *) echo "failed ${last##* }" ;;
    esac ;;
  *)
    echo "error: Expected setup, idle, start, stop or verdict, got '${1:-}': launch/tpu.sh calls this file." >&2
    exit 2 ;;
esac
