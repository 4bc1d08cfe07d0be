"""Where a run begins: at its own last checkpoint, with given weights, or from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from vit_jax import configuration, sharding
from vit_jax.contracts import Config
from vit_jax.methods import method_of
from vit_jax.ops.paths import flat_params, path_name
from vit_jax.training import continuing
from vit_jax.training.checkpoints import FOLDER, Checkpoints
from vit_jax.training.step import Program, State
from vit_jax.training.transfer import adopted, transfer
from vit_jax.weights import Weights, given_weights, open_weights


def begin(
    config: Config,
    program: Program,
    checkpoints: Checkpoints,
    weights: tuple[Weights, int] | None,
    data: continuing.Data,
    metadata: Mapping[str, Any],
) -> tuple[State, str]:
    """The first state of this run, and a sentence that says where it came from.

    `metadata` is what this run will keep with its checkpoints; one that goes on has to have the same pictures and classes.
    """

    def continued(step: int) -> tuple[State, str]:
        (own, told), workdir = checkpoints.read(step), str(checkpoints.folder.parent)
        stored = configuration.completed(own)
        changed = configuration.changes(config, stored, workdir)
        scheduled = [field for field in configuration.SCHEDULE if field in changed]
        continuing.check_data(metadata, told, workdir)
        continuing.check(config, stored, step, data, scheduled, workdir)
        words = "".join(f"; {field} {there} -> {now} from here on" for field, (there, now) in changed.items())
        return checkpoints.restore(step, program.abstract, program.layout), words

    if found := checkpoints.newest(continued):
        step, (state, changed) = found
        return state, f"continuing at step {step}{changed}"
    state = program.init(np.int32(config["seed"]))
    if weights is not None:
        theirs, where = weights
        shapes = {path: leaf.shape for path, leaf in flat_params(state.params).items()}
        moved = transfer(theirs.params, theirs.config, shapes, config, theirs.resampling)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                sharding.put_everywhere(moved.params[path_name(path)], leaf.sharding)
                if path_name(path) in moved.params
                else leaf
            ),
            state.params,
        )
        ema = state.ema if state.ema is None else jax.tree.map(lambda leaf: leaf.copy(), params)
        return state._replace(params=params, ema=ema), f"from {given_weights(config)} step {where}: {moved.summary()}"
    return state, "from scratch"


def with_weights(
    config: Config, workdir: epath.Path, typed: frozenset[str], notes: list[str]
) -> tuple[Config, tuple[Weights, int] | None]:
    """`config` with the fields that given weights bring, and the weights where this run begins with them.

    A run that goes on has its own checkpoint, which keeps what was brought when it began.
    """
    given = given_weights(config)
    if not given:
        if method_of(config).labels and (config["layer_decay"] or config["train_blocks"] is not None):
            notes.append(
                "NOTE: this recipe is for fine-tuning, but no weights are given: training starts from scratch. "
                "Set config.init_from to a workdir or a file of weights."
            )
        return config, None
    begun, weights = begun_with(workdir), None
    if begun is None:
        weights = open_weights(given)
        begun = weights[0].config
    config, brought = adopted(config, begun, typed)
    notes += [f"{field} {configuration.shown(value)} comes with {given}" for field, value in brought.items()]
    return config, weights


def begun_with(workdir: epath.Path) -> Config | None:
    """The configuration in this workdir's own last checkpoint."""
    if not (workdir / FOLDER).is_dir():
        return None
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.newest(lambda step: configuration.completed(checkpoints.read(step)[0]))
    return found[1] if found else None
