"""`vit-jax bench --config=FILE:ARG`: one training step and the input pipeline of any config, timed on this machine."""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import sharding
from vit_jax.commands.arguments import Parser, add_config, parse_with_config, whole
from vit_jax.contracts import Batch, Config
from vit_jax.data.labels import labels_of
from vit_jax.data.loader import train_batches, useful_threads
from vit_jax.data.sources import open_source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import make_mesh
from vit_jax.frozen import planned
from vit_jax.methods import method_of
from vit_jax.methods.method import Networks
from vit_jax.models.registry import count_params
from vit_jax.planning.chips import chip_of
from vit_jax.training.flops import count_flops
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import abstract_batch, make_program


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax bench", description=__doc__)
    add_config(parser)
    parser.add_argument("--num-classes", type=whole(1, 10_000_000), default=1000, help="of a classifier (default 1000)")
    parser.add_argument("--steps", type=whole(1, 1_000_000), default=10, help="to time (default 10)")
    parser.add_argument("--data", action="store_true", help="time the input pipeline instead, on config.dataset")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args, config = parse_with_config(parser, argv)
    found = bench_data(config, args.steps) if args.data else bench_step(config, args.num_classes, args.steps)
    if args.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:28s} {value}" for name, value in found.items()))
    return 0


def bench_step(config: Config, num_classes: int, steps: int) -> dict[str, Any]:
    """Milliseconds, pictures a second, compile seconds, memory and FLOPs of the training step, on made-up pictures."""
    mesh = make_mesh(config)
    method = method_of(config)
    classes = num_classes if method.labels else None
    objective, schedule = method.objective(config, classes), make_schedule(config, 1000, 10)
    program = make_program(config, objective, schedule, classes, mesh, zeros(planned(config)))
    seed = np.int32(config["seed"])
    batch, state = sharding.put(made_up(config, classes), mesh), program.init(seed)
    began = time.perf_counter()
    compiled = program.step.lower(state, batch, seed, *program.frozen).compile()
    compile_seconds = time.perf_counter() - began
    flops = count_flops(program.step, program.abstract, batch, seed, *program.frozen)
    times = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, report = compiled(state, batch, seed, *program.frozen)
        jax.block_until_ready((state, report))
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[2:])
    peak, origin = device_peak(config["compute_dtype"])
    memory = compiled.memory_analysis()
    devices = mesh.devices.size
    return {
        "parameters": count_params(state.params),
        "batch": config["batch"],
        "milliseconds a step": round(1000 * seconds, 2),
        "images a second": round(config["batch"] / seconds, 2),
        "compile seconds": round(compile_seconds, 2),
        "peak memory GiB a device": round(_peak_memory(memory, mesh) / 2**30, 3),
        "GFLOP a step": round(flops / 1e9, 2),
        "TFLOP/s a device": round(flops / seconds / devices / 1e12, 3),
        "share of device peak": round(flops / seconds / devices / peak, 3),
        "device peak": f"{peak / 1e12:.3g} TFLOP/s, {origin}",
    }


def made_up(config: Config, num_classes: int | None) -> Batch:
    """A batch of noise, with classes drawn at random."""
    rng, like = np.random.default_rng(0), abstract_batch(config, num_classes)

    def pictures(shape: Any) -> Any:
        return None if shape is None else rng.integers(0, 256, shape.shape, dtype=np.uint8)

    labels: Any = np.zeros(like.label.shape, like.label.dtype)
    if num_classes is not None and labels.ndim == 1:
        labels = rng.integers(0, num_classes, labels.shape, dtype=np.int32)
    return Batch(pictures(like.image), labels, np.ones(len(labels), np.float32), pictures(like.second))


def zeros(networks: Networks) -> Networks:
    """Parameters for shapes: a product takes its time whatever the numbers."""
    filled = {
        name: network._replace(params=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.params))
        for name, network in networks.items()
    }
    return Networks(filled)


def _peak_memory(analysis: Any, mesh: Any) -> int:
    stats = mesh.devices.reshape(-1)[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return analysis.argument_size_in_bytes + analysis.temp_size_in_bytes


def device_peak(dtype: str) -> tuple[float, str]:
    """FLOP/s of one device: its data sheet's for bfloat16 accelerators, else of a matrix product timed now."""
    chip = chip_of(jax.devices()[0])
    if chip and dtype == "bfloat16":
        return chip.flops, f"data sheet of {chip.name}"
    return matrix_product_rate(dtype), f"a 4096 x 4096 {dtype} matrix product measured here"


def matrix_product_rate(dtype: str, size: int = 4096, repeats: int = 5) -> float:
    """FLOP/s of jax's own matrix product, median of `repeats`."""
    square = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        multiply(square, square).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times)


def bench_data(config: Config, steps: int) -> dict[str, Any]:
    """Pictures a second of the input pipeline alone."""
    source = open_source(
        config["dataset"], config["pp"]["train"], tfds_data_dir=config["tfds_data_dir"], seed=config["seed"],
        labels=labels_of(config) if method_of(config).labels else None,
    )  # fmt: skip
    batches = train_batches(
        source, Preprocess.from_config(config["pp"]), batch=config["batch"], seed=config["seed"],
        num_workers=config["num_workers"], num_threads=config["num_threads"], prefetch=config["prefetch"],
    )  # fmt: skip
    next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    seconds = time.perf_counter() - began
    return {
        "data set": f"{source.name}, {len(source)} pictures",
        "batch": config["batch"],
        "workers, threads": f"{config['num_workers']}, {config['num_threads'] or useful_threads(source)}",
        "images a second": round(steps * config["batch"] / seconds, 1),
    }
