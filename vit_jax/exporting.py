"""A model with its weights and its preprocessing as one program: StableHLO by `jax.export`, which JAX alone runs, or ONNX.

Pictures of any one size go in as bytes of colours, probabilities or features come out; the number of pictures is free. One
file of StableHLO serves CPUs, NVIDIA GPUs and TPUs. The ONNX half is onnx_exporting.py.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jaxtyping import Array, Float, UInt8

from vit_jax import derived
from vit_jax.api import Trained
from vit_jax.contracts import UserError
from vit_jax.evaluation.features import pooled
from vit_jax.methods import method_of
from vit_jax.models.registry import pair
from vit_jax.ops.pixels import normalise

PROGRAM, TOLD = "model.stablehlo", "model.json"
PLATFORMS = ("cpu", "cuda", "tpu")
METHODS = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}
WAYS = ("answers", "features")
Program = Callable[[UInt8[Array, "b H W c"]], Float[Array, "b o"]]


def seen(pictures: UInt8[Array, "b H W c"], pp: Any) -> UInt8[Array, "b H2 W2 c"]:
    """Evaluation's view of pictures of any size, as data/transforms.py makes it with Pillow (its sums are in whole numbers:
    seldom a level of 255 apart)."""
    height, width = pair(pp["crop"])
    rows, columns = (jnp.asarray(side, jnp.float32) for side in pictures.shape[1:3])
    if (short := derived.resize(pp)) is None:
        sizes, offsets = (jnp.float32(height), jnp.float32(width)), (jnp.float32(0), jnp.float32(0))
    else:
        least = jnp.stack([short / jnp.minimum(rows, columns), height / rows, width / columns])
        scale = jnp.max(least)
        sizes = (
            jnp.maximum(jnp.round(rows * scale), height),
            jnp.maximum(jnp.round(columns * scale), width),
        )
        offsets = (jnp.round((sizes[0] - height) / 2), jnp.round((sizes[1] - width) / 2))
    # As Pillow has it: along the rows, rounded to whole levels, then along the columns.
    method, (batch, tall, _, channels) = METHODS[pp["interpolation"]], pictures.shape
    across = _along(pictures, 2, (batch, tall, width, channels), sizes[1] / columns, offsets[1], method)
    return _along(across, 1, (batch, height, width, channels), sizes[0] / rows, offsets[0], method)


def _along(
    pictures: UInt8[Array, "b H W c"], axis: int, shape: Any, scale: Array, offset: Array, method: str
) -> UInt8[Array, "b H2 W2 c"]:
    resized = jax.image.scale_and_translate(
        pictures.astype(jnp.float32), shape, (axis,), scale[None], -offset[None], method
    )
    return jnp.clip(jnp.floor(resized + 0.5), 0, 255).astype(jnp.uint8)  # halves upwards, as there


def program(trained: Trained, what: str = "answers") -> Program:
    """Pictures of any size -> probabilities (numbers, in a regression), or pooled features.

    Raises:
      UserError: a model that gives neither.
    """
    config, method = trained.config, method_of(trained.config)
    if what not in WAYS:
        raise UserError(f"Expected {' or '.join(WAYS)} to export, got {what!r}.")
    pp, encoder, answers = config["pp"], trained.encoder, method.answers
    if what == "answers" and (answers is None or not encoder.cfg.num_classes):
        raise UserError(
            f"Expected a model with answers to export, this {type(trained.model).__name__} has no head that learned from "
            "labels: export its features (--features), or fine-tune it with config.init_from."
        )
    graph, params = nnx.split(trained.model if what == "answers" else encoder)

    def run(pictures: UInt8[Array, "b H W c"]) -> Float[Array, "b o"]:
        model, pixels = nnx.merge(graph, params), normalise(seen(pictures, pp), pp["mean"], pp["std"])
        if what == "answers":
            assert answers is not None
            return answers(model(pixels).astype(jnp.float32), config)
        return pooled(model, model.features(pixels), "mean")

    return run


def input_of(trained: Trained) -> jax.ShapeDtypeStruct:
    """What a program takes: any number of pictures of any one height and width."""
    return jax.ShapeDtypeStruct(export.symbolic_shape(f"b, h, w, {trained.config['pp']['channels']}"), jnp.uint8)


def told(trained: Trained, what: str) -> dict[str, Any]:
    """What a program cannot say of itself."""
    task = trained.config["task"]
    probabilities = {"classes": "probabilities of one class", "multilabel": "probabilities of each class"}
    return {
        "input": "pictures, uint8 (number, height, width, channels)",
        "output": probabilities.get(task, "numbers") if what == "answers" else "pooled features",
        "names": list(trained.class_names) if what == "answers" and trained.class_names else None,
        "channels": trained.config["pp"]["channels"],
        "size": list(pair(trained.config["pp"]["crop"])),
        "step": trained.step,
        "jax": jax.__version__,
    }


def write(trained: Trained, out: Path, what: str = "answers") -> list[Path]:
    """Write the program and what it means into the folder `out`; they open as docs/serving.md says.

    Raises:
      UserError: a model that gives no such answer, a missing package, or a place that cannot be written.
    """
    run = program(trained, what)
    try:
        import flatbuffers  # noqa: F401  # jax.export writes with it
    except ImportError as error:
        raise UserError(
            'Expected the package flatbuffers, which jax.export needs: pip install "vit_jax[export]".'
        ) from error
    with placed(out) as folder:
        exported = export.export(jax.jit(run), platforms=PLATFORMS)(input_of(trained))
        (folder / PROGRAM).write_bytes(exported.serialize())
        (folder / TOLD).write_text(json.dumps(told(trained, what), indent=2) + "\n")
    return [out / PROGRAM, out / TOLD]


@contextlib.contextmanager
def placed(out: Path) -> Iterator[Path]:
    """A folder whose files go to `out` when all of them are whole; older ones of their names are replaced."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as folder:
            yield Path(folder)
            for path in Path(folder).iterdir():
                path.replace(out / path.name)
    except OSError as error:
        raise UserError(
            f"Expected a folder to write to, {out} cannot be written ({error.strerror}): give another."
        ) from error
