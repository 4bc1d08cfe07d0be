"""The program of exporting.py as an ONNX file, by jax2onnx, compared with ours before it is kept.

Why jax2onnx, and not timm's module with our weights through PyTorch's exporter: it converts what runs here, whatever that
is (hybrids, relative positions, every head, the preprocessing of pictures of any size), and needs no PyTorch. Files of
PyTorch's exporter are as exact, and run twice as fast in onnxruntime (docs/serving.md); but they take pixels and give logits,
and there are none of models that timm does not have.

jax2onnx knows most of JAX's primitives, one at a time. `plain` puts the program in such words first: without loops over
blocks and without branches by platform, with everything computed that does not depend on the pictures, and with products in
the order of axes that become MatMul instead of the slower Einsum.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Array, Float

from vit_jax.api import Trained
from vit_jax.contracts import UserError, first_line
from vit_jax.exporting import Program, input_of, placed, program, told
from vit_jax.methods.building import assemble
from vit_jax.models.registry import pair
from vit_jax.ops.paths import flat_params

PROGRAM, NUMBERS = "model.onnx", "model.onnx.data"
OPSET = 21  # of ONNX 1.16 (2024); nothing later is needed
LARGEST = 2**31 - 2**24  # bytes in one file of protocol buffers; the numbers of larger models lie beside it
# What is written differs less from ours, relative to the largest number, or is not kept. It is a millionth where nothing is
# resized; in resizing a level of 255 may be rounded the other way.
CLOSE = 1e-2


def write(trained: Trained, out: Path, what: str = "answers") -> tuple[list[Path], float]:
    """Write `model.onnx` into the folder `out`, and say how far onnxruntime's answers to noise are from ours.

    It computes in float32 whatever the run did. What told() says is in the file's metadata.

    Raises:
      UserError: a model that gives no such answer or cannot be converted, missing packages, or a place that cannot be
        written.
    """
    trained = in_float32(trained)
    run = program(trained, what)
    for name in (
        "jax2onnx",
        "onnx_ir",
    ):  # they warn of examples that they leave out, and of every shape they need not know
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f'Expected the packages jax2onnx and onnxruntime ({first_line(error)}): pip install "vit_jax[onnx]".'
        ) from error
    taken = input_of(trained)
    with placed(out) as folder:
        try:
            model = jax2onnx.to_onnx(
                plain(run, taken), [taken], opset=OPSET, input_names=["pictures"], output_names=[what]
            )
        except (NotImplementedError, TypeError, ValueError) as error:
            raise UserError(
                f"Expected a model that jax2onnx can convert, this one has what it cannot: {first_line(error)}; export "
                "StableHLO (leave out --to)."
            ) from error
        for name, value in told(trained, what).items():
            model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
        large = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(trained.model))) > LARGEST
        onnx.save_model(model, folder / PROGRAM, save_as_external_data=large, location=NUMBERS)
        for path in folder.iterdir():
            path.chmod(0o644)  # onnx hides the numbers beside it from other users
        onnx.checker.check_model(folder / PROGRAM, full_check=True)
        session = onnxruntime.InferenceSession(folder / PROGRAM, providers=["CPUExecutionProvider"])
        difference = largest_difference(run, lambda pictures: session.run(None, {"pictures": pictures})[0], trained)
        if not difference < CLOSE:
            raise UserError(
                f"Expected the numbers of ours from onnxruntime to {CLOSE:g}, they differ by {difference:.1e}: nothing was "
                "kept; export StableHLO (leave out --to)."
            )
        written = sorted(path.name for path in folder.iterdir())
    return [out / name for name in written], difference


def in_float32(trained: Trained) -> Trained:
    """The same model computing in float32, for onnxruntime has no bfloat16 on CPUs, and without what is for training."""
    config = trained.config | {"compute_dtype": "float32", "attention": "xla", "remat": "none"}
    params = {path: np.asarray(leaf) for path, leaf in flat_params(nnx.split(trained.model)[1]).items()}
    return dataclasses.replace(trained, config=config, model=assemble(config, trained.encoder.cfg.num_classes, params))


def largest_difference(ours: Program, theirs: Callable[[np.ndarray], np.ndarray], trained: Trained) -> float:
    """Of their answers to two noisy pictures of the model's size, and to one that is resized; relative to the largest."""
    height, width = pair(trained.config["pp"]["crop"])
    rng, worst = np.random.default_rng(0), 0.0
    for size in ((2, height, width), (1, height + 9, 2 * width)):
        pictures = rng.integers(0, 256, (*size, trained.config["pp"]["channels"]), dtype=np.uint8)
        expected = np.asarray(jax.jit(ours)(pictures))
        worst = max(worst, float(np.abs(theirs(pictures) - expected).max() / np.abs(expected).max()))
    return worst


def plain(run: Program, taken: jax.ShapeDtypeStruct) -> Program:
    """The same function of the same input in primitives that jax2onnx turns into operators one by one."""
    with jax.disable_jit():  # a scan is then its steps one after the other
        traced = jax.make_jaxpr(run)(taken)
    # Traced before jax2onnx is at work, which has functions of its own in the place of jax.numpy's.
    rewritten = jax.make_jaxpr(lambda pictures: evaluated(traced, [pictures]))(taken)
    return lambda pictures: core.jaxpr_as_fun(rewritten)(pictures)[0]


def evaluated(program: core.ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """The outputs of a traced program; what does not depend on pictures is computed, all else traced again."""
    known = dict(zip((*program.jaxpr.constvars, *program.jaxpr.invars), (*program.consts, *args), strict=True))

    def value_of(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in program.jaxpr.eqns:
        values, name = [value_of(atom) for atom in equation.invars], equation.primitive.name
        compute = REWRITTEN.get(name, as_it_is)
        sizes = [size for variable in equation.outvars for size in variable.aval.shape]
        fixed = name != "dim_as_value" and all(isinstance(size, int) for size in sizes)
        if fixed and not any(isinstance(value, jax.core.Tracer) for value in values):
            with jax.ensure_compile_time_eval():
                found = compute(equation, *values)
        else:
            found = compute(equation, *values)
        known.update(zip(equation.outvars, found, strict=True))
    return [value_of(atom) for atom in program.jaxpr.outvars]


def as_it_is(equation: Any, *values: Any) -> Sequence[Any]:
    found = equation.primitive.bind(*values, **equation.params)
    return found if equation.primitive.multiple_results else [found]


def inlined(equation: Any, *values: Any) -> Sequence[Any]:
    """The function's own equations, without its derivative."""
    return evaluated(equation.params["call_jaxpr"], values)


def first_platform(equation: Any) -> Sequence[Any]:
    """Of lax.platform_dependent: the CPU's branch, which has products of two axes."""
    return [np.int32(0)]


def taken_branch(equation: Any, index: Any, *values: Any) -> Sequence[Any]:
    return evaluated(equation.params["branches"][int(index)], values)


def product(equation: Any, left: Array, right: Array) -> Sequence[Array]:
    """A batched product with its axes in the order of MatMul, and axes of one left out."""
    contracted, batch = equation.params["dimension_numbers"]
    parts = [
        [axis for axis, size in enumerate(operand.shape) if axis not in (*one, *other) and size != 1]
        for operand, one, other in zip((left, right), contracted, batch, strict=True)
    ]
    if not batch[0] or any(len(axes) != 1 for axes in (*parts, *contracted)):
        return as_it_is(equation, left, right)
    left = _ordered(left, (*batch[0], *parts[0], *contracted[0]))
    right = _ordered(right, (*batch[1], *contracted[1], *parts[1]))
    along = len(batch[0])
    numbers = (((along + 1,), (along,)), (tuple(range(along)),) * 2)
    out = equation.outvars[0].aval
    return [jax.lax.dot_general(left, right, numbers, preferred_element_type=out.dtype).reshape(out.shape)]


def _ordered(operand: Array, axes: Sequence[int]) -> Array:
    ones = [axis for axis in range(operand.ndim) if axis not in axes]
    return jax.lax.squeeze(jax.lax.transpose(operand, (*axes, *ones)), tuple(range(len(axes), operand.ndim)))


def largest_of_windows(equation: Any, operand: Float[Array, "..."]) -> Sequence[Array]:
    """Pooling as the largest of shifted slices: onnxruntime pools over three axes at most, JAX's windows have four."""
    params, sizes = equation.params, equation.outvars[0].aval.shape
    pooled_axes = [axis for axis, size in enumerate(params["window_dimensions"]) if size > 1]
    for axis in pooled_axes:
        around = operand.shape[:axis], operand.shape[axis + 1 :]
        before, after = (
            jnp.full((*around[0], size, *around[1]), -jnp.inf, operand.dtype) for size in params["padding"][axis]
        )
        operand = jnp.concatenate([before, operand, after], axis)
    found = None
    for corner in np.ndindex(*(params["window_dimensions"][axis] for axis in pooled_axes)):
        part = operand
        for axis, first in zip(pooled_axes, corner, strict=True):
            stride = params["window_strides"][axis]
            part = jax.lax.slice_in_dim(part, first, first + (sizes[axis] - 1) * stride + 1, stride, axis)
        found = part if found is None else jax.lax.max(found, part)
    assert found is not None
    return [found]


REWRITTEN: dict[str, Callable[..., Sequence[Any]]] = {
    "custom_jvp_call": inlined,
    "platform_index": first_platform,
    "cond": taken_branch,
    "dot_general": product,
    "reduce_window_max": largest_of_windows,
}
