"""`vit-jax plan --config=FILE:ARG --topology=v5e:16x16`: whether a run fits and how long it takes, before it is paid for.

Compiles the real train step ahead of time for a TPU slice that need not be there (the tpu extra's compiler), or for this
machine's devices. Nothing runs. Times are a roofline: data-sheet rates, everything overlapped; a run is slower. Exit
status 1 where the step does not fit; the settings that make it fit are then found by trying and named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from vit_jax.commands.arguments import Parser, add_config, parse_with_config, whole
from vit_jax.contracts import UserError

IMAGENET = 1_281_167


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config(parser)
    parser.add_argument("--topology", help="TPU slice: v4:2x2x4, v5e:16x16, v5p:4x4x8, v6e:8x8 (default: the recipe's)")
    parser.add_argument("--local", action="store_true", help="this machine's devices instead of a slice")
    parser.add_argument("--mesh", default="", metavar="data=..,fsdp=..,tensor=..", help="-1: the rest")
    parser.add_argument("--num-classes", type=whole(1, 10_000_000), default=1000, help="of a classifier (default 1000)")
    parser.add_argument(
        "--examples", type=whole(1), default=IMAGENET, help="training pictures, for schedules in epochs"
    )
    parser.add_argument("--search", action="store_true", help="try the sensible meshes and rank them")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args, config = parse_with_config(
        parser, argv, lambda args: [f"mesh.{part}" for part in args.mesh.split(",") if part]
    )
    topology = args.topology or (config["topology"] if not args.local else "")
    if topology:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the slice is not here, and a TPU that is stays free
    elif not args.local:
        raise UserError(
            "Expected --topology or --local, this recipe was planned for no slice: give --topology=v5e:4x4."
        )

    import jax

    from vit_jax.frozen import planned
    from vit_jax.planning.chips import chip_of, slice_devices
    from vit_jax.planning.planner import make_plan, report
    from vit_jax.planning.search import as_flags, make_it_fit, search

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    devices = slice_devices(topology) if topology else jax.devices()
    chip, networks = chip_of(devices[0]), planned(config)
    if args.search:
        plans = search(config, args.num_classes, devices, say, networks)
        found = [{"topology": topology} | report(plan, config, args.examples, chip) for plan in plans]
        print(json.dumps(found) if args.json else ranking(found))
        return 0 if any(plan.fits for plan in plans) else 1
    plan = make_plan(config, args.num_classes, devices, networks)
    rows = {"topology": topology} | report(plan, config, args.examples, chip)
    if not plan.fits:
        say("does not fit; looking for settings that do ...")
        if better := make_it_fit(config, args.num_classes, devices, say, networks):
            rows["fits_with"] = as_flags(better[0])
    print(json.dumps(rows) if args.json else table(rows))
    return 0 if plan.fits else 1


def table(rows: dict[str, Any]) -> str:
    """The report for people."""
    gib = 2**30
    lines = [
        ("slice", f"{rows['topology'] or 'this machine'}: {rows['devices']} x {rows['chip'] or 'device'}"),
        ("mesh", _words(rows["mesh"])),
        ("settings", _words(rows["settings"])),
        ("parameters", f"{rows['parameters']:,}"),
        *((f"{name} (not trained)", f"{count:,}") for name, count in rows["frozen_parameters"].items()),
    ]
    limit = f" of {rows['memory_limit_bytes'] / gib:.2f}" if rows["memory_limit_bytes"] else ""
    if "peak_bytes" in rows:
        lines += [
            ("arguments a chip", f"{rows['argument_bytes'] / gib:.3f} GiB"),
            ("temporaries a chip", f"{rows['temporary_bytes'] / gib:.3f} GiB"),
            ("peak a chip", f"{rows['peak_bytes'] / gib:.3f}{limit} GiB"),
            (
                "TFLOP a step, analytic",
                f"{rows['analytic_flops'] / 1e12:.1f} ({rows['model_flops'] / 1e12:.1f} of the model)",
            ),
            ("TFLOP a step, compiled", f"{rows['compiled_flops'] / 1e12:.1f}"),
        ]
        lines += [
            (kind, f"{each['times']} times, {each['bytes'] / 1e9:.3f} GB sent a chip and step")
            for kind, each in rows["collectives"].items()
        ]
    if "step_seconds" in rows:
        lines += [
            ("roofline", ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in rows["roofline_seconds"].items())),
            ("step at best", f"{1000 * rows['step_seconds']:.1f} ms, {rows['images_per_second']:,.0f} img/s"),
            ("MFU at best", f"{100 * rows['mfu']:.0f}%"),
        ]
        spent = rows["schedule"]
        words = f"{spent['steps']:,} steps, {spent['hours']:.1f} h, {spent['chip_hours']:,.0f} chip-hours"
        lines.append(("whole schedule at best", words))
    lines.append(("compiled in", f"{rows['compile_seconds']} s"))
    lines.append(("fits", "yes" if rows["fits"] else "no: " + (rows["refusal"] or "more than the chip has")))
    if not rows["fits"]:
        lines.append(("fits with", rows.get("fits_with", "nothing that was tried: a larger slice or a smaller batch")))
    return "\n".join(f"{name:26s} {value}" for name, value in lines)


def ranking(found: list[dict[str, Any]]) -> str:
    """One line a mesh, the best first."""
    lines = [f"{'mesh':32s} {'remat':6s} {'fits':5s} {'peak GiB':>9s} {'sent GB':>8s} {'step ms':>8s}"]
    for row in found:
        numbers = (
            row.get("peak_bytes", 0) / 2**30,
            row.get("collective_bytes", 0) / 1e9,
            1000 * row.get("step_seconds", 0),
        )
        lines.append(
            f"{_words(row['mesh']):32s} {row['settings']['remat']:6s} {'yes' if row['fits'] else 'no':5s} "
            + " ".join(f"{number:{width}.2f}" for number, width in zip(numbers, (9, 8, 8), strict=True))
        )
    return "\n".join(lines)


def _words(pairs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pairs.items())
