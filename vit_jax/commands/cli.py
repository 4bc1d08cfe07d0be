"""`vit-jax SUBCOMMAND ...`: finds the subcommand's file, prints a user's mistakes as one sentence."""

from __future__ import annotations

import importlib
import sys

from vit_jax import signals

# name: (module with `run(argv) -> exit status`, one line of help)
COMMANDS = {
    "train": (
        "vit_jax.commands.train",
        "train, or continue: --workdir=DIR --config=FILE:ARG [--config.field=value ...]",
    ),
    "eval": ("vit_jax.commands.eval", "exact metrics of a run's last checkpoint, as a whole and of each class"),
    "imagenet": ("vit_jax.commands.imagenet", "judge a classifier on ImageNet, ReaL, V2, A, R, Sketch and C"),
    "predict": ("vit_jax.commands.predict", "name the classes of pictures"),
    "report": ("vit_jax.commands.report", "one page about one run or several: curves, results, mistakes, settings"),
    "reconstruct": ("vit_jax.commands.reconstruct", "draw what a masked image model makes of hidden patches"),
    "figures": ("vit_jax.commands.figures", "look inside: attention, rollout, distances, positions, filters"),
    "embed": ("vit_jax.commands.embed", "write pooled features of pictures to .npz or .parquet"),
    "probe": ("vit_jax.commands.probe", "judge frozen features: neighbours, few shots, linear heads; in minutes"),
    "convert": (
        "vit_jax.commands.convert",
        "other people's weights in, ours out: Google's, timm's, MAE's, Hugging Face's",
    ),
    "export": (
        "vit_jax.commands.export",
        "the model with its preprocessing as one program, for serving: StableHLO or ONNX",
    ),
    "models": ("vit_jax.commands.models", "published files of weights: source, size, licence, accuracy"),
    "inspect": ("vit_jax.commands.inspect", "what a workdir holds: step, configuration, parameters and their sha256"),
    "config": ("vit_jax.commands.config", "every field of a recipe: its value, its default, what it means"),
    "doctor": ("vit_jax.commands.doctor", "what this installation runs on: versions, devices, memory"),
    "prepare": ("vit_jax.commands.prepare", "a folder of pictures -> a TFDS ArrayRecord data set"),
    "plan": ("vit_jax.commands.plan", "does a run fit a TPU slice, and how long does it take? Without having one"),
    "bench": ("vit_jax.commands.bench", "time a config's training step and its input pipeline"),
    "demo": ("vit_jax.commands.demo", "learn from unlabelled digits, then from few labels; a few minutes"),
}


def usage() -> str:
    lines = [f"  {name:12s} {line}" for name, (_, line) in COMMANDS.items()]
    return "usage: vit-jax SUBCOMMAND ...\n\n" + "\n".join(lines) + "\n\nvit-jax SUBCOMMAND --help tells more."


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 2 for a mistake of the user's, 130 for Ctrl-C. Without `argv` it ends the process."""
    if argv is None:
        signals.command(lambda: main(sys.argv[1:]))
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from vit_jax import __version__

        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: Expected a subcommand of {', '.join(COMMANDS)}, got {argv[0]!r}.", file=sys.stderr)
        return 2
    from vit_jax.contracts import UserError  # NumPy: not before Ctrl-C is heard

    try:
        return importlib.import_module(COMMANDS[argv[0]][0]).run(argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    main()
