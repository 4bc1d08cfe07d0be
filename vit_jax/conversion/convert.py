"""Reading any known file of weights into our parameters, and writing ours in any known format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vit_jax.contracts import Config, UserError, first_line
from vit_jax.conversion import beit, dalle, google, hf_beit, huggingface, timm
from vit_jax.conversion.fetching import fetch
from vit_jax.conversion.files import open_archive, write_tensors
from vit_jax.conversion.rules import Fixed, Rule, Shape, to_ours, to_theirs
from vit_jax.conversion.told import SMALLEST_STD, Told
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.models.dvae import dvae_config
from vit_jax.models.registry import pair, vit_config
from vit_jax.ops.paths import flat_params
from vit_jax.ops.positions import Resampling, regridded

# Asked in this order whether a file is theirs.
SOURCES: tuple[ModuleType, ...] = (google, beit, timm, hf_beit, huggingface, dalle)
FORMATS = ("google", "timm", "mae", "beit", "hf")
GIVEN = ("num_heads", "decoder_num_heads", "stored_size", "normalised_target", "mean", "std", "any_numbers")
# Buffers that some versions wrote and that hold no weights.
IGNORED = ("embeddings.position_ids",)


class Weights(NamedTuple):
    """A model's parameters by our paths with all it needs to be used: what a checkpoint of ours holds, too."""

    params: dict[str, np.ndarray]
    config: dict[str, Any]
    num_classes: int | None
    class_names: tuple[str, ...] | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def resampling(self) -> Resampling:
        """How this source's own code resizes position tables."""
        return "google" if self.source in ("google", "big_vision") else "bicubic"


def read(path: str | Path, completed: Callable[[Any], dict[str, Any]], **given: Any) -> Weights:
    """Recognise a file or folder by its names and shapes, and read it, every tensor matched.

    Args:
      path: .npz, .safetensors, .pth, or a Hugging Face folder; local, a name of `vit-jax models`, `https://`, `gs://` or
        `hf:owner/name`.
      completed: fills up what the file tells to a whole configuration (configuration.completed).
      given: what cannot be seen from a file (num_heads, decoder_num_heads, stored_size, normalised_target, and mean and std
        of the pixels, one number or one a channel), and any_numbers=True to take complex and whole numbers, and such as are
        not finite.

    Raises:
      UserError: an unknown format, a damaged file, or tensors that do not match, all of them listed.
    """
    unknown = sorted(set(given) - set(GIVEN))
    if unknown:
        raise UserError(f"Expected what is given of {', '.join(GIVEN)}, got {', '.join(unknown)}: leave it out.")
    local = fetch(path)
    archive = open_archive(local)
    source = next((source for source in SOURCES if source.claims(archive.tensors)), None)
    if source is None:
        named = ", ".join(name[:100] for name in list(archive.tensors)[:5])
        raise UserError(
            "Expected weights with Google's, timm's, MAE's, DeiT's, BEiT's, DALL-E's or Hugging Face's names in "
            f"{local}, got {named}, ...: this format is not known."
        )
    by_hand = Told(given, "what was given")
    any_numbers = by_hand.truth("any_numbers", False)
    try:
        archive = source.normalised(archive)
        told = source.describe(archive, by_hand, local.stem)
        # The same numbers as at home: computed in float32, whatever training here defaults to.
        pp = told.fields["pp"] | _statistics(told.fields["pp"], by_hand)
        config = completed(told.fields | {"pp": pp, "compute_dtype": "float32"})
        shapes = param_shapes(config, told.num_classes)
        table = source.rules(config, told.num_classes, **_variant(told.source))
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:  # sizes that no model has
        if isinstance(error, UserError):
            raise
        raise UserError(f"Expected a whole model in {local}, it contradicts itself: {first_line(error)}") from error
    params = to_ours(archive.tensors, table, shapes, IGNORED, any_numbers)
    return Weights(params, config, told.num_classes, told.class_names, told.source)


def _statistics(pp: Config, given: Told) -> dict[str, Any]:
    """Mean and deviation of the pixels: given by hand, else what the source has."""
    channels = pp["channels"]
    return {
        "mean": given.numbers("mean", pp["mean"], count=channels, least=-1000.0),
        "std": given.numbers("std", pp["std"], count=channels, least=SMALLEST_STD),
    }


def _variant(source: str) -> dict[str, Any]:
    return {"big_vision": True} if source == "big_vision" else {}


def param_shapes(config: Config, num_classes: int | None) -> dict[str, Shape]:
    """Shape of every parameter of a model, which is not built for it."""
    shapes = nnx.split(jax.eval_shape(lambda: build(config, num_classes)))[1]
    return {path: leaf.shape for path, leaf in flat_params(shapes).items()}


def refit(
    weights: Weights, *, num_classes: int | None = None, image_size: int | tuple[int, int] | None = None
) -> Weights:
    """The same weights for another number of classes (a new head of zeros) or another picture size (positions resampled).

    What was replaced is said in `notes`.
    """
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise UserError(f"Expected num_classes of at least 1, got {num_classes!r}.")
    params, config, notes = dict(weights.params), copy.deepcopy(weights.config), list(weights.notes)
    if image_size is not None and pair(image_size) != pair(config["pp"]["crop"]):
        old = _grid(config)
        if config["pp"]["resize"]:
            config["pp"]["resize"] = round(
                config["pp"]["resize"] * min(pair(image_size)) / min(pair(config["pp"]["crop"]))
            )
        config["pp"]["crop"] = image_size
        try:
            new = _grid(config)
        except ValueError as error:
            raise UserError(
                f"Expected an image_size for these weights, got {image_size}: {first_line(error)}"
            ) from error
        prefix = method_of(config).prefix
        for path, value in params.items():
            params[path] = regridded(path.removeprefix(prefix), value, old, new, weights.resampling)
            if params[path] is not value:
                way = "geometric" if path.endswith("relative_positions") else weights.resampling
                notes.append(f"{path.rpartition('/')[2]} resampled from {old} to {new} ({way})")
    classes = weights.num_classes
    if num_classes is not None and num_classes != classes:
        if config["objective"] != "classify":
            named = {"mae": "masked autoencoder"}.get(
                config["objective"], f"model of objective {config['objective']!r}"
            )
            raise UserError(f"Expected a classifier to give num_classes to, got a {named}: fine-tune it first.")
        classes = num_classes
        for path, shape in param_shapes(config, classes).items():
            if path.startswith(("head_out/", "head_dist/")):
                params[path] = np.zeros(shape, np.float32)
        notes.append(f"head of {weights.num_classes} classes replaced by one of {classes}, all zeros: train it")
    names = weights.class_names if classes == weights.num_classes else None
    return weights._replace(params=params, config=config, num_classes=classes, class_names=names, notes=tuple(notes))


def _grid(config: Config) -> tuple[int, int]:
    """Of patches, or of a tokenizer's codes."""
    return dvae_config(config).grid if config["objective"] == "tokenizer" else vit_config(config, None).grid


def write(weights: Weights, path: str | Path, to: str, *, dtype: str = "float32") -> list[str]:
    """Write in the format `to` (FORMATS): "google" .npz, "timm" .safetensors or .pth, "mae" and "beit" .pth,
    "hf" a folder.

    Returns the names written. `dtype="bfloat16"` halves the file (not for .npz, which has no such type).

    Raises:
      UserError: something there already, a model that the format has no place for, or a place that cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists():
        raise UserError(f"Expected a new file or folder, {path} exists: give another, or remove it.")
    config, classes = weights.config, weights.num_classes
    if config["objective"] == "tokenizer":
        raise UserError(f"Expected a ViT to write --to {to}, got a tokenizer: write --to native.")
    if dtype not in ("float32", "bfloat16") or (dtype == "bfloat16" and to == "google"):
        raise UserError(f"Expected float32, or bfloat16 for formats other than google, got {dtype} for {to}.")
    if to == "hf":
        return _write_folder(weights, path, dtype)
    if to == "google" and config["objective"] == "mae":
        raise UserError("Expected a classifier or encoder to write --to google, which has no place for a decoder.")
    # What Google's ViT code has no words for, big_vision's has.
    big_vision = config["model"]["classifier"] == "map" or not config["model"]["cls_position"]
    tables: dict[str, Any] = {
        "google": lambda: google.rules(config, classes, big_vision=big_vision),
        "timm": lambda: timm.rules(config, classes),
        "mae": lambda: timm.rules(config, classes, to="mae"),
        "beit": lambda: beit.rules(config, classes),
    }
    if to not in tables:
        raise UserError(f"Expected a format of {', '.join(FORMATS)}, got {to!r}.")
    suffixes = {"google": (".npz",), "timm": (".safetensors", ".pth")}.get(to, (".pth", ".safetensors"))
    if path.suffix not in suffixes:
        raise UserError(f"Expected a destination of {' or '.join(suffixes)} for --to {to}, got {path.name}.")
    table: list[Rule | Fixed] = tables[to]()
    tensors = to_theirs(weights.params, table)
    write_tensors(path, rounded(tensors, dtype), wrapped=to in ("mae", "beit"))
    return sorted(tensors)


def hidden_in_files(weights: Weights) -> dict[str, Any]:
    """What a file cannot show, to read back what was written: some of GIVEN."""
    config = weights.config
    known: dict[str, Any] = {
        "num_heads": config["model"]["transformer"]["num_heads"],
        "stored_size": pair(config["pp"]["crop"]),
    }
    if config["objective"] == "mae":
        known["decoder_num_heads"] = config["mae"]["decoder"]["num_heads"]
        known["normalised_target"] = config["mae"]["normalised_target"]
    return known


def rounded(tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The same tensors in `dtype`."""
    return {name: tensor.astype(np.dtype(dtype), copy=False) for name, tensor in tensors.items()}


def _write_folder(weights: Weights, path: Path, dtype: str) -> list[str]:
    config, classes = weights.config, weights.num_classes
    plain = config["model"]["key_bias"] and config["objective"] != "beit"
    source: ModuleType = huggingface if plain else hf_beit
    settings = source.settings_for(config, classes, weights.class_names) | {"dtype": dtype}
    tensors = to_theirs(weights.params, source.rules(config, classes))
    tensors = {source.stored(name, settings): tensor for name, tensor in tensors.items()}
    write_tensors(path / "model.safetensors", rounded(tensors, dtype))
    for name, told in (("config", settings), ("preprocessor_config", source.preprocessing_for(config))):
        (path / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")
    return sorted(tensors)
