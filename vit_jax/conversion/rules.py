"""What one name of theirs is among ours, as a table that is read in both directions.

A `Rule` joins a path of ours with one or several names of theirs; `{i}` in their names counts blocks, which are stacked
along the first axis here. Layouts are pairs of functions of arrays, exact inverses of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from vit_jax.contracts import UserError
from vit_jax.conversion.tensors import FLOATS, Tensor

MOST_NAMES = 500  # in one message: all of any model's, not all of a hostile file's
Shape = tuple[int, ...]
Arrays = list[np.ndarray]


class Layout(NamedTuple):
    """How the same numbers lie: `there(ours) -> theirs` and `back(theirs, shape of ours) -> ours`."""

    there: Callable[[np.ndarray], Arrays]
    back: Callable[[Arrays, Shape], np.ndarray]


class Rule(NamedTuple):
    """One parameter of ours (of every block, with `{i}` in their names)."""

    theirs: tuple[str, ...]
    ours: str
    layout: Layout


class Fixed(NamedTuple):
    """A tensor of theirs that is a formula here: it must equal `value`, and is written from it."""

    theirs: str
    value: np.ndarray


SAME = Layout(lambda a: [a], lambda t, shape: t[0].reshape(shape))
BATCHED = Layout(lambda a: [a[None]], lambda t, shape: t[0].reshape(shape))  # a leading axis of 1
FLAT = Layout(lambda a: [a.reshape(-1)], lambda t, shape: t[0].reshape(shape))


def transposed(inputs: int = 1) -> Layout:
    """PyTorch's (out, in) matrix; ours has `inputs` leading input axes."""
    return Layout(
        lambda a: [a.reshape(math.prod(a.shape[:inputs]), -1).T],
        lambda t, shape: t[0].T.reshape(shape),
    )


def torch_patches(size: tuple[int, int]) -> Layout:
    """A (d, c, row, column) convolution; ours is the matrix over (row, column, channel)."""
    rows, columns = size
    return Layout(
        lambda a: [rearrange(a, "(r s c) d -> d c r s", r=rows, s=columns)],
        lambda t, shape: rearrange(t[0], "d c r s -> (r s c) d"),
    )


def flax_patches(size: tuple[int, int]) -> Layout:
    """A (row, column, c, d) convolution."""
    rows, columns = size
    return Layout(
        lambda a: [rearrange(a, "(r s c) d -> r s c d", r=rows, s=columns)],
        lambda t, shape: t[0].reshape(shape),
    )


# Query, key and value apart: in Flax with heads (d, h, e) and (h, e), in Hugging Face's as matrices (d, d) and (d).
FLAX_QKV = Layout(lambda a: [a[:, j] for j in range(3)], lambda t, shape: np.stack(t, axis=1))
FLAX_QKV_BIAS = Layout(lambda a: [a[j] for j in range(3)], lambda t, shape: np.stack(t))
TORCH_QKV = Layout(
    lambda a: [a[:, j].reshape(a.shape[0], -1).T for j in range(3)],
    lambda t, shape: np.stack([part.T.reshape(shape[0], *shape[2:]) for part in t], axis=1),
)
# Biases of several such layers: of all three, or of query and value alone.
BIASES = Layout(
    lambda a: [part.reshape(-1) for part in a], lambda t, shape: np.stack([part.reshape(shape[1:]) for part in t])
)


def linear(theirs: str, ours: str, inputs: int = 1) -> list[Rule]:
    """Kernel and bias of a PyTorch linear layer."""
    return [
        Rule((f"{theirs}.weight",), f"{ours}/kernel", transposed(inputs)),
        Rule((f"{theirs}.bias",), f"{ours}/bias", FLAT),
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """Scale and bias of a PyTorch LayerNorm."""
    return [Rule((f"{theirs}.weight",), f"{ours}/scale", SAME), Rule((f"{theirs}.bias",), f"{ours}/bias", SAME)]


def to_ours(
    tensors: Mapping[str, Tensor],
    table: Sequence[Rule | Fixed],
    shapes: Mapping[str, Shape],
    ignored: Sequence[str],
    any_numbers: bool = False,
) -> dict[str, np.ndarray]:
    """Their tensors as our parameters, float32, every one of both sides used.

    Everything is compared by name, shape and type before the first number is read and the first array made.
    `any_numbers`: take whole numbers, the real part of complex ones, and numbers that are not finite.

    Raises:
      UserError: names that are missing, left over, of another shape or type, all of them; or numbers that are not finite.
    """
    _check(tensors, table, shapes, ignored, any_numbers)
    wrong = [row.theirs for row in table if isinstance(row, Fixed) and not _equals(tensors[row.theirs], row.value)]
    if wrong:
        raise UserError(_mismatch({"of other numbers": [f"{name} (expected the sin-cos formula)" for name in wrong]}))
    params: dict[str, np.ndarray] = {}
    for row in table:
        if isinstance(row, Fixed):
            continue
        shape = shapes[row.ours]
        if "{i}" not in row.theirs[0]:
            found = [_numbers(name, tensors[name], any_numbers) for name in row.theirs]
            params[row.ours] = np.ascontiguousarray(row.layout.back(found, shape))
            continue
        params[row.ours] = np.empty(shape, np.float32)
        for block in range(shape[0]):
            names = [name.format(i=block) for name in row.theirs]
            found = [_numbers(name, tensors[name], any_numbers) for name in names]
            params[row.ours][block] = row.layout.back(found, shape[1:])
    return params


def _numbers(name: str, tensor: Tensor, any_numbers: bool) -> np.ndarray:
    """As float32."""
    with np.errstate(all="ignore"):  # a float64 beyond float32 becomes infinite, which is found below
        numbers = np.asarray(tensor)
        numbers = (numbers.real if numbers.dtype.kind == "c" else numbers).astype(np.float32, copy=False)
    if not any_numbers and not (finite := np.isfinite(numbers)).all():
        raise UserError(
            f"Expected finite numbers, {name} has {finite.size - int(finite.sum()):,} of {finite.size:,} that are not: "
            "fetch the file again, or load it all the same with any_numbers=True."
        )
    return numbers


def _equals(tensor: Tensor, value: np.ndarray) -> bool:
    return bool(np.allclose(np.asarray(tensor, np.float32), value, atol=1e-5))


def _check(
    tensors: Mapping[str, Tensor],
    table: Sequence[Rule | Fixed],
    shapes: Mapping[str, Shape],
    ignored: Sequence[str],
    any_numbers: bool,
) -> None:
    unused = {name for name in tensors if name not in ignored}
    missing: list[str] = []
    misshapen: list[str] = []
    mistyped: list[str] = []

    def compare(names: Sequence[str], expected: Sequence[Shape]) -> None:
        for name, want in zip(names, expected, strict=True):
            unused.discard(name)
            if name not in tensors:
                missing.append(name)
            elif tensors[name].shape != want:
                misshapen.append(f"{name} (expected {want}, got {tensors[name].shape})")
            elif not any_numbers and tensors[name].dtype.newbyteorder("=") not in FLOATS:
                mistyped.append(f"{name} ({tensors[name].dtype})")

    for row in table:
        if isinstance(row, Fixed):
            compare([row.theirs], [row.value.shape])
            continue
        stacked = "{i}" in row.theirs[0]
        shape = shapes[row.ours]
        one = np.broadcast_to(np.float32(0), shape[1:] if stacked else shape)  # no memory but one number's
        expected = [part.shape for part in row.layout.there(one)]
        for block in range(shape[0] if stacked else 1):
            compare([name.format(i=block) for name in row.theirs], expected)
    uncovered = sorted(set(shapes) - {row.ours for row in table if isinstance(row, Rule)})
    wrong = {
        "missing": missing,
        "not used": sorted(unused),
        "of another shape": misshapen,
        "of no floating-point numbers (any_numbers=True takes them)": mistyped,
        "of ours without a rule": uncovered,
    }
    if any(wrong.values()):
        raise UserError(_mismatch(wrong))


def _mismatch(wrong: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for what, names in wrong.items():
        more = f", and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
        if names:
            parts.append(f"{len(names)} {what}: {', '.join(name[:200] for name in names[:MOST_NAMES])}{more}")
    return (
        "Expected every tensor of the file and of the model to match, they do not. "
        + "; ".join(parts)
        + ". Give the right file, or what cannot be seen from it (num_heads=, image_size=)."
    )


def to_theirs(params: Mapping[str, np.ndarray], table: Sequence[Rule | Fixed]) -> dict[str, np.ndarray]:
    """Our parameters under their names.

    Raises:
      UserError: parameters that their format has no place for.
    """
    left = sorted(set(params) - {row.ours for row in table if isinstance(row, Rule)})
    if left:
        raise UserError(f"Expected a format with a place for every parameter, it has none for {', '.join(left)}.")
    tensors: dict[str, np.ndarray] = {}
    for row in table:
        if isinstance(row, Fixed):
            tensors[row.theirs] = row.value
            continue
        ours = np.asarray(params[row.ours])
        if "{i}" not in row.theirs[0]:
            tensors.update(zip(row.theirs, row.layout.there(ours), strict=True))
            continue
        for block in range(ours.shape[0]):
            names = [name.format(i=block) for name in row.theirs]
            tensors.update(zip(names, row.layout.there(ours[block]), strict=True))
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
