"""Leaves of a tree by path: "encoder/transformer/blocks/mlp/fc1/kernel". Decay, sharding and conversion go by paths."""

from __future__ import annotations

from typing import Any

import jax


def flat_params(params: Any) -> dict[str, Any]:
    """Parameters by path."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple) -> str:
    """A tree path as words joined by "/". The last step into an nnx.Param's array is not a word of ours."""
    if path and isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)
