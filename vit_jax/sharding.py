"""The device mesh, and what lies where on it. The only file that names a mesh axis.

`data` splits the batch, `fsdp` splits the batch and the parameters (ZeRO), `tensor` splits heads and MLP columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# (end of the parameter's path, axis of each of its trailing dimensions). First match wins; a leading depth axis of
# stacked blocks is never split. Optimiser state follows the parameter whose path it ends with.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"qkv/bias", (None, "tensor", None)),
    (r"(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r"(query|key|value)/bias", ("tensor", None)),
    (r"(attention|map_head)/out/kernel", ("tensor", None, "fsdp")),
    (r"fc1/kernel", ("fsdp", "tensor")),
    (r"fc1/bias", ("tensor",)),
    (r"fc2/kernel", ("tensor", "fsdp")),
    (r"(embedding|decoder_embed|pre_logits|predict)/kernel", (None, "fsdp")),
    (r"head_(out|dist)/kernel", ("fsdp", "tensor")),
    (r"conv(_root|_proj|\d)/kernel", (None, None, None, "fsdp")),
    (r"positions", (None, "fsdp")),
    (r"(bias|scale|scale1|scale2|cls|dist|mask_token|probe|head_norm/mean|head_norm/var)", ()),
)


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given). One size may be -1: the rest. Default: everything on `data`.

    Raises:
      ValueError: sizes that do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": -1, "fsdp": 1, "tensor": 1} | dict(shape or {})
    unknown = set(sizes) - set(AXES)
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [axis for axis, size in sizes.items() if size == -1]
    if unknown or len(free) > 1 or len(devices) % given or (not free and given != len(devices)):
        raise ValueError(
            f"Expected mesh sizes for {AXES} that multiply to {len(devices)} devices (one may be -1), got {sizes}: "
            "change config.mesh."
        )
    for axis in free:
        sizes[axis] = len(devices) // given
    return Mesh(np.asarray(devices).reshape([sizes[axis] for axis in AXES]), AXES)


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec | None:
    """The layout of one parameter (or of its optimiser state); None where no rule matches.

    A dimension that its axis does not divide stays whole.
    """
    if not shape:
        return PartitionSpec()
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", path):
            whole = (None,) * (len(shape) - len(axes))
            trailing = [
                axis if axis and size % mesh.shape[axis] == 0 else None
                for axis, size in zip(axes, shape[len(whole) :], strict=True)
            ]
            return PartitionSpec(*whole, *trailing)
    return None


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


def batch_layout(mesh: Mesh) -> NamedSharding:
    """Examples split over every device but along `tensor`."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """Into how many shards a batch is cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put(batch: Any, mesh: Mesh) -> Any:
    """Host arrays of this process -> one global array each, shard by shard (the copies are asynchronous)."""
    sharding = batch_layout(mesh)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)
