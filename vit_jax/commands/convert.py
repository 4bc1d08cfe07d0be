"""`vit-jax convert SRC DST --to FORMAT`: other people's weights into ours, ours into theirs, checked by reading back.

SRC: a workdir, Google's .npz, MAE's, DeiT's or timm's .pth or .safetensors, a Hugging Face folder. DST: a new file or
folder. Formats: native (a workdir for predict, eval, embed and config.init_from), google (.npz), timm (.safetensors),
mae (.pth), hf (a folder).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import configuration
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.contracts import UserError
from vit_jax.conversion.convert import FORMATS, Weights, hidden_in_files, refit, rounded, write
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble
from vit_jax.models.registry import pair
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.weights import open_weights

# What a format does not say is taken as its own code has it; these fields then change the numbers.
MEANT = ("activation", "norm_eps", "positions")


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=filled, help="weights to read: SRC above")
    parser.add_argument("destination", type=local, help="what to write, which is not there yet: DST above")
    parser.add_argument("--to", choices=("native", *FORMATS), default="native", help="format of DST (default native)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the numbers written")
    add_given(parser)
    parser.add_argument("--num_classes", type=whole(1, 10_000_000), help="replace the head by a new one of zeros")
    parser.add_argument("--image_size", type=whole(1, 65_535), help="resample the positions to another picture size")
    args = parser.parse_args(argv)

    destination = Path(args.destination).expanduser()
    if destination.exists():
        raise UserError(f"Expected a new file or folder, {destination} exists: give another, or remove it.")
    given = given_of(args)
    weights, _ = open_weights(args.source, **given)
    weights = refit(weights, num_classes=args.num_classes, image_size=args.image_size)
    with beside(destination) as place:
        if args.to == "native":
            if args.dtype != "float32":
                raise UserError("Expected --dtype float32 for --to native: parameters are float32 here.")
            write_native(weights, str(place))
        else:
            write(weights, place, args.to, dtype=args.dtype)
            if args.dtype == "bfloat16":
                params = {
                    path: rounded({path: value}, args.dtype)[path].astype(np.float32)
                    for path, value in weights.params.items()
                }
                weights = weights._replace(params=params, notes=(*weights.notes, "numbers rounded to bfloat16"))
        back, _ = open_weights(place, **({} if args.to in ("native", "hf") else given | hidden_in_files(weights)))
        lines = report(weights, back, args.source, str(destination), args.to, bool(args.any_numbers))
    for line in lines:
        print(line)
    return 0


@contextlib.contextmanager
def beside(destination: Path) -> Iterator[Path]:
    """A place of the same name in a folder beside `destination`, put there at the end unless something failed."""
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name[:100]}.", dir=destination.parent))
    except OSError as error:
        raise UserError(
            f"Expected to write {destination}, it failed ({error.strerror}): free space or give another path."
        ) from error
    try:
        yield folder / destination.name
        os.rename(folder / destination.name, destination)
    except OSError as error:
        raise UserError(
            f"Expected to write {destination}, it failed ({error.strerror}): free space or give another path."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_native(weights: Weights, workdir: str) -> None:
    """A workdir with one checkpoint of weights alone."""
    metadata = {
        "class_names": list(weights.class_names) if weights.class_names else None,
        "num_classes": weights.num_classes,
        "dataset": None,
        "image_size": list(pair(weights.config["pp"]["crop"])),
        "source": weights.source,
    }
    checkpoints = Checkpoints(workdir)
    checkpoints.save_weights(weights.params, configuration.plain(weights.config), metadata)
    checkpoints.close()


def report(weights: Weights, back: Weights, source: str, destination: str, to: str, any_numbers: bool) -> list[str]:
    """What was done, and a random picture through what was written, read back (`back`).

    Raises:
      UserError: parameters that came back as other numbers, or outputs that are not finite (unless `any_numbers`).
    """
    changed = sorted(set(weights.params) ^ set(back.params))
    changed = changed or [
        path for path in weights.params if not np.array_equal(weights.params[path], back.params[path], equal_nan=True)
    ]
    if changed:
        raise UserError(f"Expected the same parameters read back from {destination}, these differ: {changed[:8]}.")
    difference = largest_difference(outputs(weights), outputs(back))
    if not math.isfinite(difference) and not any_numbers:
        raise UserError(
            f"Expected finite outputs of a random picture through {source} and what was written from it, their largest "
            f"relative difference is {difference}: nothing was kept; fetch the source again, or give --any_numbers."
        )
    numbers = sum(value.size for value in weights.params.values())
    model, size = weights.config["model"], ""
    if any("transformer/blocks/" in path for path in weights.params):
        size = f", {model['hidden_size']} wide, {model['transformer']['num_layers']} blocks"
    lines = [
        f"read     {source}: {weights.source}, {len(weights.params)} arrays, {numbers:,} numbers{size}",
        *(f"changed  {note}" for note in weights.notes),
        f"wrote    {destination}: {to}, every number read back bit for bit",
        f"checked  a random picture through both: largest relative difference {difference:.1e}",
    ]
    meant = [
        f"{field} {weights.config['model'][field]} here, {back.config['model'][field]} there"
        for field in MEANT
        if weights.config["model"][field] != back.config["model"][field]
    ]
    if difference > 1e-5:
        lines.append(
            f"NOTE     the format {to} implies other settings, so outputs differ: {'; '.join(meant) or 'unknown'}"
        )
    return lines


def largest_difference(here: Sequence[np.ndarray], there: Sequence[np.ndarray]) -> float:
    """The largest difference, relative to the largest number of its array here; NaN where a number is not finite.

    Zeros on both sides (a new head's logits) are equal.
    """
    worst = 0.0
    for ours, theirs in zip(here, there, strict=True):
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            return math.nan
        gap, size = float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
        worst = max(worst, gap and (gap / size if size else math.inf))
    return worst


def outputs(weights: Weights) -> list[np.ndarray]:
    """Of one random picture: encoded tokens, and what the whole model gives (logits, predictions under a fixed mask).

    The tokens are there because a head of zeros hides all before it.
    """
    config = weights.config | {"compute_dtype": "float32"}
    method, model = method_of(config), assemble(config, weights.num_classes, weights.params)
    cfg = method.backbone(model).cfg
    size = (1, *cfg.image_size, cfg.channels)
    picture = jnp.asarray(np.random.default_rng(0).standard_normal(size), jnp.float32)
    has_tokens = hasattr(method.backbone(model), "features")

    def through(model: Any) -> tuple[Any, ...]:
        tokens = (method.backbone(model).features(picture),) if has_tokens else ()
        return *tokens, method.outputs(model, picture)

    return [np.asarray(part) for part in nnx.jit(through)(model)]
