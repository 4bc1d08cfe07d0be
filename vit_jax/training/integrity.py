"""Whether a checkpoint is what was written: its record of shapes, dtypes and checksums, and the comparison with it.

The record is made from the arrays as they lay on the devices, so it covers everything between there and a reader.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax.contracts import UserError
from vit_jax.ops.checksums import checksum, checksum_on_device

# Arrays by item and name, as a checkpoint holds them: {"params": {"head_out.bias": ...}, "train": ...}.
Items = Mapping[str, Mapping[str, Any]]
# By "item.name": [shape, dtype, checksum].
Record = dict[str, list[Any]]
RECORD = "checksums"  # the field of a step's metadata that holds the record; checkpoints of earlier versions have none


class Damaged(UserError):
    """A checkpoint that is not what was written. The message is the whole sentence."""

    def __init__(self, place: epath.Path, why: str):
        super().__init__(f"Expected the checkpoint {place} as it was written, it is damaged ({why}): use another step.")
        self.step, self.why = place.name, why


def flat_items(items: Items) -> dict[str, Any]:
    """By "item.name"."""
    return {f"{name}.{key}": leaf for name, item in items.items() for key, leaf in item.items()}


def sums_on_device(items: Items, replicated: Any) -> dict[str, int]:
    """The checksum of every array by "item.name", made where the arrays lie. All processes must ask.

    `replicated` is the sharding of a scalar that every device knows, as of `State.step`.
    """
    arrays = flat_items(items)
    sums = np.asarray(_summed(replicated)(list(arrays.values())))
    return dict(zip(arrays, sums.tolist(), strict=True))


@functools.lru_cache(maxsize=8)
def _summed(replicated: Any) -> Callable[[list[jax.Array]], jax.Array]:
    return jax.jit(lambda leaves: jnp.stack([checksum_on_device(leaf) for leaf in leaves]), out_shardings=replicated)


def sums_in_numpy(items: Items) -> dict[str, int]:
    """The same of arrays in this process's memory."""
    return {key: checksum(leaf) for key, leaf in flat_items(items).items()}


def with_record(notes: dict[str, dict[str, Any]], items: Items, sums: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The JSON parts of a step, with the record of everything in `metadata`."""
    record = {key: [list(leaf.shape), str(leaf.dtype), sums[key]] for key, leaf in flat_items(items).items()}
    return notes | {"metadata": notes["metadata"] | {RECORD: {"arrays": record, "notes": _sum_of(notes, record)}}}


def without_record(notes: dict[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], Record | None]:
    """The JSON parts as they were given, and the record of the arrays; None in checkpoints of earlier versions.

    Raises:
      ValueError: they are not what was written.
    """
    metadata = dict(notes["metadata"])
    found = metadata.pop(RECORD, None)
    notes = notes | {"metadata": metadata}
    if found is None:
        return notes, None
    if found["notes"] != _sum_of(notes, found["arrays"]):
        raise ValueError("its data, config or metadata are not what was written")
    return notes, found["arrays"]


def _sum_of(notes: Mapping[str, Any], record: Record) -> int:
    """Of what the JSON says, however it is spaced."""
    return zlib.crc32(json.dumps([notes, record], sort_keys=True).encode())


def stored_arrays(record: Record, name: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array of one item."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): (tuple(shape), dtype)
        for key, (shape, dtype, _) in record.items()
        if key.startswith(prefix)
    }


def compare(place: epath.Path, sums: Mapping[str, int], record: Record) -> None:
    """Raise `Damaged` where an array is not what the record says."""
    wrong = sorted(key for key, found in sums.items() if record[key][2] != found)
    if wrong:
        raise Damaged(place, f"{wrong[0]} does not hold the numbers that were written; {len(wrong)} arrays in all")


def names_there(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, str]:
    """Our names -> theirs. Where clipping was switched on or off, the optimiser's state has moved in its chain."""

    def without_place(key: str) -> str:
        return re.sub(r"^opt_state\.\d+\.", "opt_state.", key)

    there = {without_place(key): key for key in stored}
    return {key: key if key in stored else there.get(without_place(key), key) for key in wanted}


def check_shapes(wanted: Mapping[str, Any], stored: Mapping[str, tuple[tuple[int, ...], str]], place: str) -> None:
    """Raise `UserError` where the arrays that are wanted are not those that are stored."""
    ours = {key: tuple(leaf.shape) for key, leaf in wanted.items()}
    theirs = {key: shape for key, (shape, _) in stored.items()}
    if ours == theirs:
        return
    wrong = [
        f"{key}: expected {ours.get(key)}, got {theirs.get(key)}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    raise UserError(
        f"The checkpoint {place} is of another model ({'; '.join(wrong[:5])}; {len(wrong)} in all): "
        "use the configuration it was trained with, or another --workdir."
    )
