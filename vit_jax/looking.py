"""Looking inside from Python: where a model looks, what it makes of hidden patches, how it lies on several devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import sharding
from vit_jax.api import Trained, taken
from vit_jax.contracts import UserError
from vit_jax.evaluation import attention as weights
from vit_jax.methods import method_of
from vit_jax.methods.method import Drawing
from vit_jax.ops.paths import flat_params, path_name


def attention(model: Any, images: Any, layers: Any = (-1,), form: str = "maps") -> list[np.ndarray]:
    """Attention of inner layers, one array a layer, every head by itself.

    Args:
      model: what `load` gave, of a masked autoencoder its encoder is used; or a backbone such as `create` gives.
      images: with what `load` gave, pictures as `Trained.preprocess` takes them; with a model itself, pixels "b H W c".
      layers: blocks from 0, or from the end with -1.
      form: "maps" (b, heads, rows, columns), what the class token looks at, or the patches' mean without one; "tokens"
        (b, heads, tokens, tokens), all of it: rows are queries and sum to 1.

    Raises:
      UserError: a layer that the model does not have, another form, or a model without features.
    """
    if form not in ("maps", "tokens"):
        raise UserError(f"Expected a form of maps or tokens, got {form!r}.")
    if isinstance(layers, int) or not layers or not all(isinstance(layer, int) for layer in layers):
        raise UserError(f"Expected layers as numbers of blocks such as [0, -1], got {layers!r}.")
    encoder, pixels = taken(model, images)
    try:
        found = weights.attention(encoder, pixels, list(layers))
    except ValueError as error:
        raise UserError(str(error)) from error
    return list(weights.to_patches(encoder, found) if form == "maps" else found)


def reconstruct(trained: Trained, pictures: Any, mask_ratio: float | None = None, seed: int = 0) -> Drawing:
    """Hide patches and let a masked image model fill them in: `columns` of pictures by title, and a `note`.

    Args:
      trained: what `load` gave of a run that learned to fill in pixels and asks no other network, such as MAE's.
      pictures: as `Trained.preprocess` takes them.
      mask_ratio: share of the patches hidden; None: as in training.
      seed: of the masks.

    Raises:
      UserError: a model that fills in nothing, or a ratio that leaves nothing to see or to hide.
    """
    config, method = trained.config, method_of(trained.config)
    if method.picture is None or method.frozen:
        raise UserError(
            f"Expected a model that fills in pixels by itself, this one was trained with objective "
            f"{config['objective']!r}: use one pre-trained by MAE, or `vit-jax reconstruct`."
        )
    try:
        config = config if mask_ratio is None else hiding(config, mask_ratio)
        return method.picture(trained.model, jnp.asarray(trained.preprocess(pictures)), config, seed=seed)
    except ValueError as error:
        raise UserError(str(error)) from error


def hiding(config: dict[str, Any], mask_ratio: float) -> dict[str, Any]:
    """The configuration of a masked image model, with this share of the patches hidden at random.

    Raises:
      ValueError: a share that hides nothing or leaves nothing to see, or a method that has none.
    """
    name = config["objective"]
    if "mask_ratio" not in config.get(name, {}) or not 0 < mask_ratio < 1:
        raise ValueError(
            f"Expected mask_ratio between 0 and 1 of a method that has one, got {mask_ratio} for {name!r}."
        )
    section = config[name] | {"mask_ratio": mask_ratio, "mask": "random"}
    return config | {name: section | ({"num_visible": None} if "num_visible" in section else {})}


def shard(model: Any, mesh: Any) -> Any:
    """The same model with its parameters laid out over this process's devices, as training lays them out.

    Args:
      model: a Flax NNX module, such as `create` gives or `load(...).model`.
      mesh: sizes of "data", "fsdp" and "tensor", as `config.mesh`; one may be -1, the rest.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or no module.
    """
    if not isinstance(model, nnx.Module):
        raise UserError(f"Expected a Flax module such as load(...).model to shard, got {type(model).__name__}.")
    if not isinstance(mesh, Mapping) or not all(isinstance(size, int) for size in mesh.values()):
        raise UserError(f'Expected sizes such as {{"data": 2, "fsdp": -1}} for mesh, got {mesh!r}.')
    try:
        made = sharding.make_mesh(mesh)
    except ValueError as error:
        raise UserError(str(error)) from error
    graph, params = nnx.split(model)
    layout = sharding.layout({path: leaf.shape for path, leaf in flat_params(params).items()}, made)
    placed = jax.tree_util.tree_map_with_path(lambda path, leaf: jax.device_put(leaf, layout[path_name(path)]), params)
    return nnx.merge(graph, placed)
