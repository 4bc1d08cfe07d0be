"""One optimiser step: State -> State, a pure function under one jit, sharded by the rules of sharding.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vit_jax import derived, sharding
from vit_jax.contracts import Batch, Config, UserError, blank_labels, label_like
from vit_jax.methods.building import build
from vit_jax.methods.method import NO_NETWORKS, Networks, Objective
from vit_jax.models.registry import pair
from vit_jax.ops.keys import key_for
from vit_jax.ops.means import Mean, merge_all
from vit_jax.ops.paths import flat_params, path_name
from vit_jax.training.optimizer import lr_scales, make_optimizer
from vit_jax.training.schedules import Schedule


class State(NamedTuple):
    """All that training changes. The data position is `step`: batch number `step` is the next to be drawn."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any  # None without EMA
    skipped: Int[Array, ""]  # steps left out because loss, gradient or new parameters were not finite
    skipped_in_row: Int[Array, ""]


class Report(NamedTuple):
    """What one step tells: sums and counts, never averages."""

    means: dict[str, Mean]
    learning_rate: Float[Array, ""]
    grad_norm: Float[Array, ""]
    finite: Array
    skipped_in_row: Int[Array, ""]


class Program(NamedTuple):
    """The compiled halves of training for one config on one mesh."""

    graph: Any
    layout: Any  # sharding of each leaf of State
    abstract: Any  # shapes and dtypes of State
    init: Callable[[Any], State]  # from the seed
    step: (
        Any  # jitted (state, batch, seed, *frozen) -> (state, report); the seed is traced, so every seed is one program
    )
    frozen: tuple[Any, ...] = ()  # parameters of frozen networks by name, on the mesh; () where the method has none


SEED = jax.ShapeDtypeStruct((), jnp.int32)


def abstract_batch(config: Config, num_classes: int | None) -> Batch:
    """Shapes of a step's batch, where there is no data to ask."""
    size, second = config["batch"], derived.second_crop(config["pp"])

    def pictures(sides: tuple[int, int]) -> Any:
        return jax.ShapeDtypeStruct((size, *sides, config["pp"]["channels"]), jnp.uint8)

    labels: Any = jax.eval_shape(lambda: blank_labels(label_like(config, num_classes), size))
    weight: Any = jax.ShapeDtypeStruct((size,), jnp.float32)
    return Batch(pictures(pair(config["pp"]["crop"])), labels, weight, second and pictures(second))


def make_program(
    config: Config,
    objective: Objective,
    schedule: Schedule,
    num_classes: int | None,
    mesh: Mesh,
    networks: Networks = NO_NETWORKS,
) -> Program:
    """Lay out the state and frozen networks over `mesh`, and jit the state's creation and its step."""
    accum, ways = config["accum_steps"], sharding.batch_ways(mesh)
    if config["batch"] % (accum * ways):
        raise UserError(
            f"Expected a batch divisible by {ways} devices x {accum} accumulation steps, got {config['batch']}: "
            "change config.batch, config.accum_steps or config.mesh."
        )
    graph, shapes = nnx.split(jax.eval_shape(lambda: build(config, num_classes)))
    if accum > 1 and statistics_of(nnx.merge(graph, shapes)):
        raise UserError(f"Expected accum_steps 1 with batch statistics (model.head_norm 'batch'), got {accum}.")
    optimizer = make_optimizer(shapes, config)

    def create(seed: Int[Array, ""]) -> State:
        params = nnx.split(build(config, num_classes, seed))[1]
        zero = jnp.zeros((), jnp.int32)
        # A copy, so that parameters and their average are never one donated buffer.
        ema = jax.tree.map(jnp.copy, params) if config["ema"] else None
        return State(zero, params, optimizer.init(params), ema, zero, zero)

    abstract = jax.eval_shape(create, SEED)
    layouts = sharding.layout({path: leaf.shape for path, leaf in flat_params(abstract).items()}, mesh)
    layout = jax.tree_util.tree_map_with_path(lambda path, _: layouts[path_name(path)], abstract)
    step = make_step(config, graph, objective, schedule, optimizer, mesh, networks)
    frozen = laid_out(networks, mesh)
    return Program(
        graph=graph,
        layout=layout,
        abstract=abstract,
        init=jax.jit(create, out_shardings=layout),
        step=jax.jit(
            step,
            in_shardings=(layout, sharding.batch_layout(mesh), None, *(None for _ in frozen)),  # frozen: as they lie
            out_shardings=(layout, sharding.replicated(mesh)),
            donate_argnums=0,
            keep_unused=True,  # of a frozen network, too: it lies on the devices, and plans count what lies there
        ),
        frozen=frozen,
    )


def laid_out(networks: Networks, mesh: Mesh) -> tuple[Any, ...]:
    """Parameters of frozen networks, as the table of sharding.py has them: what a step takes besides. Shapes stay shapes."""
    if not networks:
        return ()
    params = {name: network.params for name, network in networks.items()}
    layouts = sharding.layout({path: leaf.shape for path, leaf in flat_params(params).items()}, mesh)

    def placed(path: Any, leaf: Any) -> Any:
        place = layouts[path_name(path)]
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        return sharding.put_everywhere(leaf, place)

    return (jax.tree_util.tree_map_with_path(placed, params),)


def make_step(
    config: Config,
    graph: Any,
    objective: Objective,
    schedule: Schedule,
    optimizer: Any,
    mesh: Mesh,
    networks: Networks = NO_NETWORKS,
) -> Callable[..., tuple[State, Report]]:
    """The step itself, not yet jitted."""

    def step(state: State, batch: Batch, seed: Int[Array, ""], *frozen: Any) -> tuple[State, Report]:
        with sharding.over(mesh):
            return on_mesh(state, batch, seed, networks.merged(*frozen))

    def on_mesh(state: State, batch: Batch, seed: Int[Array, ""], taught_by: dict[str, Any]) -> tuple[State, Report]:
        key = key_for(seed, "train", state.step)
        with jax.named_scope("inputs"):
            inputs = objective.inputs(batch, key, True, state.step)
        keys = jax.random.split(key, batch.image.shape[0])

        def total_loss(params: Any, inputs: Any, keys: Any) -> tuple[Array, Any]:
            model = nnx.merge(graph, params)
            # Asked of each micro-batch: what a frozen network holds meanwhile is bounded by accumulation, too.
            with jax.named_scope("teacher"):
                inputs = objective.consult(inputs, **taught_by)
            with jax.named_scope("loss"):
                loss, metrics = objective.losses(model, inputs, keys, True)
            reduced = loss.reduce()
            sums = reduced, {name: mean.reduce() for name, mean in metrics.items()}
            return reduced.total, (sums, statistics_of(model))

        sums, ((loss, metrics), statistics) = accumulated(jax.grad(total_loss, has_aux=True), config["accum_steps"])(
            state.params, inputs, keys
        )
        with jax.named_scope("optimiser"):
            # Divided once, by what the whole batch counted: unequal masks and weights come out as in one batch.
            grads = jax.tree.map(lambda g: g / jnp.maximum(loss.count, 1e-9), sums)
            norm, rate = optax.tree.norm(grads), schedule(state.step)

            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            shared = None if schedule.shared is None else schedule.shared(state.step)
            params = descended(state.params, updates, lr_scales(state.params, config), rate, shared)
            params = jax.tree_util.tree_map_with_path(lambda path, p: statistics.get(path_name(path), p), params)
            # A finite gradient can still give infinite numbers, which no later step would heal.
            # And a loss of nothing at all (no patch hidden in the whole batch) is no number either.
            finite = jnp.isfinite(loss.total) & (loss.count > 0) & jnp.isfinite(norm) & all_finite((params, opt_state))
            # Also on a skipped step the clock moves on: the data does, too.
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
            )
            ema = state.ema
            if config["ema"]:
                ema = jax.tree.map(lambda e, p: config["ema"] * e + (1.0 - config["ema"]) * p, ema, params)
        in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
        new_state = State(state.step + 1, params, opt_state, ema, state.skipped + (1 - finite), in_row)
        return new_state, Report({"loss": loss, **metrics}, rate, norm, finite, in_row)

    return step


def descended(params: Any, updates: Any, scales: Any, rate: Float[Array, ""], shared: Float[Array, ""] | None) -> Any:
    """params - rate * scale * update. A `shared` part of the rate goes to all that train, unscaled."""

    def leaf(param: Array, update: Array, scale: Any) -> Array:
        if isinstance(scale, float) and scale == 1.0:
            return param - rate * update
        if shared is None:
            return param - rate * (update * scale)
        trains = np.asarray(scale) != 0
        return param - jnp.where(trains, shared + (rate - shared) * scale, 0.0) * update

    return jax.tree.map(leaf, params, updates, scales)


def all_finite(tree: Any) -> Array:
    """Whether every float is finite. A sum over what the update has just written; the average follows the parameters."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def statistics_of(model: Any) -> dict[str, Any]:
    """Running statistics of batch norms by path; the forward pass has moved them."""
    return flat_params(nnx.state(model, nnx.BatchStat))


def accumulated(gradient: Callable[..., Any], accum_steps: int) -> Callable[..., Any]:
    """The same gradient sums and means from `accum_steps` micro-batches, one after another in a scan.

    Micro-batch i takes every accum_steps-th example, so each device keeps the examples it has.
    """
    if accum_steps == 1:
        return gradient

    def scanned(params: Any, inputs: Any, keys: Any) -> Any:
        def split(x: Array) -> Array:
            slices = jnp.swapaxes(x.reshape(-1, accum_steps, *x.shape[1:]), 0, 1)
            return sharding.constrain(slices, None, "batch")

        micro = jax.tree.map(split, (inputs, keys))
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], micro)),
        )

        def add(total: Any, slice_: Any) -> tuple[Any, None]:
            (sums, ((loss, metrics), _)), (more, ((more_loss, more_metrics), _)) = total, gradient(params, *slice_)
            merged = (loss.merge(more_loss), merge_all(metrics, more_metrics))
            return (jax.tree.map(jnp.add, sums, more), (merged, {})), None

        return jax.lax.scan(add, zeros, micro)[0]

    return scanned
