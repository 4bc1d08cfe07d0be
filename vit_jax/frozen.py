"""Networks that a method uses and does not train: opened by the loader of all weights, known by the sum of their numbers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax import configuration, processes
from vit_jax.contracts import Config, UserError
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble, build
from vit_jax.methods.method import Frozen, Network, Networks
from vit_jax.ops.paths import flat_params
from vit_jax.weights import open_weights


def opened(config: Config) -> tuple[Config, Networks]:
    """`config` with the checksums of the frozen networks that it names, and these networks.

    Raises:
      UserError: none given, one that does not fit, other numbers than `{field}_sha256` says, or than another process has.
    """
    made: Any = copy.deepcopy(config)
    networks = Networks()
    for name, spec in method_of(config).frozen.items():
        if _get(config, spec.field) is None:
            raise UserError(
                f"Expected the weights of a {name}, got none: set --config.{spec.field}=WORKDIR, or a file of weights."
            )
        networks[name], found = _opened(name, spec, config)
        processes.check_same(f"the {name}", int(found[:7], 16), f"give each the same config.{spec.field}")
        section, _, last = spec.field.rpartition(".")
        _get(made, section)[f"{last}_sha256"] = found
    return made, networks


def planned(config: Config) -> Networks:
    """The same for a plan: shapes alone, and the network of a recipe where no weights are given."""
    networks = Networks()
    for name, spec in method_of(config).frozen.items():
        if _get(config, spec.field) is not None:
            whole = _opened(name, spec, config)[0]
            graph, params, _ = whole.asked or whole
        else:
            stand_in = configuration.load(spec.recipe)
            try:
                spec.fits(stand_in, config)
            except UserError as error:
                raise UserError(
                    f"Expected the weights of a {name}: none are given, and {spec.recipe}, which stands for them, does not "
                    f"fit: set --config.{spec.field}=WORKDIR ({str(error).removesuffix('.')})."
                ) from error
            held = stand_in if spec.asked is None else spec.asked(stand_in)
            graph, params = nnx.split(jax.eval_shape(lambda held=held: build(held, None)))
        networks[name] = Network(graph, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    return networks


def _opened(name: str, spec: Frozen, config: Config) -> tuple[Network, str]:
    path, wanted = _get(config, spec.field), _get(config, f"{spec.field}_sha256")
    try:
        weights, _ = open_weights(path)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('.')} (the {name}, config.{spec.field}).") from error
    found = sha256(weights.params)
    if wanted not in (None, found):
        raise UserError(
            f"Expected the {name} that config.{spec.field}_sha256 names ({wanted[:12]}...), {path} holds another "
            f"({found[:12]}...): give the one this began with."
        )
    spec.fits(weights.config, config)
    network = _network(weights.config, weights.num_classes, weights.params)
    if spec.asked is not None:
        part = spec.asked(weights.config)
        paths = flat_params(jax.eval_shape(lambda: build(part, weights.num_classes)))
        held = {path: value for path, value in weights.params.items() if path in paths}
        network = network._replace(asked=_network(part, weights.num_classes, held))
    return network, found


def _network(config: Config, num_classes: int | None, params: Mapping[str, np.ndarray]) -> Network:
    graph, filled = nnx.split(assemble(config, num_classes, params))
    return Network(graph, jax.tree.map(np.asarray, filled))


def sha256(params: Mapping[str, np.ndarray]) -> str:
    """Of paths, shapes and numbers, in the order of the paths: the same wherever they were read from."""
    digest = hashlib.sha256()
    for path in sorted(params):
        array = np.ascontiguousarray(params[path])
        digest.update(f"{path} {array.shape} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own
    return digest.hexdigest()


def remembered(config: Config, stored: Config | None) -> Config:
    """`config` with the places of frozen networks that a run's own checkpoint knows, where none are given."""
    made: Any = copy.deepcopy(config)
    for field in configuration.frozen_fields(config) if stored is not None else ():
        if _get(config, field) is None:
            section, _, last = field.rpartition(".")
            _get(made, section)[last] = _get(stored, field)
    return made


def _get(config: Any, field: str) -> Any:
    for step in field.split("."):
        if step not in config:
            raise UserError(
                f"Expected the field {field}, which a method with a frozen network needs, it is missing: add it to FIELDS."
            )
        config = config[step]
    return config
