"""`python -m vit_jax.main --workdir=DIR --config=FILE:ARG --config.field=value`, as Google's ViT code is started."""

from __future__ import annotations

import sys
import textwrap

from vit_jax import signals

if __name__ == "__main__":
    signals.end_at_once()  # before the slow imports

from vit_jax import command_line, configuration
from vit_jax.commands.arguments import Parser, filled, whole
from vit_jax.contracts import Config, UserError

HELP_FLAGS = {f"{dashes}{name}" for dashes in ("-", "--") for name in ("h", "help", "helpshort", "helpfull")}
HELP = """usage: {program} --workdir=DIR --config=FILE[:ARG] [--config.FIELD=VALUE ...]

Trains as the config says. An example that runs as it stands, in a minute:

  {program} --workdir=runs/try --config=digits.py:scratch --config.batch=48 --config.total_steps=100

Ctrl-C stops it, and so does SIGTERM: it saves first. The same command continues, from the last checkpoint in DIR and to the
same numbers. A run that has ended goes on with a larger --config.total_steps where its schedule allows it, and says so
where not; --config.init_from=DIR, in another --workdir, begins a new run with what the old one learned.

  --workdir=DIR         folder of the run, made if missing, or gs://bucket/folder: checkpoints, metrics.jsonl, figures
  --config=FILE[:ARG]   a file of your own, or one of
{recipes}
  --config.FIELD=VALUE  any field of the config, such as --config.batch=256 or --config.pp.crop=192
  --fields              lists every field of --config with its value and meaning, and stops, as `vit-jax config` does:

  vit-jax config digits.py:scratch              every field: its value, its default, what it means and may hold
  vit-jax config digits.py:scratch --changed    only what the recipe sets

Several processes join by themselves on TPU slices, under Slurm and Open MPI; elsewhere each says who it is:
  --coordinator=HOST:PORT  of process 0
  --num_processes=N        how many they are
  --process_id=I           this one's number, from 0"""


def _train(argv: list[str]) -> None:
    program, words = "vit-jax train" if argv[0] == "vit-jax train" else "python -m vit_jax.main", argv[1:]
    parser = Parser(prog=program, allow_abbrev=False, add_help=False)
    parser.add_argument("--workdir", type=filled)
    parser.add_argument("--fields", action="store_true")
    # Of several processes; TPU slices, Slurm, Open MPI and JAX's own variables need none of them.
    parser.add_argument("--coordinator", type=filled)
    parser.add_argument("--num_processes", type=whole(1))
    parser.add_argument("--process_id", type=whole(0))
    if HELP_FLAGS & set(words):
        print(usage(program))
        return
    if "--fields" in words and not any(word.lstrip("-").partition("=")[0] == "config" for word in words):
        words = [*words, "--config=common.py"]
    spec, settings, rest = command_line.split(words)
    args = parser.parse_args(rest)
    given = command_line.configured(spec, settings)
    if args.fields:
        print("\n".join(configuration.described(given.config)))
        return
    if not args.workdir:
        raise UserError("Expected --workdir=DIR, it is missing: for example --workdir=runs/try.")

    heed_googles_fields(given.config)
    from vit_jax import processes
    from vit_jax.run_figures import draw_run
    from vit_jax.train import run

    processes.join(args.coordinator, args.num_processes, args.process_id)
    run(given.config, args.workdir, draw=draw_run, typed=given.typed, recipe=given.recipe)


def heed_googles_fields(config: Config) -> None:
    """Fields of Google's configs that ask for what is not done here: one is refused, one is said to do nothing."""
    if config["trainer"] != "train":
        raise UserError(
            f"Expected config.trainer='train', got {config['trainer']!r}: inference alone is not timed here, "
            "`vit-jax bench --config=FILE:ARG` times a training step."
        )
    if manual := config["tfds_manual_dir"]:
        print(
            f"note: config.tfds_manual_dir={manual} does nothing here, data sets are prepared before training: "
            f"`tfds build {config['dataset']} --file_format=array_record --manual_dir={manual}`.",
            file=sys.stderr,
        )


def usage(program: str) -> str:
    """What --help prints."""
    recipes = textwrap.wrap(", ".join(configuration.recipe_names()), 86)
    return HELP.format(program=program, recipes=textwrap.indent("\n".join(recipes), 24 * " "))


def main(argv: list[str] | None = None) -> int:
    """Exit status 0; 2 with one sentence for a user's mistake; 130 for Ctrl-C, with what was learned saved."""
    try:
        _train(sys.argv if argv is None else argv)
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


if __name__ == "__main__":
    signals.command(main)
