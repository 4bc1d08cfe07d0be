"""`vit-jax figures WEIGHTS PICTURE... --out FOLDER`: looking inside any checkpoint that loads.

Attention of the layers asked for, head by head; rollout; how far each head looks; similarity of the positions; the first
layer's filters; a masked autoencoder's reconstructions at several ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from vit_jax.api import Trained, load
from vit_jax.commands.arguments import Parser, filled, local, whole
from vit_jax.commands.given import add_given, given_of
from vit_jax.contracts import UserError
from vit_jax.data.given import records_of
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import use_compilation_cache
from vit_jax.evaluation.attention import attention, mean_distances, rollout, to_patches
from vit_jax.looking import hiding
from vit_jax.methods import method_of
from vit_jax.models.vit import ViT, positions_table
from vit_jax.ops.pixels import normalise
from vit_jax.run_figures import save
from vit_jax.visualisation import attention_maps, positions, reconstructions

RATIOS = (0.5, 0.75, 0.9)


def run(argv: list[str]) -> int:
    parser = Parser(prog="vit-jax figures", description=__doc__)
    parser.add_argument("weights", type=filled, help="a workdir, or a file that `vit-jax convert` reads")
    parser.add_argument("pictures", type=filled, nargs="+", help="files of pictures")
    parser.add_argument("--out", type=local, default="figures", help="folder for the pictures drawn")
    parser.add_argument(
        "--layers", type=whole(-(10**6), 10**6), nargs="*", default=[-1], help="whose attention, from 0; -1 is the last"
    )
    parser.add_argument("--heads", type=whole(0, 10**6), nargs="*", help="from 0; default: all")
    parser.add_argument(
        "--size", choices=("crop", "picture"), default="crop",
        help="attention over small crops as the model sees them, or over each picture at its own resolution",
    )  # fmt: skip
    add_given(parser)
    args = parser.parse_args(argv)

    use_compilation_cache()
    trained = load(args.weights, **given_of(args))
    body = trained.encoder.cfg.transformer
    layers = chosen(args.layers, body.num_layers, "layers")
    heads = chosen(range(body.num_heads) if args.heads is None else args.heads, body.num_heads, "heads")
    out, crops = Path(args.out), trained.preprocess(args.pictures)
    pp = trained.config["pp"]
    own_size = args.size == "picture"
    photos = (
        [Preprocess.from_config(pp).seen(record) for record in records_of(args.pictures)] if own_size else list(crops)
    )
    pixels = normalise(jnp.asarray(crops), pp["mean"], pp["std"])

    def over_pictures(maps: np.ndarray, titles: list[str]) -> Figure:
        return attention_maps.draw([photo / 255.0 for photo in photos], maps, titles, own_size=own_size)

    drawn = [*looking(trained.encoder, pixels, layers, heads, over_pictures, out), *first_layer(trained, out)]
    drawn += ratios(trained, crops, out)
    for path in drawn:
        print(path)
    return 0


def chosen(given: Iterable[int], count: int, what: str) -> list[int]:
    """Layers or heads counted from 0, each once; -1 and the like from the end.

    Raises:
      UserError: none at all, or one that the model does not have.
    """
    numbers = list(given)
    if not numbers or any(not -count <= number < count for number in numbers):
        raise UserError(
            f"Expected {what} from 0 to {count - 1} (-1 is the last), got {numbers or 'none'}: change --{what}."
        )
    return list(dict.fromkeys(number % count for number in numbers))


def looking(
    encoder: ViT, pixels: jax.Array, layers: list[int], heads: list[int], draw: Callable[..., Figure], out: Path
) -> list[Path]:
    """Attention of layers and heads, rollout, distances; `draw` lays maps with their titles over the pictures."""
    drawn = []
    for layer, weights in zip(layers, attention(encoder, pixels, layers), strict=True):
        titles = [f"layer {layer}, head {head}" for head in heads]
        drawn.append(out / f"attention_layer{layer}.png")
        save(draw(to_patches(encoder, weights)[:, heads], titles), drawn[-1])
    save(draw(to_patches(encoder, rollout(encoder, pixels))[:, None], ["rollout"]), out / "rollout.png")
    save(attention_maps.draw_distances(mean_distances(encoder, pixels)), out / "attention_distance.png")
    return [*drawn, out / "rollout.png", out / "attention_distance.png"]


def first_layer(trained: Trained, out: Path) -> list[Path]:
    """Position similarity and filters, where the model has them."""
    encoder, drawn = trained.encoder, []
    cfg = encoder.cfg
    if cfg.positions != "none":
        if cfg.has_positions:
            table, title = np.asarray(encoder.positions[...]), "learned positions"
        else:
            table, title = (
                positions_table(cfg, cfg.transformer.hidden_size),
                "positions by a fixed formula, not learned",
            )
        save(positions.draw_similarity(table[cfg.prefix_rows :], cfg.grid, title), out / "positions.png")
        drawn.append(out / "positions.png")
    if cfg.stem is None:
        kernel = np.asarray(encoder.embedding.kernel[...])
        save(positions.draw_filters(kernel, cfg.patch_size, cfg.channels), out / "filters.png")
        drawn.append(out / "filters.png")
    return drawn


def ratios(trained: Trained, crops: np.ndarray, out: Path) -> list[Path]:
    """Reconstructions with more and more hidden, of a method that has a mask ratio and something to show."""
    config, name, drawn = trained.config, trained.config["objective"], []
    picture = method_of(config).picture
    if picture is None or "mask_ratio" not in config.get(name, {}):
        return []
    for ratio in RATIOS:
        found = picture(trained.model, jnp.asarray(crops), hiding(config, ratio))
        drawn.append(out / f"reconstructions_{round(100 * ratio)}.png")
        save(reconstructions.draw(found.columns, found.note, max_rows=len(crops)), drawn[-1])
    return drawn
