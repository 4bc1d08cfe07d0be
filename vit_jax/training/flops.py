"""FLOPs of a program, counted on its jaxpr: matrix products and convolutions, two per multiply-add."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call of `function`, recomputation by `remat` included."""
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Any) -> int:
    """The same of a program that was traced already."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        numbers = equation.params["dimension_numbers"]
        per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * per_output
    inner = [jaxpr_flops(getattr(value, "jaxpr", value)) for value in _subprograms(equation.params)]
    if equation.primitive.name == "scan":
        return equation.params["length"] * sum(inner)
    if equation.primitive.name == "cond":  # one branch runs, and ours differ in layout only
        return max(inner, default=0)
    return sum(inner)


def _subprograms(params: dict[str, Any]) -> list[Any]:
    items = (item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,)))
    return [item for item in items if hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns")]
