"""The device mesh, and what lies where on it. The only file that names a mesh axis.

`data` splits the batch, `fsdp` splits the batch and the parameters (ZeRO), `tensor` splits heads and MLP columns (Megatron).

An axis of 256 seldom divides a width of 1664. So `fsdp` and `tensor` are laid out as their prime factors (256 = eight
axes of two): a dimension takes as many factors as divide it, and what is left over goes to another dimension of the same
parameter. What is large is thus never kept whole for a remainder's sake.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
SPLIT = ("fsdp", "tensor")  # the axes that split parameters
LARGE = 2**16  # numbers; smaller parameters stay whole where their rule's own axis does not divide them

# (end of the parameter's path, axis of each of its trailing dimensions). First match wins; a leading depth axis of
# stacked blocks is never split. Optimiser state follows the parameter whose path it ends with.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"(qkv/bias|qv_bias)", (None, "tensor", None)),
    (r"relative_positions", (None, "tensor")),
    (r"(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r"(query|key|value)/bias", ("tensor", None)),
    (r"(attention|map_head)/out/kernel", ("tensor", None, "fsdp")),
    (r"fc1/kernel", ("fsdp", "tensor")),
    (r"fc1/bias", ("tensor",)),
    (r"fc2/kernel", ("tensor", "fsdp")),
    (r"(embedding|decoder_embed|pre_logits|predict)/kernel", (None, "fsdp")),
    (r"head_(out|dist)/kernel", ("fsdp", "tensor")),
    (r"conv\w*/kernel", (None, None, None, "fsdp")),
    (r"positions", (None, "fsdp")),
    (r"(bias|scale|scale1|scale2|cls|dist|mask_token|probe|head_norm/mean|head_norm/var)", ()),
)
# What the models call the dimensions of an activation, and the axes that split it. Others stay whole.
ACTIVATIONS = {"batch": ("data", "fsdp"), "heads": ("tensor",), "mlp": ("tensor",)}
_current: ContextVar[Mesh | None] = ContextVar("mesh", default=None)


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given). One size may be -1: the rest. Default: everything on `data`.

    On TPUs neighbours in the mesh are neighbours on the torus.

    Raises:
      ValueError: sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = resolve(shape, len(devices))
    coarse = [sizes[axis] for axis in AXES]
    if devices[0].platform == "tpu":
        placed = mesh_utils.create_device_mesh(coarse, devices, allow_split_physical_axes=True)
    else:
        placed = np.asarray(devices).reshape(coarse)
    laid_out = factored(sizes)
    return Mesh(placed.reshape(tuple(laid_out.values())), tuple(laid_out))


def resolve(shape: Mapping[str, int] | None, devices: int) -> dict[str, int]:
    """The size of every axis, the -1 worked out. Raises as `make_mesh`."""
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(shape or {})
    unknown = set(sizes) - set(AXES)
    given = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if unknown or len(free) > 1 or given < 1 or devices % given or (not free and given != devices):
        raise ValueError(
            f"Expected mesh sizes for {AXES} that multiply to {devices} devices (one may be -1), got {sizes}: "
            "change config.mesh."
        )
    return {axis: devices // given if size == -1 else size for axis, size in sizes.items()}


def factored(sizes: Mapping[str, int]) -> dict[str, int]:
    """{"data": 2, "fsdp": 4, "tensor": 1} -> {"data": 2, "fsdp0": 2, "fsdp1": 2}: the axes of the mesh as it is made."""
    parts = {f"{axis}{i}": factor for axis in SPLIT for i, factor in enumerate(_primes(sizes[axis]))}
    return {"data": sizes["data"]} | parts


def axis_sizes(mesh: Mesh) -> dict[str, int]:
    """Of `data`, `fsdp` and `tensor`, whatever factors they are laid out in."""
    return {axis: math.prod(mesh.shape[name] for name in _factors(mesh, axis)) for axis in AXES}


def _primes(size: int) -> list[int]:
    """12 -> [3, 2, 2]: small factors last, which is where a remainder is left over."""
    found, factor = [], 2
    while size > 1:
        while size % factor == 0:
            found.append(factor)
            size //= factor
        factor += 1
    return found[::-1]


def _factors(mesh: Mesh | AbstractMesh, axis: str) -> tuple[str, ...]:
    return tuple(name for name in mesh.axis_names if name.rstrip("0123456789") == axis)


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec | None:
    """The layout of one parameter (or of its optimiser state); None where no rule matches.

    An axis goes to the dimension its rule names; where that does not divide, a large parameter gives another dimension
    that does, the longest first, or several that divide by some of the axis's factors each.
    """
    if not shape:
        return PartitionSpec()
    axes = next((axes for pattern, axes in RULES if re.search(rf"(^|/){pattern}$", path)), None)
    if axes is None:
        return None
    first = len(shape) - len(axes)
    rest, taken = list(shape), [() for _ in shape]  # type: list[int], list[tuple[str, ...]]
    large = math.prod(shape[first:]) >= LARGE and bool(axes)
    longest = sorted(range(first, len(shape)), key=lambda place: -shape[place])
    for axis in SPLIT:
        wished = [place for place, wish in enumerate(axes, first) if wish == axis]
        places = wished + [place for place in longest if place not in wished] if large else wished
        names = _factors(mesh, axis)
        # One dimension that takes the whole axis is best: gathering and scattering it is one exchange.
        whole = [place for place in places if rest[place] % math.prod(mesh.shape[name] for name in names) == 0]
        for place in whole[:1] or places:
            for name in names:
                if rest[place] % mesh.shape[name] == 0 and not any(name in already for already in taken):
                    rest[place] //= mesh.shape[name]
                    taken[place] += (name,)
    return PartitionSpec(*(names or None for names in taken))


def layout(paths_and_shapes: Mapping[str, tuple[int, ...]], mesh: Mesh) -> dict[str, NamedSharding]:
    """The sharding of every array of a state, by path.

    Raises:
      ValueError: arrays that no rule matches, all of them listed.
    """
    specs = {path: spec_for(path, shape, mesh) for path, shape in paths_and_shapes.items()}
    missing = [path for path, spec in specs.items() if spec is None]
    if missing:
        raise ValueError(f"No sharding rule matches {missing}: add one to vit_jax/sharding.py RULES.")
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items() if spec is not None}


@contextlib.contextmanager
def over(mesh: Mesh) -> Iterator[None]:
    """While a program is traced: the mesh that `constrain` and `stored` speak of."""
    token = _current.set(mesh)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Say how an activation lies, by the names of its leading dimensions; the identity outside `over`.

    XLA guesses from the parameters' layout, and would rather split the width of every activation than the batch.
    """
    mesh = _current.get()
    if mesh is None:
        return x
    axes = [_activation_axes(mesh, name) if name else () for name in names]
    fits = [a if a and x.shape[i] % math.prod(mesh.shape[f] for f in a) == 0 else None for i, a in enumerate(axes)]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fits)))


def apart(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of `x`, each device's examples by themselves: for loops that end when their data say so.

    Over a split batch such a loop would ask all devices before every round. The same numbers: examples do not meet.
    """
    mesh = _current.get()
    if mesh is None or x.shape[0] % batch_ways(mesh):
        return function(x)
    split = batch_layout(mesh).spec
    return jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(x)


def _activation_axes(mesh: Mesh, name: str) -> tuple[str, ...]:
    return tuple(factor for axis in ACTIVATIONS[name] for factor in _factors(mesh, axis))


def stored(x: jax.Array, path: str) -> jax.Array:
    """Say that a parameter (or its gradient: the transpose says the same) lies as its rule has it."""
    mesh = _current.get()
    if mesh is None:
        return x
    spec = spec_for(path, x.shape, mesh)
    return x if spec is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def batch_layout(mesh: Mesh) -> NamedSharding:
    """Examples split over every device but along `tensor`."""
    return NamedSharding(mesh, PartitionSpec(_activation_axes(mesh, "batch")))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """Into how many shards a batch is cut."""
    sizes = axis_sizes(mesh)
    return sizes["data"] * sizes["fsdp"]


class _Shard(NamedTuple):
    device: Any
    number: int  # which of the `batch_ways` shards of the batch lies there


@functools.lru_cache(maxsize=8)  # asked at every step, and the answer is the mesh's
def _local_shards(mesh: Mesh) -> list[_Shard]:
    where = batch_layout(mesh).addressable_devices_indices_map((batch_ways(mesh),))
    return [_Shard(device, index[0].indices(batch_ways(mesh))[0]) for device, index in where.items() if index]


def local_rows(batch: int, mesh: Mesh) -> list[int]:
    """The rows of a global batch that this process's devices need, whatever devices those are."""
    size = batch // batch_ways(mesh)
    numbers = sorted({shard.number for shard in _local_shards(mesh)})
    return [row for number in numbers for row in range(number * size, (number + 1) * size)]


def put(batch: Any, mesh: Mesh) -> Any:
    """This process's `local_rows` of a batch -> one global array each, shard by shard (the copies are asynchronous)."""
    shards, sharding, ways = _local_shards(mesh), batch_layout(mesh), batch_ways(mesh)
    places = {number: place for place, number in enumerate(sorted({shard.number for shard in shards}))}

    def put_one(array: np.ndarray) -> jax.Array:
        size = len(array) // len(places)
        parts = [
            jax.device_put(array[places[number] * size : (places[number] + 1) * size], device)
            for device, number in shards
        ]
        return jax.make_array_from_single_device_arrays((size * ways, *array.shape[1:]), sharding, parts)

    return jax.tree.map(put_one, batch)


def put_everywhere(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds -> a global one; each device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
