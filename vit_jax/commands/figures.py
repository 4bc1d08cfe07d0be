"""`vit-jax figures WEIGHTS PICTURE... --out FOLDER`: looking inside any checkpoint that loads.

Attention of the layers asked for, head by head; rollout; how far each head looks; similarity of the positions; the first
layer's filters; a masked autoencoder's reconstructions at several ratios.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.api import Trained, load
from vit_jax.commands.given import add_given, given_of
from vit_jax.commands.run_figures import save
from vit_jax.contracts import UserError
from vit_jax.devices import use_compilation_cache
from vit_jax.evaluation.attention import attention, mean_distances, rollout, to_patches
from vit_jax.evaluation.reconstructions import reconstruct
from vit_jax.models.mae import MAE
from vit_jax.models.vit import positions_table
from vit_jax.ops.keys import key_for
from vit_jax.ops.masks import make_mask
from vit_jax.visualisation import attention_maps, positions, reconstructions

RATIOS = (0.5, 0.75, 0.9)


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="vit-jax figures", description=__doc__)
    parser.add_argument("weights", help="a workdir, or a file that `vit-jax convert` reads")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--out", default="figures", help="folder for the pictures drawn")
    parser.add_argument("--layers", type=int, nargs="+", default=[-1], help="whose attention; -1 is the last")
    parser.add_argument("--heads", type=int, nargs="*", help="default: all")
    add_given(parser)
    args = parser.parse_args(argv)

    use_compilation_cache()
    trained = load(args.weights, **given_of(args))
    out, pixels = Path(args.out), trained.pixels(args.pictures)
    photos = trained.preprocess(args.pictures) / 255.0
    drawn = [*looking(trained, pixels, photos, args, out), *first_layer(trained, out)]
    if isinstance(trained.model, MAE):
        drawn += ratios(trained, args.pictures, out)
    for path in drawn:
        print(path)
    return 0


def looking(trained: Trained, pixels: jax.Array, photos: np.ndarray, args: argparse.Namespace, out: Path) -> list[Path]:
    """Attention of layers and heads, rollout, distances."""
    encoder, drawn = trained.encoder, []
    heads = args.heads or list(range(encoder.cfg.transformer.num_heads))
    if max(heads) >= encoder.cfg.transformer.num_heads or min(heads) < 0:
        raise UserError(
            f"Expected heads from 0 to {encoder.cfg.transformer.num_heads - 1}, got {heads}: change --heads."
        )
    try:
        weights = attention(encoder, pixels, args.layers)
    except ValueError as error:
        raise UserError(f"{error} Change --layers.") from error
    for layer, found in zip(args.layers, weights, strict=True):
        number = layer % encoder.cfg.transformer.num_layers + 1
        maps = to_patches(encoder, found)[:, heads]
        figure = attention_maps.draw(photos, maps, [f"layer {number}, head {head}" for head in heads])
        drawn.append(out / f"attention_layer{number}.png")
        save(figure, drawn[-1])
    figure = attention_maps.draw(photos, to_patches(encoder, rollout(encoder, pixels))[:, None], ["rollout"])
    save(figure, out / "rollout.png")
    save(attention_maps.draw_distances(mean_distances(encoder, pixels)), out / "attention_distance.png")
    return [*drawn, out / "rollout.png", out / "attention_distance.png"]


def first_layer(trained: Trained, out: Path) -> list[Path]:
    """Position similarity and filters, where the model has them."""
    encoder, drawn = trained.encoder, []
    cfg = encoder.cfg
    if cfg.positions != "none":
        table = (
            np.asarray(encoder.positions[...])
            if cfg.has_positions
            else positions_table(cfg, cfg.transformer.hidden_size)
        )
        save(positions.draw_similarity(table[cfg.prefix_rows :], cfg.grid), out / "positions.png")
        drawn.append(out / "positions.png")
    if cfg.stem is None:
        kernel = np.asarray(encoder.embedding.kernel[...])
        save(positions.draw_filters(kernel, cfg.patch_size, cfg.channels), out / "filters.png")
        drawn.append(out / "filters.png")
    return drawn


def ratios(trained: Trained, pictures: list[str], out: Path) -> list[Path]:
    """Reconstructions with more and more hidden."""
    model, pp, drawn = trained.model, trained.config["pp"], []
    assert isinstance(model, MAE)
    images = jnp.asarray(trained.preprocess(pictures))
    grid = model.cfg.encoder.grid
    for ratio in RATIOS:
        visible = max(1, round((1.0 - ratio) * grid[0] * grid[1]))
        mask = make_mask("random", jax.random.split(key_for(0, "figures"), len(images)), grid, visible)
        found = reconstruct(model, images, pp["mean"], pp["std"], mask=mask)
        drawn.append(out / f"reconstructions_{round(100 * ratio)}.png")
        save(reconstructions.draw(found[:4], true_statistics=found.true_statistics), drawn[-1])
    return drawn
