"""Cycles of a training step on one TPU v5e by its compiler's own estimate. Nothing runs, and no TPU is needed.

    pip install -e ".[tpu]"
    python benchmarks/tpu_cycles.py                                  # all of them, about a minute each on two cores
    python benchmarks/tpu_cycles.py --steps vit_b16 --remat dots     # one

A loop of a minute for tuning a step: change the model, run this, see whether the compiler schedules fewer cycles, and with
`vit-jax plan --profile` in which part. Recipes without mixup, whose random draws are no part of the model. Printed as a
Markdown table for docs/performance.md.
"""

from __future__ import annotations

import argparse
import os

# name: (recipe, pictures a step)
STEPS = {
    "vit_b16": ("vit_scratch.py:b16", 64),
    "vit_l16": ("vit_scratch.py:l16", 32),
    "vit_h14": ("vit_scratch.py:h14", 16),
    "mae_b16": ("mae.py:b16", 128),
    "mae_l16": ("mae.py:l16", 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--remat", nargs="+", choices=("none", "dots", "full"), default=["dots", "full"])
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing runs, and a TPU that is here stays free

    import jax

    from vit_jax import configuration
    from vit_jax.planning.chips import chip_of, slice_devices
    from vit_jax.planning.planner import make_plan, report
    from vit_jax.planning.search import changed

    devices = slice_devices("v5e:1x1")
    chip = chip_of(devices[0])
    print(f"jax {jax.__version__}, v5e:1x1\n")
    print("| step | batch | remat | million cycles | ms | MFU | longest parts | peak GiB |")
    print("|---" * 8 + "|")
    for name in args.steps:
        recipe, batch = STEPS[name]
        for remat in args.remat:
            changes = {"batch": batch, "remat": remat, "mesh.data": 1, "mesh.fsdp": 1}
            config = configuration.load(recipe)
            changes |= {"mixup": 0.0} if "mixup" in config else {}
            config = changed(config, changes)
            rows = report(make_plan(config, 1000, devices), config, 1_281_167, chip)
            if not rows["fits"]:
                print(f"| {name} | {batch} | {remat} | does not fit |  |  |  |  |", flush=True)
                continue
            longest = [f"{part} {100 * spent['share']:.0f}%" for part, spent in list(rows["profile"].items())[:3]]
            print(
                f"| {name} | {batch} | {remat} | {rows['clock']['cycles'] / 1e6:.1f} | {1000 * rows['step_seconds']:.1f} "
                f"| {100 * rows['mfu']:.0f}% | {', '.join(longest)} | {rows['peak_bytes'] / 2**30:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
