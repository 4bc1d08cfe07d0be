"""`python -m vit_jax.main --workdir=DIR --config=FILE:ARG --config.field=value`, as Google's ViT code is started."""

from __future__ import annotations

import sys
from pathlib import Path

from vit_jax import signals

if __name__ == "__main__":
    signals.end_at_once()  # before the slow imports

from absl import app, flags
from ml_collections import config_flags

from vit_jax import configuration
from vit_jax.contracts import UserError

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file and its argument.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and figures.")
# Of several processes; TPU slices, Slurm, Open MPI and JAX's own variables need none of them.
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)


def _train(argv: list[str]) -> None:
    from vit_jax import processes
    from vit_jax.commands.run_figures import draw_run
    from vit_jax.train import run

    if len(argv) > 1:
        raise UserError(f"Expected only --flags, got {argv[1:]}: write --config.field=value.")
    processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    run(_CONFIG.value, Path(str(_WORKDIR.value)), draw=draw_run)


def with_resolved_config(argv: list[str]) -> list[str]:
    """--config=mae.py:b16 -> --config=<the recipes' folder>/mae.py:b16. Both flags must be there."""
    given = {arg.lstrip("-").split("=", 1)[0] for arg in argv[1:] if arg.startswith("-")}
    for flag in ("workdir", "config"):
        if flag not in given:
            raise UserError(f"Expected --{flag}=..., it is missing: --workdir=runs/try --config=digits.py:scratch.")
    resolved, take_next = [], False
    for arg in argv:
        name, equals, value = arg.partition("=")
        if take_next:
            arg, take_next = configuration.resolve(arg), False
        elif name in ("--config", "-config"):
            if equals:
                arg = f"--config={configuration.resolve(value)}"
            else:
                take_next = True
        resolved.append(arg)
    return resolved


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 with one sentence for a user's mistake; 130 for Ctrl-C, with what was learned saved."""
    configuration.use_recipes()
    try:
        argv = with_resolved_config(list(sys.argv if argv is None else argv))
        app.run(_train, argv=argv, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return signals.BROKEN_PIPE
    except OSError as error:  # checkpoints report their own; this is metrics, figures or the workdir itself
        print(
            f"error: Expected files that can be read and written, got {error}: free space or fix it.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str]) -> list[str]:
    try:
        return FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        words = str(error)
        if "Traceback" in words:  # config_flags hands on a whole one; its last line is what was meant
            words = words.strip().splitlines()[-1]
        raise UserError(f"The command line does not fit the config: {' '.join(words.split())}") from error


if __name__ == "__main__":
    signals.command(main)
