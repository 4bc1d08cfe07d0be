"""From a configuration to the model that its method trains, new or with given parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.contracts import Config, UserError
from vit_jax.methods import method_of
from vit_jax.ops.keys import key_for
from vit_jax.ops.paths import flat_params, path_name


def build(config: Config, num_classes: int | None, seed: Any = 0) -> Any:
    """A freshly initialised model for `config["objective"]`."""
    return method_of(config).build(config, num_classes, nnx.Rngs(params=key_for(seed, "params")))


def assemble(config: Config, num_classes: int | None, params: Mapping[str, np.ndarray]) -> Any:
    """A model of `config` with these parameters by path, every one of them."""
    graph, shapes = nnx.split(jax.eval_shape(lambda: build(config, num_classes)))
    expected = {path: leaf.shape for path, leaf in flat_params(shapes).items()}
    given = {path: leaf.shape for path, leaf in params.items()}
    if expected != given:
        wrong = sorted(path for path in expected.keys() | given.keys() if expected.get(path) != given.get(path))
        raise UserError(f"Expected parameters of this configuration, these differ: {wrong[:8]} ({len(wrong)} in all).")
    filled = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(params[path_name(path)]), shapes)
    return nnx.merge(graph, filled)
