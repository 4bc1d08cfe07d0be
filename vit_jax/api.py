"""The public functions: make a model by its name, open what a run left."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vit_jax import configuration
from vit_jax.contracts import UserError
from vit_jax.conversion.convert import refit
from vit_jax.data.decoding import UnreadablePicture
from vit_jax.data.given import records_of
from vit_jax.data.transforms import Preprocess
from vit_jax.evaluation.features import Form, layer_features
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble, build
from vit_jax.models.vit import ViT
from vit_jax.ops.pixels import normalise
from vit_jax.places import Where
from vit_jax.weights import open_weights

log = logging.getLogger("vit_jax")


def create(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] = 224,
    channels: int = 3,
    compute_dtype: str = "float32",
    seed: int = 0,
    **fields: Any,
) -> ViT:
    """A freshly initialised ViT, a Flax NNX module from pictures "b H W c" (floats) to logits "b num_classes".

    Args:
      name: "ViT-{Ti,S,B,L,H,g,G}_{patch}", e.g. "ViT-B_16" (Dosovitskiy et al. 2021; Zhai et al. 2022 for g, G).
      num_classes: size of the head; None for the pooled features themselves.
      image_size: pixels, or (height, width); each a multiple of the patch.
      channels: 3 for colour.
      compute_dtype: "float32" or "bfloat16" for activations; parameters are float32.
      fields: any other field of `config.model`, e.g. classifier="gap", positions="sincos2d".

    Raises:
      UserError: an unknown name or field, or a size that is not a whole number of patches.
    """
    config = configuration.default_fields()
    try:
        config.model = configuration.model_config(name)
        config.model.lock()
        for field, value in fields.items():
            if isinstance(value, dict):  # a section: the fields given, the rest as they are
                config.model[field].update(value)
            else:
                config.model[field] = value
        config.pp.crop, config.pp.channels = image_size, channels
        config.compute_dtype, config.seed = compute_dtype, seed
        configuration.check(config)
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
            raise UserError(f"Expected num_classes from 1, or None for no head, got {num_classes}.")
        model = build(config, num_classes, seed)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{name} could not be made: {error}") from error
    assert isinstance(model, ViT)
    return model


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with all it needs to be used: `trained(pictures)` takes what a camera gives."""

    model: Any
    config: dict[str, Any]
    class_names: tuple[str, ...] | None
    step: int
    notes: tuple[str, ...] = ()  # what loading replaced: a new head, resampled positions

    def preprocess(self, pictures: Any) -> np.ndarray:
        """Pictures -> uint8 "b H W c", cropped as in this run's evaluation.

        Args:
          pictures: a path, encoded bytes, a Pillow picture, a uint8 array (H, W) or (H, W, c) of 1, 3 or 4 channels; or
            a list of such, or an array (b, H, W, c). One picture is a batch of one.

        Raises:
          UserError: anything else, or a picture that cannot be read.
        """
        evaluate = Preprocess.from_config(self.config["pp"]).evaluate
        try:
            return np.stack([evaluate(record).image for record in records_of(pictures)])
        except UnreadablePicture as error:
            raise UserError(f"Expected pictures, this one cannot be read: {error}.") from error

    def pixels(self, pictures: Any) -> jax.Array:
        """Pictures (see `preprocess`) -> preprocessed and normalised: what the model takes."""
        return self.normalised(self.preprocess(pictures))

    def normalised(self, images: np.ndarray) -> jax.Array:
        """What `preprocess` gave -> what the model takes."""
        return normalise(jax.numpy.asarray(images), self.config["pp"]["mean"], self.config["pp"]["std"])

    def __call__(self, pictures: Any) -> jax.Array:
        """Logits "b num_classes" of pictures (see `preprocess`); of a masked autoencoder the encoded tokens "b t d"."""
        encoder = self.encoder
        return encoder(self.pixels(pictures)) if encoder is self.model else encoder.features(self.pixels(pictures))

    @property
    def encoder(self) -> ViT:
        """The backbone: the model itself, of a masked autoencoder its encoder.

        Raises:
          UserError: a model without one that gives features.
        """
        backbone = method_of(self.config).backbone(self.model)
        if not hasattr(backbone, "features"):
            raise UserError(
                f"Expected a model with features of pictures, objective {self.config['objective']!r} trains a "
                f"{type(self.model).__name__}, which has none: use `vit-jax reconstruct` or `eval`."
            )
        return backbone


def load(
    path: Where,
    *,
    step: int | None = None,
    averaged: bool = True,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    **given: Any,
) -> Trained:
    """What a run of this library left in a workdir, or anyone's published weights.

    Args:
      path: a workdir; or Google's .npz, MAE's, DeiT's, BEiT's and timm's .pth and .safetensors, a Hugging Face folder;
        local, a name that `vit-jax models` lists ("deit/ti16"), `https://...`, `gs://...` or `hf:owner/name`.
      step: of a workdir, an earlier step that is still there.
      averaged: of a workdir, use the moving average of the parameters where the run kept one.
      num_classes: another number of classes than the file has: a new head of zeros, which `notes` says.
      image_size: another picture size than the file has: positions are resampled as the source's own code does it.
      given: what a file cannot show: num_heads, decoder_num_heads, stored_size (pixels of its training, where they were
        not square), normalised_target (of a MAE with decoder), mean and std of its pixels; any_numbers=True takes complex
        and whole numbers, and such as are not finite.

    Raises:
      UserError: no checkpoint there, an unknown format, a damaged file, or tensors that do not match, all of them listed.
    """
    kind = configuration.fields()["pp.crop"].kind
    if image_size is not None and not kind.holds(image_size):
        raise UserError(f"Expected image_size to be {kind.words}, got {configuration.shown(image_size)}.")
    if num_classes is not None and num_classes < 1:
        raise UserError(f"Expected num_classes from 1, or None for the file's own head, got {num_classes}.")
    weights, found = open_weights(path, step=step, averaged=averaged, **given)
    weights = refit(weights, num_classes=num_classes, image_size=image_size)
    for note in weights.notes:
        log.warning("%s: %s", path, note)
    model = assemble(weights.config, weights.num_classes, weights.params)
    return Trained(model, weights.config, weights.class_names, found, weights.notes)


def features(
    model: Any,
    images: Any,
    layers: Sequence[int] = (-1,),
    form: Form = "tokens",
) -> list[jax.Array]:
    """Features of inner layers, one array a layer.

    Args:
      model: what `load` gave, of a masked autoencoder its encoder is used; or a backbone such as `create` gives.
      images: with what `load` gave, pictures as `Trained.preprocess` takes them; with a model itself, pixels "b H W c".
      layers: blocks from 0, or from the end with -1.
      form: "tokens" (b, tokens, d), "NHWC" (b, rows, columns, d) for dense use, "pooled" (b, d).

    Raises:
      UserError: a layer that the model does not have, or another form.
    """
    encoder, pixels = taken(model, images)
    try:
        return layer_features(encoder, pixels, layers, form)
    except ValueError as error:
        raise UserError(str(error)) from error


def taken(model: Any, images: Any) -> tuple[ViT, jax.Array]:
    """The backbone and the pixels "b H W c" that it takes, of what `features` is given."""
    if isinstance(model, Trained):
        return model.encoder, model.pixels(images)
    if getattr(images, "ndim", None) != 4:
        raise UserError(
            f'Expected an array of pixels "b H W c" for a model, got {getattr(images, "shape", type(images).__name__)}: '
            "pictures are taken with what `load` gave."
        )
    return model, jax.numpy.asarray(images)
