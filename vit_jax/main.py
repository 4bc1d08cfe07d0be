"""`python -m vit_jax.main --workdir=DIR --config=FILE:ARG --config.field=value`, as Google's ViT code is started."""

from __future__ import annotations

import sys
from pathlib import Path

from vit_jax import command_line, configuration
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.contracts import UserError


def _train(argv: list[str]) -> None:
    parser = Parser(prog=argv[0], allow_abbrev=False)
    parser.add_argument("--workdir", type=filled)
    parser.add_argument("--fields", action="store_true")
    # Of several processes; TPU slices, Slurm, Open MPI and JAX's own variables need none of them.
    parser.add_argument("--coordinator", type=filled)
    parser.add_argument("--num_processes", type=whole(1))
    parser.add_argument("--process_id", type=whole(0))
    spec, settings, rest = command_line.split(argv[1:])
    args = parser.parse_args(rest)
    given = command_line.configured(spec, settings)
    if args.fields:
        print("\n".join(configuration.described(given.config)))
        return
    if not args.workdir:
        raise UserError("Expected --workdir=DIR, it is missing: for example --workdir=runs/try.")

    from vit_jax import processes
    from vit_jax.commands.run_figures import draw_run
    from vit_jax.train import run

    processes.join(args.coordinator, args.num_processes, args.process_id)
    run(given.config, Path(args.workdir), draw=draw_run, typed=given.typed)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 with one sentence for a user's mistake."""
    try:
        _train(list(sys.argv if argv is None else argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # checkpoints report their own; this is metrics, figures or the workdir itself
        print(
            f"error: Expected files that can be read and written, got {error}: free space or fix it.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
