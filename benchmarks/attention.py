"""Attention alone, forward and backward, for the shapes of the published models: XLA's, cuDNN's, and with padded tokens.

    python benchmarks/attention.py                                   # a GPU, bfloat16
    python benchmarks/attention.py --batch 2 --dtype float32         # a CPU: XLA's only

Answers two questions for a device: whether `config.attention=cudnn` pays, and whether 197 or 257 tokens should be padded.
Padded sides pad, mask the added keys, and cut the result, all inside the time. The variants of one shape alternate;
printed are medians, as a Markdown table for docs/performance.md.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax

from vit_jax.models.attention import padded_attention
from vit_jax.models.layers import MULTIPLE_OF_TOKENS

# name: (tokens, heads, width of a head)
SHAPES = {
    "ViT-B/16": (197, 12, 64), "ViT-L/16": (197, 16, 64), "ViT-H/14": (257, 16, 80),
    "MAE-L/16 encoder": (50, 16, 64), "MAE decoder": (197, 16, 32),
}  # fmt: skip
MULTIPLES = (8, 64, 128)  # tokens are padded up to a multiple, beside the least that the kernel takes


def timed_step(implementation: str, multiple: int, calls: int) -> Callable[..., jax.Array]:
    """Forward and backward, `calls` times in one program, so that starting it does not count."""
    attend = functools.partial(padded_attention, implementation=implementation, multiple=multiple)

    @jax.jit
    def step(qkv: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def once(_: int, qkv: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            out, backward = jax.vjp(attend, *qkv)
            return backward(out)

        return jax.lax.fori_loop(0, calls, once, qkv)

    return step


def milliseconds(sides: dict[str, Callable], qkv: tuple[jax.Array, ...], rounds: int, calls: int) -> dict[str, float]:
    """Medians for one call."""
    for step in sides.values():
        jax.block_until_ready(step(qkv))
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            began = time.perf_counter()
            jax.block_until_ready(step(qkv))
            times[name].append(1000 * (time.perf_counter() - began) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=8, help="within one program")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    device = jax.devices()[0]
    fused = device.platform == "gpu" and args.dtype in ("bfloat16", "float16")
    names = {
        f"{implementation}, multiple of {multiple}": (implementation, multiple)
        for implementation in (("xla", "cudnn") if fused else ("xla",))
        for multiple in (MULTIPLE_OF_TOKENS[implementation], *MULTIPLES)
    }
    print(f"{device.device_kind}, jax {jax.__version__}, {args.dtype}, batch {args.batch}; milliseconds\n")
    print(f"| shape | tokens | {' | '.join(names)} |")
    print("|---" * (2 + len(names)) + "|")
    for shape, (tokens, heads, width) in SHAPES.items():
        keys = jax.random.split(jax.random.key(0), 3)
        qkv = tuple(jax.random.normal(key, (args.batch, tokens, heads, width), args.dtype) for key in keys)
        sides = {name: timed_step(i, multiple, args.calls) for name, (i, multiple) in names.items()}
        found = milliseconds(sides, qkv, args.rounds, args.calls)
        print(f"| {shape} | {tokens} | {' | '.join(f'{found[name]:.2f}' for name in names)} |", flush=True)


if __name__ == "__main__":
    main()
