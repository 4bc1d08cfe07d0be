"""Training step of ViT-B/16 and MAE-B/16 on this CPU: here and in `transformers` (PyTorch), side by side in one run.

    python benchmarks/training_step_cpu.py [--batch 16] [--rounds 5] [--dtypes float32 bfloat16]

PyTorch: eager, fused AdamW, `transformers`' ViTForImageClassification and ViTMAEForPreTraining, the same batch. Each side
runs in a process of its own, whose memory stays mapped between steps in huge pages (`ALLOCATOR`: as with a pool allocator);
the rounds of the two, and jax's 4096 x 4096 matrix product, alternate, so a machine whose speed drifts slows both.
Printed: medians, as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

MODELS = ("vit", "mae")
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
}


def ours(name: str, batch: int, dtype: str):
    """() -> seconds of one step, and FLOPs of the step."""
    import jax
    import numpy as np

    from vit_jax import configuration, sharding
    from vit_jax.contracts import Batch
    from vit_jax.training.flops import count_flops
    from vit_jax.training.objectives import make_objective
    from vit_jax.training.schedules import make_schedule
    from vit_jax.training.step import make_program

    config = configuration.load("mae.py:b16")
    if name == "vit":
        config.objective = "classify"
        config.model = configuration.model_config("ViT-B_16")
        config.model.activation = "gelu_erf"  # as the other side
    config.update({"batch": batch, "compute_dtype": dtype, "total_steps": 1000, "total_epochs": None})
    config.update({"warmup_steps": 0, "warmup_epochs": None, "remat": "none", "unroll": 12})
    mesh = sharding.make_mesh({"data": 1})
    objective = make_objective(config, 1000)
    program = make_program(config, objective, make_schedule(config, 1000, 0), 1000, mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    host = Batch(images, np.zeros(batch, np.int32), np.ones(batch, np.float32))
    on_device, seed = sharding.put(host, mesh), np.int32(0)
    held = [program.init(seed)]
    flops = count_flops(program.step, program.abstract, on_device, seed)

    def step() -> float:
        began = time.perf_counter()
        held[0], report = program.step(held[0], on_device, seed)
        jax.block_until_ready((held[0], report))
        return time.perf_counter() - began

    return step, flops


def theirs(name: str, batch: int, dtype: str):
    """The same for PyTorch."""
    import torch
    import transformers

    if name == "vit":
        config = transformers.ViTConfig(num_labels=1000, attn_implementation="eager")
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ViTMAEConfig(norm_pix_loss=True, attn_implementation="eager")
        model = transformers.ViTMAEForPreTraining(config)
    model = model.to(getattr(torch, dtype)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randn(batch, 3, 224, 224, dtype=getattr(torch, dtype))
    given = {"labels": torch.zeros(batch, dtype=torch.long)} if name == "vit" else {}

    def step() -> float:
        began = time.perf_counter()
        model(pixels, **given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    return step, 0


def matrix_product(dtype: str) -> float:
    """FLOP/s of jax's matrix product now."""
    from vit_jax.commands.bench import matrix_product_rate

    return matrix_product_rate(dtype, repeats=2)


def serve(side: str, name: str, batch: int, dtype: str) -> None:
    """Answer every line of standard input with one timed step."""
    step, flops = (ours if side == "ours" else theirs)(name, batch, dtype)
    for _ in range(2):
        step()
    print(json.dumps({"flops": flops}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"seconds": step(), "rate": matrix_product(dtype) if side == "ours" else 0}), flush=True)


def compare(name: str, batch: int, dtype: str, rounds: int) -> str:
    """One line of the table."""
    sides = {
        side: subprocess.Popen([sys.executable, __file__, "--serve", side, name, str(batch), dtype],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ALLOCATOR)
        for side in ("ours", "theirs")
    }  # fmt: skip
    flops, times, rates = 0, {side: [] for side in sides}, []
    for process in sides.values():
        flops = max(flops, json.loads(process.stdout.readline())["flops"])
    for _ in range(rounds):
        for side, process in sides.items():
            process.stdin.write("\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            times[side].append(answer["seconds"])
            if side == "ours":
                rates.append(answer["rate"])
    for process in sides.values():
        process.stdin.close()
        process.wait()
    here, there, rate = (statistics.median(values) for values in (times["ours"], times["theirs"], rates))
    share = statistics.median(flops / t / r for t, r in zip(times["ours"], rates, strict=True))
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"], strict=True))
    return (
        f"| {name} | {dtype} | {batch} | {here:.2f} | {batch / here:.2f} | {there:.2f} | {batch / there:.2f} "
        f"| {ratio:.2f} | {flops / here / 1e9:.0f} | {rate / 1e9:.0f} | {share:.0%} |"
    )


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    print("| step | dtype | batch | s here | img/s here | s PyTorch | img/s PyTorch | times PyTorch | GFLOP/s here "
          "| GFLOP/s matrix product | share |")  # fmt: skip
    print("|---" * 11 + "|")
    for dtype in args.dtypes:
        for name in MODELS:
            print(compare(name, args.batch, dtype, args.rounds), flush=True)


if __name__ == "__main__":
    main()
