"""`vit-jax convert SRC DST --to FORMAT`: other people's weights into ours, ours into theirs, checked by reading back.

SRC: a workdir, Google's .npz, MAE's, DeiT's or timm's .pth or .safetensors, a Hugging Face folder. DST: a new file or
folder. Formats: native (a workdir for predict, eval, embed and config.init_from), google (.npz), timm (.safetensors),
mae (.pth), hf (a folder).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import configuration
from vit_jax.contracts import UserError
from vit_jax.conversion.convert import FORMATS, Weights, refit, rounded, write
from vit_jax.models.mae import MAE
from vit_jax.models.registry import assemble, pair
from vit_jax.ops.masks import make_mask
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.weights import open_weights

# What a format does not say is taken as its own code has it; these fields then change the numbers.
MEANT = ("activation", "norm_eps", "positions")


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="vit-jax convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("--to", choices=("native", *FORMATS), default="native")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the numbers written")
    parser.add_argument("--num_heads", type=int, help="where the file cannot show it")
    parser.add_argument("--num_classes", type=int, help="replace the head by a new one of zeros")
    parser.add_argument("--image_size", type=int, help="resample the positions to another picture size")
    args = parser.parse_args(argv)

    if Path(args.destination).exists():
        raise UserError(f"Expected a new file or folder, {args.destination} exists: give another, or remove it.")
    given: dict[str, Any] = {"num_heads": args.num_heads} if args.num_heads else {}
    weights, _ = open_weights(args.source, **given)
    weights = refit(weights, num_classes=args.num_classes, image_size=args.image_size)
    if args.to == "native":
        if args.dtype != "float32":
            raise UserError("Expected --dtype float32 for --to native: parameters are float32 here.")
        write_native(weights, args.destination)
    else:
        write(weights, args.destination, args.to, dtype=args.dtype)
        if args.dtype == "bfloat16":
            params = {
                path: rounded({path: value}, args.dtype)[path].astype(np.float32)
                for path, value in weights.params.items()
            }
            weights = weights._replace(params=params, notes=(*weights.notes, "numbers rounded to bfloat16"))
    for line in report(weights, args.source, args.destination, args.to, given):
        print(line)
    return 0


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


def report(weights: Weights, source: str, destination: str, to: str, given: dict[str, Any]) -> list[str]:
    """What was done, and a random picture through what was written, read back.

    Raises:
      UserError: parameters that came back as other numbers.
    """
    back, _ = open_weights(destination, **({} if to in ("native", "hf") else given | _heads(weights)))
    changed = sorted(set(weights.params) ^ set(back.params))
    changed = changed or [
        path for path in weights.params if not np.array_equal(weights.params[path], back.params[path])
    ]
    if changed:
        raise UserError(f"Expected the same parameters read back from {destination}, these differ: {changed[:8]}.")
    here, there = output(weights), output(back)
    difference = float(np.abs(here - there).max() / np.abs(here).max())
    numbers = sum(value.size for value in weights.params.values())
    lines = [
        f"read     {source}: {weights.source}, {len(weights.params)} arrays, {numbers:,} numbers, "
        f"{weights.config['model']['hidden_size']} wide, {weights.config['model']['transformer']['num_layers']} blocks",
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


def _heads(weights: Weights) -> dict[str, Any]:
    """What a file cannot show, to read it back."""
    config = weights.config
    known: dict[str, Any] = {
        "num_heads": config["model"]["transformer"]["num_heads"],
        "stored_size": pair(config["pp"]["crop"]),
    }
    if config["objective"] == "mae":
        known["decoder_num_heads"] = config["mae"]["decoder"]["num_heads"]
        known["normalised_target"] = config["mae"]["normalised_target"]
    return known


def output(weights: Weights) -> np.ndarray:
    """Of one random picture: logits, features, or a MAE's predictions under a fixed mask."""
    config = weights.config | {"compute_dtype": "float32"}
    model = assemble(config, weights.num_classes, weights.params)
    encoder = model.encoder if isinstance(model, MAE) else model
    size = (1, *encoder.cfg.image_size, encoder.cfg.channels)
    picture = jnp.asarray(np.random.default_rng(0).standard_normal(size), jnp.float32)
    if isinstance(model, MAE):
        mask = make_mask("random", jax.random.split(jax.random.key(0), 1), encoder.cfg.grid, model.cfg.num_visible)
        return np.asarray(nnx.jit(lambda model: model(picture, mask))(model))
    return np.asarray(nnx.jit(lambda model: model(picture))(model))
