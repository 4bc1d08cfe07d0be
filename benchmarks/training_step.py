"""Training steps here, in timm and in `transformers`, side by side in one run on the device that is there.

    python benchmarks/training_step.py                         # a GPU: batches of 256, bfloat16, torch.compile
    python benchmarks/training_step.py --models vit_b16 mae_b16 --batch 16 --dtypes float32 --alternate  # a CPU
    python benchmarks/training_step.py --models mae_l16 mae_l16_all --sides here      # what dropping hidden patches saves

PyTorch: scaled-dot-product attention, fused AdamW, float32 parameters under autocast for bfloat16 (as here), torch.compile
unless --eager. timm has no MAE. `mae_*_all` hides nothing from the encoder (195 of 196 patches; the paper's "encoder with
mask tokens" costs the same). Each side runs in a process of its own, with the device's memory to itself; with --alternate
all are in memory and their rounds alternate, so a machine whose speed drifts slows all. JAX's matrix product is measured
between its rounds. Printed: medians, as a Markdown table, after a line with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

# name: (size, patch, masked autoencoder?)
MODELS = {
    "vit_b16": ("base", 16, False), "vit_l16": ("large", 16, False), "vit_h14": ("huge", 14, False),
    "mae_b16": ("base", 16, True), "mae_l16": ("large", 16, True), "mae_l16_all": ("large", 16, True),
}  # fmt: skip
DEFAULT = [name for name in MODELS if not name.endswith("_all")]
WIDTHS = {"base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16)}  # width, layers, heads
SIDES = ("here", "timm", "transformers")
# On a CPU memory stays mapped between steps, in huge pages, on all sides alike: as with a pool allocator.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(10**11),
}


def here(name: str, batch: int, dtype: str, settings: list[str]):
    """() -> seconds of one step, and FLOPs of the step."""
    import jax
    import numpy as np

    from vit_jax import command_line, configuration, sharding
    from vit_jax.contracts import Batch
    from vit_jax.methods import method_of
    from vit_jax.training.flops import count_flops
    from vit_jax.training.schedules import make_schedule
    from vit_jax.training.step import make_program

    size, patch, masked = MODELS[name]
    config = configuration.load(f"mae.py:{size[0]}{patch}")
    if not masked:
        config.objective = "classify"
        config.model = configuration.model_config(f"ViT-{size[0].upper()}_{patch}")
        config.model.transformer.dropout_rate = 0.0
        config.model.activation = "gelu_erf"  # as the other sides
    if name.endswith("_all"):
        config.mae.num_visible = 195
    config.update({"batch": batch, "compute_dtype": dtype, "total_steps": 1000, "total_epochs": None})
    config.update({"warmup_steps": 0, "warmup_epochs": None, "remat": "none", "topology": ""})
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1})
    on_gpu = jax.devices()[0].platform == "gpu"
    config.update({"unroll": WIDTHS[size][1], "attention": "cudnn" if on_gpu and dtype == "bfloat16" else "xla"})
    for field, text in map(command_line.assignment, settings):
        config.update_from_flattened_dict({field: command_line.value_of(field, text)})
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    objective = method_of(config).objective(config, 1000)
    program = make_program(config, objective, make_schedule(config, 1000, 0), None if masked else 1000, mesh)
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
    on_device = sharding.put(Batch(images, np.zeros(batch, np.int32), np.ones(batch, np.float32)), mesh)
    seed = np.int32(0)
    held = [program.init(seed)]
    flops = count_flops(program.step, program.abstract, on_device, seed)

    def step() -> float:
        began = time.perf_counter()
        held[0], report = program.step(held[0], on_device, seed)
        jax.block_until_ready((held[0], report))
        return time.perf_counter() - began

    return step, flops


def in_pytorch(side: str, name: str, batch: int, dtype: str, compiled: bool):
    """The same for PyTorch."""
    import torch

    size, patch, masked = MODELS[name]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = (timm_model if side == "timm" else transformers_model)(size, patch, masked).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def loss_of(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if side == "timm":
            return torch.nn.functional.cross_entropy(model(pixels), labels)
        return model(pixels, **({} if masked else {"labels": labels})).loss

    if compiled:
        loss_of = torch.compile(loss_of)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(pixels, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step, 0


def timm_model(size: str, patch: int, masked: bool):
    """timm's ViT; fused attention is its default."""
    if masked:
        raise ImportError("timm has no MAE")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.timm_twins import load_timm  # works without torchvision, too

    timm = load_timm()
    if timm is None:
        raise ImportError("timm is not installed")
    return timm.create_model(f"vit_{size}_patch{patch}_224", num_classes=1000)


def transformers_model(size: str, patch: int, masked: bool):
    """ViTForImageClassification or ViTMAEForPreTraining."""
    import transformers

    width, layers, heads = WIDTHS[size]
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch,
              "intermediate_size": 4 * width, "attn_implementation": "sdpa"}  # fmt: skip
    if masked:
        return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(norm_pix_loss=True, **fields))
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000, **fields))


def serve(side: str, name: str, batch: int, dtype: str, eager: str, *settings: str) -> None:
    """Answer every line of standard input with one timed step, and the matrix product's FLOP/s now."""
    from vit_jax.commands.bench import matrix_product_rate

    try:
        made = (
            here(name, batch, dtype, list(settings))
            if side == "here"
            else in_pytorch(side, name, batch, dtype, not eager)
        )
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    step, flops = made
    for _ in range(3):
        step()
    print(json.dumps({"flops": flops}), flush=True)
    for _ in sys.stdin:
        rate = matrix_product_rate(dtype, repeats=2) if side == "here" else 0
        print(json.dumps({"seconds": step(), "rate": rate}), flush=True)


class Side:
    """One process that takes steps when asked."""

    def __init__(self, side: str, name: str, args: argparse.Namespace, dtype: str):
        self.name = f"{name}, {side}"
        command = [side, name, str(args.batch), dtype, "eager" if args.eager else "", *args.set]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=ALLOCATOR | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,
        )  # fmt: skip
        self.first = self._answer()
        self.times: list[float] = []
        self.rates: list[float] = []

    def _answer(self) -> dict:
        answer = json.loads(self.process.stdout.readline() or '{"missing": "it ended, see above"}')
        if "missing" in answer:
            print(f"{self.name}: {answer['missing']}", file=sys.stderr)
        return answer

    def step(self) -> None:
        if "missing" in self.first:
            return
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "missing" in answer:
            self.first |= answer
        else:
            self.times.append(answer["seconds"])
            self.rates.append(answer["rate"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(name: str, dtype: str, args: argparse.Namespace) -> str:
    """One line of the table."""
    sides = {}
    for together in [args.sides] if args.alternate else [[side] for side in args.sides]:
        running = {side: Side(side, name, args, dtype) for side in together}
        for _ in range(args.rounds):
            for held in running.values():
                held.step()
        for held in running.values():
            held.close()
        sides |= running
    medians = {side: statistics.median(held.times) for side, held in sides.items() if held.times}
    cells = [f"{args.batch / medians[side]:.2f}" if side in medians else "-" for side in SIDES]
    others = [seconds for side, seconds in medians.items() if side != "here"]
    ratio = f"{min(others) / medians['here']:.2f}" if others and "here" in medians else "-"
    share = "-"
    if "here" in medians:
        flops, rate = sides["here"].first["flops"], statistics.median(sides["here"].rates)
        share = f"{flops / medians['here'] / rate:.0%} of {rate / 1e12:.3g}"
    return f"| {name} | {dtype} | {args.batch} | {' | '.join(cells)} | {ratio} | {share} |"


def machine() -> str:
    """Device, cores and versions."""
    import jax

    names = ("jax", "flax", "torch", "timm", "transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), *sys.argv[5:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=DEFAULT, choices=MODELS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--eager", action="store_true", help="no torch.compile")
    parser.add_argument("--alternate", action="store_true", help="all sides in memory, their rounds in turn")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of the config here")
    args = parser.parse_args()
    print(machine())
    print("\nPictures a second; the share is of the matrix product measured in the same run, TFLOP/s.\n")
    print("| step | dtype | batch | here | timm | transformers | times the faster | share of the matrix product |")
    print("|---" * 8 + "|")
    for dtype in args.dtypes:
        for name in args.models:
            print(compare(name, dtype, args), flush=True)


if __name__ == "__main__":
    main()
