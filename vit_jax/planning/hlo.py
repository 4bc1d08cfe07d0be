"""Reads a compiled program's text: how often each part runs, what it sends, what it multiplies.

XLA's own cost analysis counts the body of a loop once. The blocks of a ViT are a loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
PRODUCTS = ("dot", "convolution")  # TPUs multiply matrices as convolutions
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
         "u64": 8, "f64": 8}  # fmt: skip

_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](?:\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|called_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)"
)
_NAME = re.compile(r"%([\w.\-]+)")
# What moves nothing, or is counted where its other half or its body is.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
         "partition-id", "iota", "custom-call-start"}  # fmt: skip


class Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes


class Collective(NamedTuple):
    """One exchange: `bytes` are what a device sends in it, `times` how often it happens in a step."""

    kind: str
    bytes: float
    group: int
    times: int
    overlapped: bool  # begun and ended apart, or in pieces within a fusion: computation goes on meanwhile


def called(instruction: Instruction) -> dict[str, list[str]]:
    """The computations that an instruction names, by how it names them: {"body": [...], "condition": [...]}."""
    return {how: _NAME.findall(names) for how, names in _CALLED.findall(instruction.rest)}


def array_bytes(shape: str, *, main_memory: bool = False) -> int:
    """Of an array or of all arrays of a tuple, as its text has it; of those in main memory alone if asked (not S(1))."""
    return sum(
        BYTES.get(found.group(1), 4) * math.prod(int(size) for size in found.group(2).split(",") if size)
        for found in _SHAPE.finditer(shape)
        if not (main_memory and "S(1)" in found.group(0))
    )


def _sizes(shape: str) -> list[int]:
    found = _SHAPE.search(shape)
    return [int(size) for size in found.group(2).split(",") if size] if found else []


class Program:
    """The computations of a module, each with the number of times it runs in one step."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        name = self.entry = ""
        for line in text.splitlines():
            if line and not line[0].isspace() and line.rstrip().endswith("{") and "(" in line:
                name = line.removeprefix("ENTRY ").split("(")[0].strip().lstrip("%")
                self.computations[name] = []
                self.entry = name if line.startswith("ENTRY ") else self.entry
            elif found := _INSTRUCTION.match(line):
                self.computations[name].append(Instruction(*found.groups()))
        self.times: dict[str, int] = dict.fromkeys(self.computations, 0)
        self._count(self.entry, 1)

    def _count(self, name: str, times: int) -> None:
        self.times[name] += times
        for instruction in self.computations[name]:
            if instruction.opcode.endswith("-done"):
                continue
            for names in called(instruction).values():
                for each in names:
                    if each in self.computations:
                        self._count(each, times * self.trips(instruction))

    def trips(self, instruction: Instruction) -> int:
        """How often a loop runs what it calls; 1 for all that is no loop."""
        parts = called(instruction)
        return self._trips(parts["condition"][0], parts["body"][0]) if "condition" in parts else 1

    def _trips(self, condition: str, body: str) -> int:
        """The constant a loop's counter is compared with, by the counter's stride; 1 for loops that end when they like.

        Loops of an exchange and a product in pieces (libtpu's "windowed" products) are unrolled and count by twos.
        """
        test = list(self.computations[condition])
        for instruction in test:  # grows: the comparison may lie in a fusion
            test += [i for names in called(instruction).values() for name in names for i in self.computations[name]]
        limits = [_constant(i) for i in test if i.opcode == "constant"]
        indices = [int(found) for i in test for found in re.findall(r"index=(\d+)", i.rest) if i.opcode != "parameter"]
        limit = max((limit for limit in limits if limit is not None), default=1)
        return -(-limit // self._stride(body, indices[0])) if indices else limit

    def _stride(self, body: str, index: int) -> int:
        """What a loop adds to its counter, element `index` of what it carries."""
        instructions = {i.name: i for i in self.computations[body]}
        carried = _NAME.findall(self.computations[body][-1].rest.split(")")[0])
        counter = instructions.get(carried[index]) if index < len(carried) else None
        operands = _NAME.findall(counter.rest.split(")")[0]) if counter and counter.opcode == "add" else []
        return next((n for name in operands if name in instructions and (n := _constant(instructions[name]))), 1)

    def collectives(self) -> list[Collective]:
        """Every exchange between devices. One that was cut into pieces keeps its channel and is counted once."""
        found: dict[str, Collective] = {}
        inside = self._inside()
        for place, (name, body) in enumerate(self.computations.items()):
            for instruction in body:
                kind = instruction.opcode.removesuffix("-start")
                if kind not in KINDS or not self.times[name]:
                    continue
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                group = _group_size(instruction.rest) if kind != "collective-permute" else 2
                overlapped = name in inside or instruction.opcode.endswith("-start")
                made = Collective(kind, _sent(kind, instruction, group), group, self.times[name], overlapped)
                key = channel.group(1) if channel else f"{place}/{instruction.name}"
                if key not in found or found[key].times * found[key].bytes < made.times * made.bytes:
                    found[key] = made
        return [each for each in found.values() if each.group > 1]

    def flops(self) -> int | float:
        """Two per multiply-add of every matrix product and convolution, loops counted."""
        return sum(
            self.times[name] * sum(self.products(name).values()) for name in self.computations if self.times[name]
        )

    def products(self, computation: str) -> dict[str, int | float]:
        """FLOPs of each matrix product and convolution that stands in a computation itself, run once."""
        body = self.computations[computation]
        shapes = {i.name: i.shape for i in body}
        return {i.name: _flops(i, shapes) for i in body if i.opcode in PRODUCTS}

    def _inside(self) -> set[str]:
        """Computations that are part of one instruction: bodies of fusions, and what reductions reduce with."""
        return {
            name
            for body in self.computations.values()
            for instruction in body
            if instruction.opcode == "fusion" or ("to_apply=" in instruction.rest and instruction.opcode != "call")
            for names in called(instruction).values()
            for name in names
        }

    def moved(self) -> int | float:
        """Bytes read from and written to main memory, an operand of a fusion counted by the part it takes. An estimate."""
        inside = self._inside()
        total = 0.0
        for name, body in self.computations.items():
            if name in inside or not self.times[name]:
                continue
            shapes = {i.name: i.shape for i in body}
            total += self.times[name] * sum(self._traffic(instruction, shapes) for instruction in body)
        return total

    def _traffic(self, instruction: Instruction, shapes: Mapping[str, str]) -> int | float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done") or opcode.startswith("async"):
            return 0.0
        operands = [shapes.get(name, "") for name in _NAME.findall(instruction.rest.split(")")[0])]
        own = array_bytes(instruction.shape, main_memory=True)
        if opcode.endswith("-start"):
            return own
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * own
        if opcode == "dynamic-update-slice":
            return 2 * array_bytes(operands[1], main_memory=True) if len(operands) > 1 else own
        if opcode == "fusion":
            (body,) = called(instruction)["calls"]
            read = sum(
                min(array_bytes(shape, main_memory=True), self._taken(body, self._parameter(body, place)))
                for place, shape in enumerate(operands)
            )
            return read + self._written(body, instruction.shape)
        return own + sum(array_bytes(shape, main_memory=True) for shape in operands)

    def _parameter(self, computation: str, place: int) -> str:
        body = self.computations[computation]
        return next(i.name for i in body if i.opcode == "parameter" and i.rest.startswith(f"{place})"))

    def _taken(self, computation: str, name: str) -> int | float:
        """Bytes of one value that a fusion reads: of stacked parameters, the slices it cuts out."""
        total = 0.0
        for user in self.computations[computation]:
            operands = _NAME.findall(user.rest.split(")")[0])
            if name not in operands:
                continue
            if user.opcode in ("dynamic-slice", "slice"):
                total += array_bytes(user.shape)
            elif user.opcode == "bitcast":
                total += self._taken(computation, user.name)
            elif user.opcode == "fusion":
                (inner,) = called(user)["calls"]
                total += self._taken(inner, self._parameter(inner, operands.index(name)))
            elif user.opcode != "dynamic-update-slice" or operands[0] != name:
                return math.inf  # all of it
        return total

    def _written(self, computation: str, shape: str) -> int | float:
        """Bytes a fusion writes: into a stack, the slices it puts in."""
        body = {i.name: i for i in self.computations[computation]}
        root = self.computations[computation][-1]
        results = [body[name] for name in _NAME.findall(root.rest.split(")")[0])] if root.opcode == "tuple" else [root]
        total = 0.0
        for result, found in zip(results, _SHAPE.finditer(shape), strict=False):
            whole = array_bytes(found.group(0), main_memory=True)
            while result.opcode == "bitcast":
                result = body[_NAME.findall(result.rest)[0]]
            if result.opcode == "dynamic-update-slice":
                whole = min(whole, array_bytes(body[_NAME.findall(result.rest)[1]].shape))
            total += whole
        return total


def _constant(instruction: Instruction) -> int | None:
    """A whole number written into the program, or None."""
    whole = instruction.opcode == "constant" and instruction.shape.startswith(("s32[]", "u32[]", "s64[]", "u64[]"))
    return int(instruction.rest.split(")")[0]) if whole else None


def _group_size(rest: str) -> int:
    """How many devices exchange with one another: {{0,1},{2,3}}, [2,8]<=[16] or mesh['a'=2,'b'=8] {'b'}."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found.group(2))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found.group(1))}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found.group(2))
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(found.group(1).split(","))
    return 2


def _sent(kind: str, instruction: Instruction, group: int) -> int | float:
    """Bytes a device sends, by the ring algorithms' lower bounds."""
    size = array_bytes(instruction.shape)
    if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        size = max((array_bytes(part.group(0)) for part in _SHAPE.finditer(instruction.shape)), default=size)
    share = (group - 1) / group
    if kind == "all-reduce":
        return 2 * size * share
    if kind == "reduce-scatter":
        return size * (group - 1)  # its result is one part of the input
    return size if kind == "collective-permute" else size * share


def _flops(instruction: Instruction, shapes: Mapping[str, str]) -> int | float:
    out = _sizes(instruction.shape)
    operands = [_operand(part, shapes) for part in instruction.rest.split(")")[0].split(", ")[:2]]
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        contracted = [operands[0][int(axis)] for axis in axes.group(1).split(",") if axis] if axes else []
        return 2 * math.prod(out) * math.prod(contracted)
    return _convolution_flops(instruction.rest, operands[0], operands[1], out)


def _operand(text: str, shapes: Mapping[str, str]) -> list[int]:
    text = re.sub(r"/\*.*?\*/", "", text).strip()
    return _sizes(text) if "[" in text else _sizes(shapes.get(text.lstrip("%"), ""))


def _convolution_flops(rest: str, lhs: list[int], rhs: list[int], out: list[int]) -> int | float:
    """TPUs multiply matrices as convolutions. Only pairs of positions that both exist are multiplied."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    if not labels:
        return 0.0
    inputs, kernel, outputs = labels.groups()
    features = rhs[kernel.index("i")]
    total = 2.0 * out[outputs.index("b")] * out[outputs.index("f")] * features
    window = dict(_window(rest))
    for axis in (label for label in kernel if label.isdigit()):
        place = int(axis)
        total *= _valid_pairs(
            lhs[inputs.index(axis)],
            rhs[kernel.index(axis)],
            out[outputs.index(axis)],
            stride=window.get("stride", {}).get(place, 1),
            low=window.get("pad", {}).get(place, 0),
            base=window.get("lhs_dilate", {}).get(place, 1),
            spread=window.get("rhs_dilate", {}).get(place, 1),
        )
    return total


def _window(rest: str) -> Iterator[tuple[str, dict[int, int]]]:
    found = re.search(r"window=\{([^}]*)\}", rest)
    for part in found.group(1).split() if found else []:
        field, _, values = part.partition("=")
        yield field, {place: int(value.split("_")[0]) for place, value in enumerate(values.split("x"))}


def _valid_pairs(size: int, window: int, out: int, *, stride: int, low: int, base: int, spread: int) -> int:
    """(output, window) positions of one axis that meet a number of the input rather than padding or a dilation's gap."""
    pairs = 0
    for offset in range(window):
        reached = [place * stride + offset * spread - low for place in range(out)]
        pairs += sum(1 for at in reached if at >= 0 and at % base == 0 and at // base < size)
    return pairs
