"""`vit-jax report RUN [RUN ...] --out report.html`: one page to mail, with everything that runs left behind."""

from __future__ import annotations

import time

from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.reporting.making import PICTURES, SECONDS, report


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax report", description=__doc__)
    parser.add_argument(
        "workdirs", metavar="RUN", type=filled, nargs="+", help="workdirs, also of runs that still go on"
    )
    parser.add_argument("--out", type=local, default="report.html", help="the page (default report.html)")
    parser.add_argument(
        "--no-model", action="store_true", help="from the records alone: no confusion, mistakes, attention"
    )
    parser.add_argument(
        "--pictures",
        type=whole(1),
        default=PICTURES,
        help=f"test pictures to ask each model about (default {PICTURES:,})",
    )
    parser.add_argument(
        "--seconds", type=whole(0), default=SECONDS, help=f"to do so at most, for each run (default {SECONDS})"
    )
    args = parser.parse_args(argv)
    began = time.perf_counter()
    made = report(args.workdirs, args.out, model=not args.no_model, pictures=args.pictures, seconds=args.seconds)
    print(f"{made}: {made.stat().st_size / 2**20:.1f} MiB, {time.perf_counter() - began:.0f} s; open it in any browser")
    return 0
