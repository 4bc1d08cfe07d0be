"""`vit-jax doctor`: what this installation runs on."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from vit_jax.commands.arguments import Parser
from vit_jax.starts import PACKAGES, version


def run(argv: list[str]) -> int:
    Parser(prog="vit-jax doctor", description=__doc__).parse_args(argv)
    import jax

    print(f"python       {platform.python_version()} on {platform.platform()}")
    for package in PACKAGES:
        print(f"{package:20s} {version(package)}")
    print(f"backend      {jax.default_backend()}, {jax.process_count()} process(es)")
    for device in jax.devices():
        print(f"  {device.id}: {device.device_kind}{memory(device)}")
    print(f"processors   {os.cpu_count()}")
    print(f"compilation cache  {os.environ.get('JAX_COMPILATION_CACHE_DIR', '~/.cache/vit_jax/xla')}")
    for line in advice(jax.default_backend()):
        print(f"note: {line}")
    return 0


def memory(device: object) -> str:
    """Used and available memory where the backend tells."""
    stats = getattr(device, "memory_stats", lambda: None)() or {}
    if "bytes_limit" not in stats:
        return ""
    return f", {stats['bytes_in_use'] / 2**30:.1f} of {stats['bytes_limit'] / 2**30:.1f} GiB in use"


def advice(backend: str) -> list[str]:
    """What is likely wrong: an accelerator that JAX does not see, memory that looks taken but is only reserved."""
    notes = []
    if backend == "cpu" and shutil.which("nvidia-smi"):
        seen = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if seen.returncode == 0 and "GPU" in seen.stdout:
            notes.append('there is an NVIDIA GPU but JAX runs on the CPU: pip install "vit_jax[cuda]"')
    if backend == "cpu" and os.path.exists("/dev/accel0"):
        notes.append('there is a TPU but JAX runs on the CPU: pip install "vit_jax[tpu]"')
    if backend == "gpu" and os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "true") != "false":
        notes.append(
            "JAX reserves 75% of the GPU's memory at the start; XLA_PYTHON_CLIENT_PREALLOCATE=false prevents it"
        )
    return notes
