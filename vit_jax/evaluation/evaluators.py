"""Exact evaluation: per-example numbers with a 0/1 weight, summed; no example dropped, none counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.contracts import Batch, UserError
from vit_jax.ops.keys import key_for
from vit_jax.ops.means import Mean, average, weighted

EvalStep = Callable[[Any, Batch, Any], dict[str, Mean]]


def make_eval_step(
    objective: Any, graph: Any, params_layout: Any, mesh: Mesh, networks: Any = None, frozen: tuple[Any, ...] = ()
) -> EvalStep:
    """One jitted batch: loss, metrics of `objective` (methods.method.Objective) and `examples` as sums and counts.

    Masks come from the batch's number alone, so every evaluation of a run sees the same ones. `networks` are frozen ones
    (methods.method.Networks), and `frozen` their parameters as they lie on the mesh (training.step.Program).
    """

    def step(params: Any, batch: Batch, number: Any, *frozen: Any) -> dict[str, Mean]:
        with sharding.over(mesh):
            asked = networks.merged(*frozen) if networks else {}
            return sums(objective, nnx.merge(graph, params), batch, number, **asked)

    layout = (params_layout, sharding.batch_layout(mesh), None, *(None for _ in frozen))
    jitted = jax.jit(step, in_shardings=layout, out_shardings=sharding.replicated(mesh))
    return lambda params, batch, number: jitted(params, batch, number, *frozen)


def sums(objective: Any, model: Any, batch: Batch, number: Any, **networks: Any) -> dict[str, Mean]:
    """Loss, metrics and `examples` of one batch."""
    inputs = objective.inputs(batch, key_for(0, "evaluation", number), False)
    loss, metrics = objective.losses(model, objective.consult(inputs, **networks), None, False)
    examples = weighted(jnp.ones(batch.weight.shape), jnp.asarray(batch.weight))
    return {name: mean.reduce() for name, mean in {"loss": loss, **metrics, "examples": examples}.items()}


def evaluate(
    step: EvalStep, params: Any, batches: Iterable[Batch], mesh: Mesh, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any] | None:
    """Averages over all batches (arrays of what is an array an example), and `examples`. None when `stop` said so in between.

    A metric is NaN where an example's is: nothing is left out to make it look better (accuracies count NaN as wrong).

    Raises:
      UserError: not one picture to judge by.
    """
    totals: dict[str, Mean] = {}
    for number, batch in enumerate(batches):
        if stop():
            return None
        means = jax.device_get(step(params, sharding.put(batch, mesh), np.int32(number)))
        for name, mean in means.items():
            exact = jax.tree.map(lambda half: np.asarray(half, np.float64), mean)
            totals[name] = totals[name].merge(exact) if name in totals else exact
    if stop():  # perhaps while waiting for a batch that did not come
        return None
    counted = totals.pop("examples", None)  # all processes' rows, which `batches` here need not be
    examples = float(counted.total) if counted else 0.0
    if not examples:
        raise UserError(
            "Expected pictures to evaluate on, found none that can be read: change pp.test or the data set."
        )
    return {name: average(mean) for name, mean in totals.items()} | {"examples": examples}
