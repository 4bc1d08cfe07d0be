"""The TPU compiler's own estimate of a step: the cycles it writes beside every instruction, loops counted, by part.

These are the figures libtpu schedules by ("estimated_cycles" of an instruction's window_config). It gives none for exchanges,
for copies that run beside the computation, for custom calls (kernels) and for what takes next to nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from vit_jax.planning.chips import Chip
from vit_jax.planning.hlo import PRODUCTS, Instruction, Program, called

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
OP_NAME = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Custom calls that stand for a place in memory or for the halves of an exchange, and take no time themselves.
NO_WORK = {"AllocateBuffer", "ConcatBitcast", "AsyncCollectiveStart", "AsyncCollectiveDone"}
# jax.named_scope -> part of the model. The innermost scope of the table decides; what has none is "rest".
PARTS = {
    "inputs": "inputs",
    "masks": "masks",
    "patches": "patches",
    "norm": "norms",
    "qkv": "qkv",
    "attention": "attention",
    "out": "attention's output",
    "mlp": "MLP",
    "blocks": "blocks, besides",  # sums of branches, parameters cut from stacks and gradients put into them
    "head": "head",
    "loss": "loss",
    "teacher": "frozen networks",
    "optimiser": "optimiser",
    "rematted_computation": "second forward of remat",  # JAX's own name of what jax.checkpoint computes again
}
COPIES, EXCHANGES, REST = "copies", "exchanges", "rest"
# What the compiler adds and does not name: casts of whole stacks that it took out of the loop, and zeros (those into which a
# device puts its part of a kernel that is then gathered by a sum).
NAMELESS = {"convert": "casts", "broadcast": "fills with zeros"}


class Work(NamedTuple):
    """What a device does in one step."""

    cycles: Counter[str]  # by part
    flops: Counter[str]  # of matrix products and convolutions, by part
    uncounted: Counter[str]  # custom calls without an estimate, by target: how often they run


class Estimate(NamedTuple):
    """A step's time by the compiler's clock, of one device."""

    work: Work
    hertz: float | None  # None: the data sheet gives no clock, and cycles are all there is to say
    overlapped: float  # seconds of exchanges that go on beside the computation, at the network's rate
    apart: float  # seconds of those that nothing goes on beside

    @property
    def seconds(self) -> float | None:
        """Computation or what it hides, whichever is longer, and then what nothing hides."""
        return max(self.work.cycles.total() / self.hertz, self.overlapped) + self.apart if self.hertz else None

    def profile(self, chip: Chip) -> dict[str, dict[str, Any]]:
        """Cycles, share of the step, FLOPs and share of the chip's peak by part, the largest first. Sums to the step."""
        cycles = dict(self.work.cycles)
        if self.hertz and self.seconds:
            cycles[EXCHANGES] = round(self.seconds * self.hertz) - self.work.cycles.total()
        total = sum(cycles.values())
        return {
            part: {
                "cycles": spent,
                "share": spent / total,
                "flops": self.work.flops[part],
                "share_of_peak": self.work.flops[part] * self.hertz / (spent * chip.flops) if self.hertz else None,
            }
            for part, spent in sorted(cycles.items(), key=lambda pair: -pair[1])
            if spent
        }


def estimate(program: Program, chip: Chip) -> Estimate | None:
    """None where the compiler writes no cycles: CPUs, GPUs."""
    done = work(program)
    if not done.cycles:
        return None
    exchanges = program.collectives()
    overlapped, apart = (
        sum(each.times * each.bytes for each in exchanges if each.overlapped is hidden) / chip.network
        for hidden in (True, False)
    )
    return Estimate(done, chip.hertz, overlapped, apart)


def work(program: Program) -> Work:
    """All of a step; empty counters where the compiler says nothing (CPUs, GPUs)."""
    return _work(program, program.entry)


def _work(program: Program, computation: str) -> Work:
    """A fusion counts by its own estimate, whatever stands inside; of a conditional the dearest branch counts."""
    done = Work(Counter(), Counter(), Counter())
    for instruction in program.computations[computation]:
        inner = called(instruction)
        if found := CYCLES.search(instruction.rest):
            part = part_of(program, instruction)
            done.cycles[part] += int(found.group(1))
            done.flops[part] += _flops(program, computation, instruction)
        elif instruction.opcode == "conditional":
            branches = [_work(program, name) for names in inner.values() for name in names]
            _add(done, max(branches, key=lambda branch: branch.cycles.total()))
        elif instruction.opcode in ("while", "call", "async-start"):
            for name in (name for names in inner.values() for name in names):
                _add(done, _work(program, name), program.trips(instruction))
        elif instruction.opcode == "custom-call":
            target = TARGET.search(instruction.rest)
            if target and target.group(1) not in NO_WORK:
                done.uncounted[target.group(1)] += 1
        elif products := _flops(program, computation, instruction):
            done.flops[part_of(program, instruction)] += products
    return done


def _add(to: Work, done: Work, times: int = 1) -> None:
    for total, counter in zip(to, done, strict=True):
        total.update({name: times * count for name, count in counter.items()})


def _flops(program: Program, computation: str, instruction: Instruction) -> int:
    """Of a product, or of all products inside a fusion."""
    found = [(computation, instruction), *_inside(program, instruction)]
    return sum(int(program.products(where)[each.name]) for where, each in found if each.opcode in PRODUCTS)


def part_of(program: Program, instruction: Instruction) -> str:
    """The part of the model that an instruction belongs to: of a fusion its product's, else its own, else any inside it.

    The compiler fuses across parts: a norm that is computed within the product that takes it counts there.
    """
    if instruction.opcode.startswith("copy"):
        return COPIES
    inner = [each for _, each in _inside(program, instruction)]
    products = [each for each in inner if each.opcode in PRODUCTS]
    name = next((name for each in (*products, instruction, *inner) if (name := _name(each))), "")
    return part_named(name) if name else NAMELESS.get(instruction.opcode, REST)


def part_named(op_name: str) -> str:
    """By what JAX calls an operation: "jit(step)/transpose(jvp(loss))/blocks/while/body/mlp/dot_general" is the MLP's."""
    scopes = [re.sub(r"^(?:\w+\()*|\)*$", "", each) for each in op_name.split("/") if "jit(" not in each]
    if "rematted_computation" in scopes:
        return PARTS["rematted_computation"]
    return next((PARTS[scope] for scope in reversed(scopes) if scope in PARTS), REST)


def _name(instruction: Instruction) -> str:
    found = OP_NAME.search(instruction.rest)
    return found.group(1) if found else ""


def _inside(program: Program, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
    """What a fusion is made of, also within fusions within it, each with the computation where it stands."""
    for body in called(instruction)["calls"] if instruction.opcode == "fusion" else []:
        for each in program.computations[body]:
            yield body, each
            yield from _inside(program, each)
