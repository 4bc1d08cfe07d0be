"""`vit-jax plan --config=FILE:ARG --topology=v5e:16x16`: whether a run fits and how long it takes, before it is paid for.

Compiles the real train step ahead of time for a TPU slice that need not be there (the tpu extra's compiler), or for this
machine's devices. Nothing runs. The estimated time of a step is the longer of two: the compiler's clock (the cycles that the
TPU compiler schedules by, and exchanges that nothing hides) and a roofline (data-sheet rates, everything overlapped; no step
is faster). --profile says which part of the model takes how much of it. Exit status 1 where the step does not fit; the
settings that make it fit are then found by trying and named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from vit_jax.commands.arguments import Parser, add_config, local, parse_with_config, whole
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
    parser.add_argument("--profile", action="store_true", help="where the time goes, by part of the model (TPU slices)")
    parser.add_argument("--out", type=local, metavar="FILE.png", help="the same as a figure")
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

    if args.search and (args.profile or args.out):
        raise UserError(
            "Expected --profile and --out of one plan, got --search as well: give the mesh that it ranks first."
        )
    if args.out and not args.out.endswith(".png"):
        raise UserError(f"Expected --out=FILE.png, got {args.out!r}.")

    import jax

    from vit_jax.frozen import planned
    from vit_jax.planning.chips import chip_of, slice_devices
    from vit_jax.planning.planner import make_plan, report
    from vit_jax.planning.search import as_flags, make_it_fit, search
    from vit_jax.run_figures import save
    from vit_jax.visualisation.step_profile import draw

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
    rows: dict[str, Any] = {"topology": topology} | report(plan, config, args.examples, chip)
    if not plan.fits:
        say("does not fit; looking for settings that do ...")
        if better := make_it_fit(config, args.num_classes, devices, say, networks):
            rows["fits_with"] = as_flags(better[0])
    if (args.profile or args.out) and not rows.get("profile"):
        say("no profile: " + ("the step does not fit" if not plan.fits else "only the TPU compiler writes cycles down"))
    print(json.dumps(rows) if args.json else table(rows))
    if args.profile and rows.get("profile") and not args.json:
        print("\n" + by_part(rows))
    if args.out and rows.get("profile"):
        save(draw(rows["profile"], title(rows)), Path(args.out))
        say(f"wrote {args.out}")
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
        bound, step = rows["roofline_seconds"], 1000 * rows["step_seconds"]
        by = "the roofline" if rows["step_seconds"] == max(bound.values()) else "the compiler's clock"
        lines += [
            ("roofline, a lower bound", ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in bound.items())),
            *clock(rows["clock"]),
            ("step, estimated", f"{step:.1f} ms by {by}, {rows['images_per_second']:,.0f} img/s"),
            ("MFU, estimated", f"{100 * rows['mfu']:.0f}%"),
        ]
        spent = rows["schedule"]
        words = f"{spent['steps']:,} steps, {spent['hours']:.1f} h, {spent['chip_hours']:,.0f} chip-hours"
        lines.append(("whole schedule, estimated", words))
    lines.append(("compiled in", f"{rows['compile_seconds']} s"))
    lines.append(("fits", "yes" if rows["fits"] else "no: " + (rows["refusal"] or "more than the chip has")))
    if not rows["fits"]:
        lines.append(("fits with", rows.get("fits_with", "nothing that was tried: a larger slice or a smaller batch")))
    return "\n".join(f"{name:26s} {value}" for name, value in lines)


def clock(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What the compiler's clock says, and what it leaves out."""
    if found is None:
        return [("compiler's clock", "none: only the TPU compiler writes cycles down")]
    cycles, apart = f"{found['cycles'] / 1e6:.1f} million cycles", 1000 * found["exchanges_apart_seconds"]
    words = f"{cycles}; not in seconds, for the data sheet gives no clock"
    if found["hertz"]:
        words = f"{1000 * found['seconds']:.1f} ms: {cycles} at {found['hertz'] / 1e9:.2f} GHz"
        words += f", {apart:.1f} ms of exchanges that nothing hides" if apart else ""
    left_out = [f"{target} {times} times" for target, times in found["custom_calls_without_estimate"].items()]
    return [("compiler's clock", words), *([("not in the clock", ", ".join(left_out))] if left_out else [])]


def by_part(rows: dict[str, Any]) -> str:
    """One line a part of the model, the longest first."""
    lines = [f"{'part':26s} {'million cycles':>14s} {'share':>7s} {'of the peak':>12s}"]
    for part, spent in rows["profile"].items():
        peak = "" if not spent["flops"] or spent["share_of_peak"] is None else f"{100 * spent['share_of_peak']:.1f}%"
        lines.append(f"{part:26s} {spent['cycles'] / 1e6:14.2f} {100 * spent['share']:6.1f}% {peak:>12s}".rstrip())
    total = sum(spent["cycles"] for spent in rows["profile"].values())
    return "\n".join([*lines, f"{'all':26s} {total / 1e6:14.2f} {100:6.1f}%"])


def title(rows: dict[str, Any]) -> str:
    """Over the figure: what was planned, and how long a step takes."""
    step = f"{1000 * rows['clock']['seconds']:.1f} ms a step" if rows["clock"]["seconds"] else "cycles of a step"
    return f"{rows['topology']}, batch {rows['settings']['batch']}, remat {rows['settings']['remat']}: {step}"


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
