"""Pictures a second of the input pipeline, beside Pillow alone, PyTorch's DataLoader and tf.data, in alternating rounds.

    python benchmarks/input_pipeline.py FOLDER [--rounds 5] [--batch 64]

All decode JPEG, take a random-resized crop to 224 with antialiased bicubic, and flip; all but the first shuffle and batch.
FOLDER: any folder of pictures. torch and tensorflow are measured where they are installed. Printed: medians.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vit_jax import configuration
from vit_jax.data.loader import train_batches, useful_threads
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import Preprocess, random_resized_box


def crop_and_flip(data: bytes, number: int) -> np.ndarray:
    """Pillow's way."""
    rng = np.random.default_rng(number)
    picture = Image.open(io.BytesIO(data))
    box = random_resized_box(picture.size, (0.2, 1.0), (3 / 4, 4 / 3), rng)
    picture = picture.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)
    return np.array(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if number % 2 else picture)


def rate_of(batches: Iterator[object], count: int, batch: int) -> float:
    """Pictures a second after the first batch."""
    next(batches)
    began = time.perf_counter()
    steps = max(1, count // batch)
    for _ in range(steps):
        next(batches)
    return steps * batch / (time.perf_counter() - began)


def pillow_rate(encoded: list[bytes], threads: int) -> float:
    """Pillow alone, on bytes in memory."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(crop_and_flip, encoded, range(len(encoded)), chunksize=16):
            pass
    return len(encoded) / (time.perf_counter() - began)


def pipeline_rate(folder: str, count: int, batch: int, num_workers: int) -> float:
    """The library's own, `count` pictures after the first batch."""
    config = configuration.load("mae.py:b16")
    source = open_source(folder, "train")
    batches = train_batches(
        source, Preprocess.from_config(config.pp), batch=batch, seed=0, num_workers=num_workers, prefetch=2
    )
    return rate_of(batches, count, batch)


def dataloader_rate(encoded: list[bytes], count: int, batch: int, workers: int) -> float:
    """PyTorch's DataLoader, worker processes, Pillow inside (as torchvision's transforms on Pillow images)."""
    import torch

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return count + batch * workers

        def __getitem__(self, number: int) -> torch.Tensor:
            return torch.from_numpy(crop_and_flip(encoded[number % len(encoded)], number))

    loader = torch.utils.data.DataLoader(
        Pictures(), batch, shuffle=True, num_workers=workers, prefetch_factor=2, drop_last=True
    )
    return rate_of(iter(loader), count, batch)


def tf_data_rate(encoded: list[bytes], count: int, batch: int) -> float:
    """tf.data: decode_and_crop_jpeg, antialiased bicubic resize, flip."""
    import tensorflow as tf

    def view(data: tf.Tensor) -> tf.Tensor:
        shape = tf.image.extract_jpeg_shape(data)
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, whole, min_object_covered=0.0, area_range=(0.2, 1.0), aspect_ratio_range=(3 / 4, 4 / 3)
        )
        box = tf.stack([begin[0], begin[1], size[0], size[1]])
        picture = tf.image.decode_and_crop_jpeg(data, box, channels=3)
        picture = tf.image.resize(picture, (224, 224), "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.image.random_flip_left_right(picture), 0, 255), tf.uint8)

    pictures = tf.data.Dataset.from_tensor_slices(encoded).shuffle(len(encoded)).repeat()
    batches = pictures.map(view, tf.data.AUTOTUNE).batch(batch).prefetch(tf.data.AUTOTUNE)
    return rate_of(batches.as_numpy_iterator(), count, batch)


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
    if importlib.util.find_spec("torch"):
        sides[f"DataLoader, {threads} worker processes"] = lambda: dataloader_rate(encoded, 1500, args.batch, threads)
    if importlib.util.find_spec("tensorflow"):
        sides["tf.data, autotuned threads"] = lambda: tf_data_rate(encoded, 1500, args.batch)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, measure in sides.items():
            rates[name].append(measure())
    for name, values in rates.items():
        print(f"{name:34s} median {statistics.median(values):7.0f} images/s   ({min(values):.0f} .. {max(values):.0f})")


if __name__ == "__main__":
    main()
