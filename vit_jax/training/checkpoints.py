"""Checkpoints by Orbax: written in the background, committed by one rename, readable on any mesh or as plain NumPy.

A step is one composite: `params` (and `ema`) as a flat dict of arrays by path, `train` (the rest of the state),
`data` (position), `config` and `metadata` (class names and whatever `predict` needs). State, clock and data position
are always of the same moment. `metadata` also holds the checksum of everything else, made from the arrays as they lay
on the devices; whoever reads a step compares.
"""

from __future__ import annotations

import errno
import functools
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from vit_jax import places, processes
from vit_jax.contracts import UserError, first_line
from vit_jax.ops.paths import flat_params, path_name
from vit_jax.places import Where
from vit_jax.training import integrity
from vit_jax.training.integrity import Damaged, Record
from vit_jax.training.step import State

log = logging.getLogger(__name__)
Found = TypeVar("Found")
FOLDER = "checkpoints"
ARRAYS, NOTES = ("params", "ema", "train"), ("data", "config", "metadata")
# Copies of one array share the writing from this size on (bytes each). Without a limit Orbax compiles a slice for the
# shape of every small array, in the first save of every run.
SHARED_WRITING = 2**25
REGISTRY = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_WRITING)),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
)
# Orbax reports every file, that it only reads, and an error once from each thread that it has; we raise it.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: the run's folder, on a disk or in a bucket.
      keep: how many of the newest stay, at least 1. With 1 there is nothing to fall back on when that one is damaged.
      read_only: write nothing, and leave damaged steps where they are.
    """

    def __init__(self, workdir: Where, *, keep: int = 2, read_only: bool = False):
        self.folder = places.place(workdir) / FOLDER
        self.keep, self.read_only = keep, read_only
        _hush_late_callbacks()
        if keep < 1:
            raise UserError(f"Expected keep_checkpoints of at least 1, got {keep}: a run that keeps none is lost.")
        if read_only and not self.folder.is_dir():
            raise UserError(f"Expected a workdir with checkpoints, {workdir} has none: train first, or fix the path.")

    @functools.cached_property
    def manager(self) -> ocp.CheckpointManager:
        """What writes. Made for the first save: it deletes what a killed run left unfinished."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep, create=True, cleanup_tmp_directories=True, lightweight_initialize=True
        )
        arrays: dict[str, Any] = {name: _handler() for name in ARRAYS}
        notes = {name: ocp.JsonCheckpointHandler() for name in NOTES}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=arrays | notes)

    # ---- which steps there are ----

    def steps(self) -> list[int]:
        """All steps, oldest first, whole or not. In a bucket, which knows no rename, those that were committed."""
        found = [path for path in self.folder.glob("*") if path.name.isdecimal()]
        if places.in_bucket(self.folder):
            found = [path for path in found if ocp.utils.is_checkpoint_finalized(path)]
        return sorted(int(path.name) for path in found)

    def latest(self) -> int | None:
        """The newest step, whole or not."""
        return max(self.steps(), default=None)

    def newest(self, read: Callable[[int], Found]) -> tuple[int, Found] | None:
        """(step, what `read` made of it) of the newest step that is whole; None where there is no step at all.

        Damaged steps are named, and put aside unless `read_only`. Of several processes all take the same step.

        Raises:
          UserError: there are steps, and none is whole.
        """
        damaged: list[Damaged] = []
        for step in reversed(self.steps()):
            try:
                found = read(step)
            except Damaged as error:
                damaged.append(error)
                continue
            for other in damaged:
                self._put_aside(other, step)
            processes.gather(0)  # nobody lists the folder before that is done
            return step, found
        if damaged:
            words = "; ".join(f"{error.step}: {error.why}" for error in damaged)
            raise UserError(
                f"Expected a whole checkpoint in {self.folder}, every one is damaged ({words}): bring back a copy of "
                "it, or start again in another --workdir."
            )
        return None

    def _put_aside(self, damaged: Damaged, used: int) -> None:
        if jax.process_index():
            return
        place = self.folder / damaged.step
        if self.read_only:
            log.warning("the checkpoint %s is damaged (%s): step %d is used", place, damaged.why, used)
            return
        names = (place.with_name(f"{place.name}.damaged{number or ''}") for number in itertools.count())
        aside = place.rename(next(name for name in names if not name.exists()))
        log.warning("the checkpoint %s is damaged (%s): moved to %s, step %d is used",
                    place, damaged.why, aside.name, used)  # fmt: skip

    # ---- writing ----

    def save(self, state: State, config: dict[str, Any], metadata: Mapping[str, Any]) -> None:
        """Begin to write in the background; raises what an earlier write failed with."""
        self.check()
        step = int(state.step)
        if step not in self.manager.all_steps():  # those that are being written, too
            items = _items(state)
            self._write(step, items, integrity.sums_on_device(items, state.step.sharding), config, metadata)

    def remove_from(self, step: int) -> None:
        """Remove `step` and what comes after it: those of a run that went back before it."""
        for later in self.steps():
            if later >= step:
                self._run(functools.partial(self.manager.delete, later))

    def save_weights(
        self, params: Mapping[str, np.ndarray], config: dict[str, Any], metadata: Mapping[str, Any]
    ) -> None:
        """Parameters by path alone, as step 0: to load, evaluate and start from; a run cannot resume from it."""
        items = {"params": {path.replace("/", "."): value for path, value in params.items()}}
        self._write(0, items, integrity.sums_in_numpy(items), config, metadata)
        self.wait()

    def _write(
        self,
        step: int,
        items: integrity.Items,
        sums: Mapping[str, int],
        config: dict[str, Any],
        metadata: Mapping[str, Any],
    ) -> None:
        notes = {"data": {"next_batch": step}, "config": config, "metadata": dict(metadata)}
        args: dict[str, Any] = {name: ocp.args.PyTreeSave(dict(item)) for name, item in items.items()}
        for name, note in integrity.with_record(notes, items, sums).items():
            args[name] = ocp.args.JsonSave(note)
        self._run(lambda: self.manager.save(step, args=ocp.args.Composite(**args)))

    def check(self) -> None:
        """Raise `UserError` if a write in the background failed. Cheap: called at every step."""
        if "manager" in self.__dict__:
            self._run(self.manager.check_for_errors)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        if "manager" in self.__dict__:
            self._run(self.manager.wait_until_finished)
            self.check()

    def close(self) -> None:
        """Wait for what is being written. What failed has been raised by `check` or `wait`."""
        if "manager" in self.__dict__:
            try:
                self.manager.close()
            except (OSError, ValueError, RuntimeError) as error:
                log.debug("closing: %s", error)

    def _run(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except jax.errors.JaxRuntimeError:  # a device or another process, not the disk
            raise
        except (OSError, ValueError, RuntimeError) as error:
            last = self.latest()
            raise UserError(
                f"Expected to write a checkpoint into {self.folder}, it failed ({_reason(error)}): free space or "
                f"give another --workdir; {'there is none yet' if last is None else f'the last good one is step {last}'}."
            ) from error

    # ---- reading ----

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config, metadata) of a step.

        Raises:
          Damaged: they are not what was written.
        """
        notes, _ = self._notes(step)
        return notes["config"], notes["metadata"]

    def next_batch(self, step: int) -> int:
        """The data position saved with a step. Raises as `read`."""
        return self._notes(step)[0]["data"]["next_batch"]

    def restore(self, step: int, abstract: State, layout: State) -> State:
        """The state of a step, laid out by `layout` whatever mesh wrote it.

        Raises:
          Damaged: an array is not what was written.
          UserError: the arrays are another model's.
        """
        targets = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, layout
        )
        (_, record), wanted = self._notes(step), _items(targets)
        theirs: dict[str, dict[str, str]] = {}  # our names -> those that were written

        def read() -> dict[str, dict[str, Any]]:
            found = {}
            for name, item in wanted.items():
                stored = self._stored(step, name, record)
                theirs[name] = integrity.names_there(item, stored)
                asked = {theirs[name][key]: leaf for key, leaf in item.items()}
                integrity.check_shapes(asked, stored, f"{self.folder}/{step}/{name}")
                args = ocp.args.PyTreeRestore(asked, restore_args=ocp.checkpoint_utils.construct_restore_args(asked))
                arrays = _handler().restore(self._place(step, name), args=args)
                found[name] = {key: arrays[theirs[name][key]] for key in item}
            return found

        found = self._together(step, read)
        if record is not None:
            sums = integrity.sums_on_device(found, layout.step)
            there = {
                f"{name}.{theirs[name][key]}": sums[f"{name}.{key}"] for name, item in found.items() for key in item
            }
            integrity.compare(self.folder / str(step), there, record)
        flat = found.pop("train") | integrity.flat_items(found)
        return jax.tree_util.tree_map_with_path(lambda path, _: flat[path_name(path).replace("/", ".")], abstract)

    def params(self, step: int, *, averaged: bool = True) -> dict[str, np.ndarray]:
        """Parameters as NumPy by path; the moving average where the run kept one and `averaged`. Raises as `restore`."""
        _, record = self._notes(step)
        known = record if record is not None else [f"{path.name}." for path in (self.folder / str(step)).glob("*")]
        name = "ema" if averaged and any(key.startswith("ema.") for key in known) else "params"

        def read() -> dict[str, np.ndarray]:
            as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in self._stored(step, name, record)}
            found = _handler().restore(self._place(step, name), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
            return {key: np.asarray(leaf) for key, leaf in found.items()}

        found = self._together(step, read)
        if record is not None:
            integrity.compare(self.folder / str(step), integrity.sums_in_numpy({name: found}), record)
        return {key.replace(".", "/"): leaf for key, leaf in found.items()}

    def _place(self, step: int, name: str) -> epath.Path:
        return self.folder / str(step) / name

    def _together(self, step: int, read: Callable[[], Found]) -> Found:
        """What `read` gives; `Damaged` on every process where it fails on one. Nothing in it may wait for another."""
        found, problem = None, None
        try:
            found = read()
        except (UserError, jax.errors.JaxRuntimeError):  # another model; a device
            raise
        except Exception as error:  # a damaged file breaks its reader anywhere
            if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                raise UserError(
                    f"Expected to read the checkpoint {self.folder / str(step)}, it is not allowed "
                    f"({_reason(error)}): change the permissions of the files."
                ) from error
            problem = Damaged(self.folder / str(step), f"it cannot be read: {_reason(error)[:120].strip()}")
        if any(processes.gather(int(problem is not None))):
            raise problem or Damaged(self.folder / str(step), "another process cannot read it")
        assert found is not None
        return found

    def _notes(self, step: int) -> tuple[dict[str, dict[str, Any]], Record | None]:
        """The JSON parts of a step, compared with their checksum, and the record of its arrays."""
        return self._together(
            step,
            lambda: integrity.without_record({name: _json(self._place(step, name) / "metadata") for name in NOTES}),
        )

    def _stored(self, step: int, name: str, record: Record | None) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every stored array of one item, as the record has them: no lying size is ever read."""
        place, known = self._place(step, name), integrity.stored_arrays(record or {}, name)
        if not (known if record is not None else place.is_dir()):
            raise UserError(f"Expected {name} in the checkpoint {self.folder}/{step}, it has none: use another step.")
        metadata = _handler().metadata(place)
        tree = dict(getattr(metadata, "tree", metadata))
        found = {key: (tuple(leaf.shape), str(np.dtype(leaf.dtype))) for key, leaf in tree.items()}
        wrong = sorted(key for key in found.keys() | known.keys() if found.get(key) != known.get(key))
        if record is not None and wrong:
            raise ValueError(f"{name} holds other arrays than were written, the first is {wrong[0]}")
        return found


def _json(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name} is no JSON") from error


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(type_handler_registry=REGISTRY)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by path with dots (a slash would be a folder); NumPy and JSON friendly."""
    return {path.replace("/", "."): leaf for path, leaf in flat_params(tree).items()}


def _items(state: State) -> dict[str, dict[str, Any]]:
    items = {"params": _flat(state.params), "train": _flat(state._replace(params=None, ema=None))}
    return items | ({"ema": _flat(state.ema)} if state.ema is not None else {})


def _reason(error: BaseException) -> str:
    """The system's own words where there are some: TensorStore has them behind two long paths."""
    told = (
        os.strerror(number)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
    )
    return next((words for words in told if words in str(error)), first_line(error))


def _hush_late_callbacks() -> None:
    """Once one file has failed, the others of its step end into an event loop that is closed: a traceback each."""
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "only_what_matters":
        return

    def only_what_matters(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = only_what_matters
