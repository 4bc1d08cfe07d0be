#!/usr/bin/env bash
# One machine with one or more NVIDIA GPUs, one process that drives them all; started again when it fails.
# Costs nothing beyond the machine. Needs `pip install ".[cuda]"` and a driver that CUDA 13 takes.
#
# usage: launch/gpu.sh [--dry-run] CONFIG WORKDIR [--config.field=value ...]
#   launch/gpu.sh mae.py:b16 runs/mae-b16 --config.dataset=pictures --config.batch=1024
#
# RESTARTS=3: how often it is started again. Not after 0 (finished or stopped), 2 (a mistake in the command), 130 (Ctrl-C).
# Ctrl-C and SIGTERM save and end. The same command continues.
set -euo pipefail

if [[ ${1:-} == --dry-run ]]; then DRY_RUN=1; shift; fi
if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
  echo "error: Expected CONFIG and WORKDIR, got '$*': launch/gpu.sh mae.py:b16 runs/mae-b16." >&2
  exit 2
fi
config=$1 workdir=$2
shift 2
: "${RESTARTS:=3}" "${DRY_RUN:=0}"

# JAX takes three quarters of the memory at once by default; .92 leaves room for cuDNN's and NCCL's own. Not measured here.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
if [[ -z ${XLA_FLAGS:-} ]]; then
  # Sends overlap with arithmetic: matters with several GPUs. Not measured here.
  XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true"
  # cuBLAS for every product, nothing to tune at compile time. Not measured here.
  XLA_FLAGS+=" --xla_gpu_enable_triton_gemm=false"
fi
export XLA_FLAGS

# Fused attention; a later --config.attention=xla on the command line wins.
command=(vit-jax train "--workdir=$workdir" "--config=$config" --config.attention=cudnn "$@")
if [[ $DRY_RUN == 1 ]]; then
  printf '%q ' env "XLA_PYTHON_CLIENT_MEM_FRACTION=$XLA_PYTHON_CLIENT_MEM_FRACTION" "XLA_FLAGS=$XLA_FLAGS" "${command[@]}"
  echo
  exit 0
fi

told=0 child=
pass_on() { [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true; }
trap 'told=$((told + 1)); pass_on' TERM INT
for ((started = 1; ; started++)); do
  "${command[@]}" &
  child=$!
  if ((told > 0)); then pass_on; fi # told before there was anyone to tell
  # A signal ends `wait` early, with a status that is not the child's: wait again.
  while before=$told status=0; wait "$child" || status=$?; ((told > before)); do :; done
  if ((told > 0 || status == 0 || status == 2 || status == 130)); then exit "$status"; fi
  if ((started > RESTARTS)); then
    echo "error: Expected training to finish, it ended with status $status, $started times: read its last words." >&2
    exit "$status"
  fi
  echo "ended with status $status; starting again ($started of $RESTARTS)" >&2
  child=
  sleep "${PAUSE:-5}"
  if ((told > 0)); then exit "$status"; fi
done
