"""Milliseconds a call of an exported model, beside the library's own: StableHLO run by JAX, ONNX by onnxruntime.

    python benchmarks/serving.py [--models ViT-Ti_16 ViT-B_16] [--batches 1 8] [--rounds 15]

Random weights, pictures of the model's own size, bytes in and probabilities out. The three take turns, so that what else the
machine does meets all of them; medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import onnxruntime
from flax import nnx
from jax import export

from vit_jax import configuration, exporting, onnx_exporting
from vit_jax.api import Trained
from vit_jax.methods.building import build

CLASSES, SIZE = 1000, 224


def random_model(name: str) -> Trained:
    """A classifier of ImageNet's size that learned nothing."""
    config = configuration.default_fields()
    config.model = configuration.model_config(name)
    config.model.head_std, config.pp.crop, config.compute_dtype = 0.02, SIZE, "float32"
    return Trained(build(config, CLASSES), configuration.plain(config), None, 0)


def ways(trained: Trained, folder: Path) -> dict[str, Callable[[np.ndarray], object]]:
    """Pictures to probabilities, three times the same."""
    exporting.write(trained, folder)
    onnx_exporting.write(trained, folder)
    answer = nnx.jit(lambda model, pixels: jax.nn.softmax(model(pixels)))
    program = export.deserialize(bytearray((folder / exporting.PROGRAM).read_bytes()))
    session = onnxruntime.InferenceSession(folder / onnx_exporting.PROGRAM, providers=["CPUExecutionProvider"])
    return {
        "library": lambda pictures: np.asarray(answer(trained.model, trained.normalised(pictures))),
        "StableHLO": lambda pictures: np.asarray(program.call(pictures)),
        "ONNX": lambda pictures: session.run(None, {"pictures": pictures})[0],
    }


def milliseconds(call: Callable[[np.ndarray], object], pictures: np.ndarray) -> float:
    start = time.perf_counter()
    call(pictures)
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-Ti_16", "ViT-B_16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print("| model | batch | library ms | StableHLO ms | ONNX ms |\n|---|---|---|---|---|")
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            calls = ways(random_model(name), Path(folder))
            for batch in args.batches:
                pictures = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
                for call in calls.values():
                    call(pictures)
                rounds = [[milliseconds(call, pictures) for call in calls.values()] for _ in range(args.rounds)]
                medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
                print(f"| {name} | {batch} | {' | '.join(f'{median:.1f}' for median in medians)} |", flush=True)


if __name__ == "__main__":
    main()
