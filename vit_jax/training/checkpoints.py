"""Checkpoints by Orbax: written in the background, committed by one rename, readable on any mesh or as plain NumPy.

A step is one composite: `params` (and `ema`) as a flat dict of arrays by path, `train` (the rest of the state),
`data` (position), `config` and `metadata` (class names and whatever `predict` needs). State, clock and data position
are always of the same moment.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from vit_jax.contracts import UserError, first_line
from vit_jax.ops.paths import flat_params, path_name
from vit_jax.training.step import State

FOLDER = "checkpoints"
ARRAYS, NOTES = ("params", "ema", "train"), ("data", "config", "metadata")
# Copies of one array share the writing from this size on (bytes each). Without a limit Orbax compiles a slice for the
# shape of every small array, in the first save of every run.
SHARED_WRITING = 2**25
REGISTRY = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_WRITING)),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
)
logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file and that it only reads


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path with dots (a slash would be a folder); NumPy and JSON friendly."""
    return {path.replace("/", "."): leaf for path, leaf in flat_params(tree).items()}


def _items(state: State) -> dict[str, dict[str, Any]]:
    items = {"params": _flat(state.params), "train": _flat(state._replace(params=None, ema=None))}
    return items | ({"ema": _flat(state.ema)} if state.ema is not None else {})


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str | Path, *, keep: int = 2, read_only: bool = False):
        self.folder = Path(workdir).absolute() / FOLDER
        if read_only and not self.folder.is_dir():
            raise UserError(f"Expected a workdir with checkpoints, {workdir} has none: train first, or fix the path.")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, read_only=read_only, create=not read_only, cleanup_tmp_directories=not read_only
        )
        arrays: dict[str, Any] = {name: ocp.PyTreeCheckpointHandler(type_handler_registry=REGISTRY) for name in ARRAYS}
        notes = {name: ocp.JsonCheckpointHandler() for name in NOTES}
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=arrays | notes)

    def latest(self) -> int | None:
        """The newest complete step."""
        return self.manager.latest_step()

    def save(self, state: State, config: dict[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begin to write in the background; raises what an earlier write failed with."""
        self.check()
        step = int(state.step)
        if step in self.manager.all_steps():
            return
        items = {name: ocp.args.PyTreeSave(item) for name, item in _items(state).items()}
        self._run(
            lambda: self.manager.save(
                step,
                args=ocp.args.Composite(
                    **items,
                    data=ocp.args.JsonSave({"next_batch": step}),
                    config=ocp.args.JsonSave(config),
                    metadata=ocp.args.JsonSave(dict(metadata)),
                ),
            )
        )

    def save_weights(
        self, params: Mapping[str, np.ndarray], config: dict[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        """Parameters by path alone, as step 0: to load, evaluate and start from; a run cannot resume from it."""
        args = ocp.args.Composite(
            params=ocp.args.PyTreeSave({path.replace("/", "."): value for path, value in params.items()}),
            data=ocp.args.JsonSave({"next_batch": 0}),
            config=ocp.args.JsonSave(config),
            metadata=ocp.args.JsonSave(dict(metadata)),
        )
        self._run(lambda: self.manager.save(0, args=args))
        self.wait()

    def check(self) -> None:
        """Raise `UserError` if a write in the background failed. Cheap: called at every step."""
        self._run(self.manager.check_for_errors)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._run(self.manager.wait_until_finished)
        self.check()

    def close(self) -> None:
        self.manager.close()

    def _run(self, action: Any) -> Any:
        try:
            return action()
        except jax.errors.JaxRuntimeError:  # a device or another process, not the disk
            raise
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"Expected to write a checkpoint into {self.folder}, it failed ({first_line(error)}): "
                f"free space or give another --workdir; the last good one is step {self.latest()}."
            ) from error

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config, metadata) of a step."""
        restored = self.manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore(), metadata=ocp.args.JsonRestore())
        )
        return restored["config"], restored["metadata"]

    def next_batch(self, step: int) -> int:
        """The data position saved with a step."""
        return self.manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]["next_batch"]

    def restore(self, step: int, abstract: State, layout: State) -> State:
        """The state of a step, laid out by `layout` whatever mesh wrote it."""
        targets = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, layout
        )
        wanted = _items(targets)
        for name, item in wanted.items():
            _check_shapes(item, self._stored(step, name), f"{self.folder}/{step}/{name}")
        args = {
            name: ocp.args.PyTreeRestore(item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
            for name, item in wanted.items()
        }
        restored = self.manager.restore(step, args=ocp.args.Composite(**args))
        flat = {**restored["train"], **{f"params.{key}": leaf for key, leaf in restored["params"].items()}}
        flat |= {f"ema.{key}": leaf for key, leaf in dict(restored.get("ema") or {}).items()}
        return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path).replace("/", ".")], abstract)

    def params(self, step: int, *, averaged: bool = True) -> dict[str, np.ndarray]:
        """Parameters as NumPy by path; the moving average where the run kept one and `averaged`."""
        name = "ema" if averaged and (self.folder / str(step) / "ema").is_dir() else "params"
        as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in self._stored(step, name)}
        restored = self.manager.restore(
            step, args=ocp.args.Composite(**{name: ocp.args.PyTreeRestore(restore_args=as_numpy)})
        )
        return {key.replace(".", "/"): np.asarray(leaf) for key, leaf in dict(restored[name]).items()}

    def _stored(self, step: int, name: str) -> dict[str, Any]:
        """Shape and dtype of every stored array of one item."""
        found = self.manager.item_metadata(step)[name]
        if found is None:
            raise UserError(f"Expected {name} in the checkpoint {self.folder}/{step}, it has none: use another step.")
        return dict(getattr(found, "tree", found))


def _check_shapes(wanted: Mapping[str, Any], stored: Mapping[str, Any], place: str) -> None:
    ours = {key: tuple(leaf.shape) for key, leaf in wanted.items()}
    theirs = {key: tuple(leaf.shape) for key, leaf in stored.items()}
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
