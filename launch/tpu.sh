#!/usr/bin/env bash
# Cloud TPU VMs: from nothing to a finished run, through preemptions, to deletion.
# COSTS MONEY from `create`, or from when a `queue` is served, until `delete`, whether or not anything runs.
# Needs gcloud, signed in, a project with TPU quota, and a bucket for the workdir when the slice has several workers.
#
# usage: launch/tpu.sh [--dry-run] SUBCOMMAND
#   create [--spot]   a TPU VM now, or a refusal        queue [--spot]   a TPU VM when one is free (queued resource)
#   setup             Python, vit_jax, BUCKET           status           what the cloud says
#   run CONFIG WORKDIR [--config.field=value ...]       starts training on all workers; refused while one trains
#   logs [all]        follow worker 0, or the last lines of every worker
#   stop              SIGTERM: all workers save the same step and end
#   watch [--spot] CONFIG WORKDIR [...]                 queue, setup, run, and again after every preemption, to the end
#   delete            the VM and its place in the queue; the bucket stays
#
# TPU_NAME, TPU_ZONE, TPU_TYPE (v5litepod-16) must be set. May be set: TPU_VERSION (runtime, otherwise by type),
# TPU_PROJECT, BUCKET (with data: mounted at /mnt/bucket), REPO (the checkout to install), POLL (seconds between looks),
# RESTARTS (failures after which `watch` gives up), DRY_RUN=1 (print the commands, run none).
set -euo pipefail

die() { echo "error: $*" >&2; exit 2; }
say() { echo "$(date +%H:%M:%S) $*" >&2; }

SUBCOMMANDS="create queue setup run logs stop watch delete status"
SPOT='' words=()
for word in "$@"; do
  case $word in --dry-run) DRY_RUN=1 ;; --spot) SPOT=--spot ;; *) words+=("$word") ;; esac
done
set -- "${words[@]}"
: "${DRY_RUN:=0}" "${POLL:=60}" "${RESTARTS:=10}" "${BUCKET:=}" "${REPO:=$(cd "$(dirname "$0")/.." && pwd)}"

cloud() { # every command to the cloud, printed instead in a dry run
  local all=(gcloud compute tpus "$@" "--zone=$TPU_ZONE" ${TPU_PROJECT:+"--project=$TPU_PROJECT"})
  if [[ $DRY_RUN == 1 ]]; then printf '%q ' "${all[@]}"; echo; else "${all[@]}"; fi
}
ssh_to() { cloud tpu-vm ssh "$TPU_NAME" "--worker=$1" "--command=$2"; }
on_each() { ssh_to all "$1 bash ~/vit_jax_src/tpu_worker.sh $2"; }

ask() { # what the cloud says of the VM or its place in the queue; NONE: there is none; UNKNOWN: it did not answer
  if [[ $DRY_RUN == 1 ]]; then echo READY; return; fi
  local words
  if words=$(cloud "$1" describe "$TPU_NAME" "--format=value($2)" 2>/dev/null); then echo "${words:-UNKNOWN}"; return; fi
  words=$(cloud "$1" describe "$TPU_NAME" "--format=value($2)" 2>&1 || true)
  if [[ $words == *NOT_FOUND* ]]; then echo NONE; else echo UNKNOWN; fi
}
state() { # never GONE for want of an answer: GONE is deleted
  local both
  both="$(ask tpu-vm state)/$(ask queued-resources state.state)"
  case $both in
    *UNKNOWN*) echo UNKNOWN ;;
    */FAILED) echo FAILED ;;
    */SUSPENDING | */DELETING) echo "WAITING ($both)" ;; # cannot be deleted yet
    */SUSPENDED | PREEMPTED/* | TERMINATED/* | NONE/ACTIVE) echo GONE ;;
    READY/*) echo READY ;;
    NONE/NONE) echo NONE ;;
    *) echo "WAITING ($both)" ;;
  esac
}

create() { cloud tpu-vm create "$TPU_NAME" "--accelerator-type=$TPU_TYPE" "--version=$TPU_VERSION" ${SPOT:+"$SPOT"}; }
queue() {
  cloud queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE" \
    "--runtime-version=$TPU_VERSION" ${SPOT:+"$SPOT"}
}
setup() { # only what the package is built from: no .git, no runs
  ssh_to all 'rm -rf ~/vit_jax_src && mkdir ~/vit_jax_src' &&
    cloud tpu-vm scp --recurse --worker=all "$REPO"/{pyproject.toml,README.md,LICENSE,vit_jax,configs} \
      "$REPO/launch/tpu_worker.sh" "$TPU_NAME:vit_jax_src" &&
    on_each "BUCKET=$(printf %q "$BUCKET")" setup
}
run() { # first ask all, then start all: half a run would wait for the other half
  on_each '' idle && on_each '' "start$(printf ' %q' "$@")"
}
delete() {
  if [[ $(ask queued-resources state.state) != NONE ]]; then cloud queued-resources delete "$TPU_NAME" --force --quiet; fi
  if [[ $(ask tpu-vm state) != NONE ]]; then cloud tpu-vm delete "$TPU_NAME" --quiet; fi
}
verdict() { # of worker 0: new, idle, running, finished, stopped, "failed N"; nothing where ssh fails
  ssh_to 0 'if [ -e ~/vit_jax_src/tpu_worker.sh ]; then bash ~/vit_jax_src/tpu_worker.sh verdict; else echo new; fi'
}
watch() {
  if [[ $DRY_RUN == 1 ]]; then delete; queue; setup; run "$@"; verdict; return; fi # one round, as after a preemption
  local now word failures=0
  while now=$(state); do
    word=$([[ $now != READY ]] || verdict 2>/dev/null | tail -n 1 || true)
    say "$TPU_NAME: $now $word"
    case "$now $word" in
      "NONE "*) queue || failures=$((failures + 1)) ;;
      "GONE "*) { delete && queue; } || failures=$((failures + 1)) ;;
      "FAILED "*) say "the request failed for good: launch/tpu.sh status, then delete"; return 1 ;;
      "READY finished") say "finished; launch/tpu.sh delete ends the bill"; return 0 ;;
      "READY failed 2") say "a mistake in the command or the data: launch/tpu.sh logs"; return 2 ;;
      "READY stopped") # by hand, or by a preemption whose news has not come yet
        sleep "$POLL"
        if [[ $(state) == READY ]]; then say "stopped by hand; \`run\` or \`watch\` continues it"; return 0; fi ;;
      "READY new" | "READY idle") { setup && run "$@"; } || failures=$((failures + 1)) ;;
      "READY failed"*) failures=$((failures + 1)); { setup && run "$@"; } || true ;;
    esac
    if ((failures > RESTARTS)); then say "gave up after $failures failures: launch/tpu.sh logs all"; return 1; fi
    sleep "$POLL"
  done
}

subcommand=${1:-}
[[ -n $subcommand && " $SUBCOMMANDS " == *" $subcommand "* ]] ||
  die "Expected a subcommand, one of $SUBCOMMANDS, got '$subcommand': launch/tpu.sh --dry-run create shows one."
shift
for name in TPU_NAME TPU_ZONE TPU_TYPE; do
  [[ -n ${!name:-} ]] || die "Expected the variable $name, it is not set: export $name=... (see the top of launch/tpu.sh)."
done
case ${TPU_VERSION:-}/$TPU_TYPE in
  ?*/*) ;;
  /v5litepod-*) TPU_VERSION=v2-alpha-tpuv5-lite ;;
  /v5p-*) TPU_VERSION=v2-alpha-tpuv5 ;;
  /v6e-*) TPU_VERSION=v2-alpha-tpuv6e ;;
  /v4-*) TPU_VERSION=tpu-ubuntu2204-base ;;
  *) die "Expected TPU_TYPE v4-*, v5litepod-*, v5p-* or v6e-*, got '$TPU_TYPE': set TPU_VERSION to its runtime version." ;;
esac
case $subcommand in
  run | watch)
    [[ $# -ge 2 && ($2 == /* || $2 == gs://?*) ]] ||
      die "Expected CONFIG and an absolute WORKDIR or one on gs://, got '$*': launch/tpu.sh $subcommand mae.py:b16 gs://bucket/b16."
    "$subcommand" "$@" ;;
  logs) if [[ ${1:-} == all ]]; then ssh_to all 'tail -n 5 ~/vit_jax.log'; else ssh_to 0 'tail -n 100 -F ~/vit_jax.log'; fi ;;
  stop) on_each '' stop ;;
  status) cloud queued-resources describe "$TPU_NAME" || true; cloud tpu-vm describe "$TPU_NAME" || true ;;
  *) "$subcommand" ;;
esac
