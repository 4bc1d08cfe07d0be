"""Pictures a second of the input pipeline, beside Pillow alone on as many threads, in alternating rounds.

    python benchmarks/input_pipeline.py FOLDER [--rounds 5] [--batch 64]

Both decode JPEG, take a random-resized crop to 224 with antialiased bicubic, and flip; the pipeline also shuffles and
batches. FOLDER: any folder of pictures. Printed: medians.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax import configuration
from vit_jax.data.loader import train_batches, useful_threads
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import Preprocess, random_resized_box


def pillow_rate(encoded: list[bytes], threads: int) -> float:
    """Pillow alone, on bytes in memory."""

    def one(number: int) -> np.ndarray:
        rng = np.random.default_rng(number)
        picture = Image.open(io.BytesIO(encoded[number]))
        box = random_resized_box(picture.size, (0.2, 1.0), (3 / 4, 4 / 3), rng)
        picture = picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)
        return np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else picture)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, range(len(encoded)), chunksize=16):
            pass
    return len(encoded) / (time.perf_counter() - began)


def pipeline_rate(folder: str, count: int, batch: int, num_workers: int) -> float:
    """The library's own, `count` pictures after the first batch."""
    config = configuration.load("mae.py:b16")
    source = open_source(folder, "train")
    batches = train_batches(
        source, Preprocess.from_config(config.pp), batch=batch, seed=0, num_workers=num_workers, prefetch=2
    )
    next(batches)
    began = time.perf_counter()
    steps = max(1, count // batch)
    for _ in range(steps):
        next(batches)
    return steps * batch / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    source = open_source(args.folder, "train")
    encoded = [source[index].image for index in range(min(len(source), 1000))]
    assert all(isinstance(data, bytes) for data in encoded), f"{Path(args.folder)} holds no encoded pictures"
    threads = useful_threads(source)
    sides = {
        f"Pillow alone, {threads} threads": lambda: pillow_rate(encoded, threads),
        f"pipeline, {threads} threads": lambda: pipeline_rate(args.folder, 1500, args.batch, 0),
        f"pipeline, {threads} worker processes": lambda: pipeline_rate(args.folder, 1500, args.batch, threads),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, measure in sides.items():
            rates[name].append(measure())
    for name, values in rates.items():
        print(f"{name:34s} median {statistics.median(values):7.0f} images/s   ({min(values):.0f} .. {max(values):.0f})")


if __name__ == "__main__":
    main()
