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
TORCH_QKV_BIAS = Layout(
    lambda a: [a[j].reshape(-1) for j in range(3)], lambda t, shape: np.stack([part.reshape(shape[1:]) for part in t])
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
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Rule | Fixed],
    shapes: Mapping[str, Shape],
    ignored: Sequence[str],
) -> dict[str, np.ndarray]:
    """Their tensors as our parameters, float32, every one of both sides used.

    Raises:
      UserError: names that are missing, left over or of another shape, all of them.
    """
    unused = {name for name in tensors if name not in ignored}
    missing: list[str] = []
    wrong: list[str] = []
    params: dict[str, np.ndarray] = {}

    def take(names: Sequence[str], layout: Layout, shape: Shape) -> np.ndarray | None:
        unused.difference_update(names)
        absent = [name for name in names if name not in tensors]
        if absent:
            missing.extend(absent)
            return None
        given = [np.asarray(tensors[name]) for name in names]
        expected = [part.shape for part in layout.there(np.broadcast_to(np.float32(0), shape))]
        if [part.shape for part in given] != expected:
            wrong.extend(
                f"{name} (expected {want}, got {part.shape})"
                for name, part, want in zip(names, given, expected, strict=True)
                if part.shape != want
            )
            return None
        return layout.back([part.astype(np.float32, copy=False) for part in given], shape)

    for row in table:
        if isinstance(row, Fixed):
            value = take([row.theirs], SAME, row.value.shape)
            if value is not None and not np.allclose(value, row.value, atol=1e-5):
                wrong.append(f"{row.theirs} (expected the sin-cos formula, got other numbers)")
            continue
        shape = shapes[row.ours]
        if "{i}" not in row.theirs[0]:
            value = take(row.theirs, row.layout, shape)
            if value is not None:
                params[row.ours] = np.ascontiguousarray(value)
            continue
        stacked = np.empty(shape, np.float32)
        for block in range(shape[0]):
            value = take([name.format(i=block) for name in row.theirs], row.layout, shape[1:])
            if value is not None:
                stacked[block] = value
        params[row.ours] = stacked
    uncovered = sorted(set(shapes) - {row.ours for row in table if isinstance(row, Rule)})
    if missing or unused or wrong or uncovered:
        raise UserError(_mismatch(missing, sorted(unused), wrong, uncovered))
    return params


def _mismatch(missing: list[str], unused: list[str], wrong: list[str], uncovered: list[str]) -> str:
    parts = [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing), ("not used", unused), ("of another shape", wrong), ("of ours without a rule", uncovered)
        )
        if names
    ]  # fmt: skip
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
