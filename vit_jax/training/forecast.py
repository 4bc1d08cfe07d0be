"""How long a run will take: roughly before it compiles on a CPU, as nobody should wait to find out that it is days; then as
its first steps measure it.
"""

from __future__ import annotations

import os
from pathlib import Path

from jax.sharding import Mesh

from vit_jax.contracts import Config
from vit_jax.methods import method_of
from vit_jax.training.flops import count_flops
from vit_jax.training.step import SEED, Program, abstract_batch

# Of training in float32, data and update included: ViTs reach 60, hybrids 36, where a large matrix product reaches 145 (a
# core of a Xeon with AVX-512). Cores differ by a factor of two or three, so the forecast is a round number.
FLOPS_A_CORE = 50e9


def cpu_forecast(config: Config, num_classes: int | None, program: Program, mesh: Mesh, steps: int) -> str:
    """The end of a sentence about `steps` steps of `program` on this machine's cores, where they take more than an hour.

    FLOPs know the order of magnitude and no more, so no number is said that the first steps will contradict.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return ""
    batch = abstract_batch(config, num_classes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hours = cpu_hours(count_flops(program.step, program.abstract, batch, SEED, *program.frozen), steps, cores)
    return (
        f", a matter of {'days' if hours > 48 else 'hours'} on {cores} CPU cores{quicker(config)}" if hours > 1 else ""
    )


def cpu_hours(step_flops: int, steps: int, cores: int) -> float:
    """Hours for `steps` steps of `step_flops` floating-point operations each."""
    return step_flops * steps / (FLOPS_A_CORE * cores) / 3600


def measured(left: float, pace: float, steps: int) -> str:
    """A sentence about the `left` seconds of a run whose first `steps` steps took `pace` seconds each."""
    return f"about {in_words(left / 3600)} to go, as measured over {steps} steps of {pace:.3g} s"


def in_words(hours: float) -> str:
    """Minutes, hours or days, whichever reads best."""
    number, unit = (60 * hours, "minute") if hours < 2 else (hours, "hour") if hours < 72 else (hours / 24, "day")
    number = max(1, round(number))
    return f"{number} {unit}{'s' if number > 1 else ''}"


def quicker(config: Config) -> str:
    """What to try instead, for a folder of labelled pictures."""
    if not method_of(config).labels or not Path(config["dataset"]).is_dir():
        return ""
    return f"; --config=folder.py:quick,{config['dataset']} gives a classifier in a quarter of an hour"
