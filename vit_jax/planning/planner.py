"""Compiles the real train step of a config for devices that need not be there, and says what it needs and takes."""

from __future__ import annotations

import copy
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import derived, sharding
from vit_jax.contracts import Batch, Config, first_line
from vit_jax.devices import make_mesh
from vit_jax.methods import method_of
from vit_jax.methods.method import NO_NETWORKS, Networks
from vit_jax.models.registry import count_params
from vit_jax.planning.chips import Chip, chip_of, memory_of
from vit_jax.planning.clock import Estimate, estimate
from vit_jax.planning.hlo import KINDS, Program
from vit_jax.training.flops import count_flops
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import SEED, abstract_batch, make_program

GIB = 2**30


class Memory(NamedTuple):
    """Bytes a device, from the compiler."""

    arguments: float
    temporaries: float
    peak: float  # arguments, temporaries and what of the results is not written over an argument


class Plan(NamedTuple):
    """One config on one mesh. What does not fit has no figures beyond the compiler's word."""

    mesh: dict[str, int]
    settings: dict[str, Any]
    parameters: int
    frozen: dict[str, int]  # parameters of networks that are used and not trained
    limit: float | None  # bytes a device
    memory: Memory | None  # None: the compiler gave up for want of memory
    refusal: str
    model_flops: float  # of a step, no recomputation, all devices
    traced_flops: float  # of a step, recomputation included, all devices
    compiled_flops: float  # the same, counted in the compiled program
    collectives: dict[str, tuple[int, float]]  # kind: (times a step, bytes a device sends in them)
    seconds: dict[str, float]  # compute, memory, network: what each alone would take; empty for unknown chips
    clock: Estimate | None  # by the compiler's cycles; None where it writes none
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.memory is not None and (self.limit is None or self.memory.peak <= self.limit)

    @property
    def roofline(self) -> int | float | None:
        """As if computing, memory and network overlapped perfectly, each at its data sheet's rate: no step is faster."""
        return max(self.seconds.values()) if self.seconds else None

    @property
    def step_seconds(self) -> int | float | None:
        """The estimate: the roofline or the compiler's clock, whichever is longer."""
        clock = self.clock.seconds if self.clock else None
        return max(self.roofline, clock) if self.roofline and clock else self.roofline


def make_plan(config: Config, num_classes: int, devices: list[Any], networks: Networks = NO_NETWORKS) -> Plan:
    """Lower and compile one step over `devices`; nothing is allocated and nothing runs.

    Raises:
      UserError: a config or mesh that cannot be built.
    """
    mesh = make_mesh(config, devices)
    method, classes = method_of(config), None
    if method.labels:
        classes = num_classes
    objective, rates = method.objective(config, classes), make_schedule(config, 1000, 0)
    program = make_program(config, objective, rates, classes, mesh, networks)
    batch = abstract_batch(config, classes)
    began = time.perf_counter()
    compiled, refusal = None, ""
    try:
        compiled = program.step.lower(program.abstract, batch, SEED, *program.frozen).compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = _out_of_memory(error)
    seconds = time.perf_counter() - began
    traced = count_flops(program.step, program.abstract, batch, SEED, *program.frozen)
    chip, limit = chip_of(devices[0]), _limit(devices[0])
    common: dict[str, Any] = {
        "mesh": sharding.axis_sizes(mesh),
        "settings": {name: config[name] for name in ("batch", "accum_steps", "remat", "unroll", "compute_dtype")},
        "parameters": count_params(program.abstract.params),
        "frozen": {name: count_params(network.params) for name, network in networks.items()},
        "limit": limit,
        "refusal": refusal,
        "model_flops": _model_flops(config, classes, mesh, traced, batch, networks),
        "traced_flops": traced,
        "compile_seconds": seconds,
    }
    if compiled is None:
        return Plan(**common, memory=None, compiled_flops=0.0, collectives={}, seconds={}, clock=None)
    text = Program(compiled.as_text())
    found = text.collectives()
    exchanged = {
        kind: (sum(c.times for c in found if c.kind == kind), sum(c.times * c.bytes for c in found if c.kind == kind))
        for kind in KINDS
    }
    sent = sum(each for _, each in exchanged.values())
    flops = text.flops() * len(devices)
    return Plan(
        **common,
        memory=_memory(compiled),
        compiled_flops=flops,
        collectives={kind: pair for kind, pair in exchanged.items() if pair[0]},
        seconds=_roofline(chip, max(flops, traced) / len(devices), text.moved(), sent) if chip else {},
        clock=estimate(text, chip) if chip else None,
    )


def _model_flops(
    config: Config, num_classes: int | None, mesh: Any, traced: int | float, batch: Batch, networks: Networks
) -> int | float:
    """Without what `remat` computes twice: the numerator of MFU (PaLM, Chowdhery et al. 2022, appendix B)."""
    if config["remat"] == "none":
        return traced
    plain: Any = copy.deepcopy(config)
    plain.remat = "none"
    objective = method_of(plain).objective(plain, num_classes)
    program = make_program(plain, objective, make_schedule(plain, 1000, 0), num_classes, mesh, networks)
    return count_flops(program.step, program.abstract, batch, SEED, *program.frozen)


def _limit(device: Any) -> int | float | None:
    chip = chip_of(device)
    if chip and device.platform == "tpu":
        return chip.memory - GIB // 4  # the runtime keeps a quarter of a GiB for itself
    return memory_of(device)


def _memory(compiled: Any) -> Memory:
    stats = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    return Memory(
        arguments, temporaries, arguments + temporaries + stats.output_size_in_bytes - stats.alias_size_in_bytes
    )


def _roofline(chip: Chip, flops: int | float, moved: int | float, sent: int | float) -> dict[str, Any]:
    return {"compute": flops / chip.flops, "memory": moved / chip.bandwidth, "network": sent / chip.network}


def _out_of_memory(error: BaseException) -> str:
    words = str(error)
    if "RESOURCE_EXHAUSTED" not in words and "memory" not in words:
        raise error
    found = re.search(r"(Ran out of memory|Used|required)[^\n]*", words)
    return found.group(0)[:300] if found else first_line(error)


def schedule(plan: Plan, config: Config, examples: int) -> dict[str, Any]:
    """Steps, hours and device-hours of the config's whole schedule at the estimated speed."""
    steps = derived.total_steps(config, examples / config["batch"])
    if plan.step_seconds is None:
        return {"steps": steps}
    hours = steps * plan.step_seconds / 3600
    return {"steps": steps, "hours": hours, "chip_hours": hours * int(np.prod(list(plan.mesh.values())))}


def report(plan: Plan, config: Config, examples: int, chip: Chip | None) -> dict[str, Any]:
    """The plan as plain numbers, for --json and for the table."""
    devices = int(np.prod(list(plan.mesh.values())))
    rows: dict[str, Any] = {
        "fits": plan.fits,
        "devices": devices,
        "chip": chip.name if chip else "",
        "mesh": plan.mesh,
        "settings": plan.settings,
        "parameters": plan.parameters,
        "frozen_parameters": plan.frozen,
        "memory_limit_bytes": plan.limit,
        "refusal": plan.refusal,
        "compile_seconds": round(plan.compile_seconds, 1),
        "model_flops": plan.model_flops,
        "analytic_flops": plan.traced_flops,
    }
    if plan.memory is None:
        return rows
    rows |= {
        "argument_bytes": plan.memory.arguments,
        "temporary_bytes": plan.memory.temporaries,
        "peak_bytes": plan.memory.peak,
        "compiled_flops": plan.compiled_flops,
        "collectives": {kind: {"times": times, "bytes": sent} for kind, (times, sent) in plan.collectives.items()},
        "collective_bytes": sum(sent for _, sent in plan.collectives.values()),
        "schedule": schedule(plan, config, examples),
    }
    if chip and plan.step_seconds:
        rows |= {
            "roofline_seconds": plan.seconds,
            "clock": _clock(plan.clock) if plan.clock else None,
            "profile": plan.clock.profile(chip) if plan.clock else {},
            "step_seconds": plan.step_seconds,
            "images_per_second": config["batch"] / plan.step_seconds,
            "mfu": plan.model_flops / (devices * chip.flops * plan.step_seconds),
        }
    return rows


def _clock(found: Estimate) -> dict[str, Any]:
    return {
        "hertz": found.hertz,
        "cycles": found.work.cycles.total(),
        "seconds": found.seconds,
        "exchanges_overlapped_seconds": found.overlapped,
        "exchanges_apart_seconds": found.apart,
        "custom_calls_without_estimate": dict(found.work.uncounted),
    }
