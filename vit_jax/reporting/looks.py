"""What a run's model does with a few of its test pictures: fills them in, or names them; where it looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from vit_jax.api import Trained, load
from vit_jax.contracts import Batch, UserError
from vit_jax.data.decoding import UnreadablePicture
from vit_jax.data.loader import eval_batches, spread_batch
from vit_jax.data.sources import Source
from vit_jax.data.transforms import Preprocess
from vit_jax.devices import use_compilation_cache
from vit_jax.evaluation.answers import Judged, chosen
from vit_jax.evaluation.attention import attention, rollout, to_patches
from vit_jax.frozen import opened
from vit_jax.judging import judge, open_tests, said_of
from vit_jax.methods import method_of
from vit_jax.methods.method import Drawing
from vit_jax.reporting.mistakes import Mistake, worst
from vit_jax.reporting.runs import Told

SHOWN = 8  # pictures filled in or looked at
BATCH = 64  # at most: a laptop's memory
MOST_TOKENS = 1025  # of which attention is shown: the weights grow with their square


class Answers(NamedTuple):
    """What a classifier or regression said of so many of the test pictures."""

    pictures: int
    of: int
    metrics: dict[str, float]
    judged: Judged
    names: tuple[str, ...]
    mistakes: list[Mistake]
    why_not_all: str  # empty where all were looked at


class Looks(NamedTuple):
    """Everything that took the model; what is missing is said in `notes`."""

    step: int | None = None
    drawing: Drawing | None = None
    drawn: epath.Path | None = None  # in its place, what the run itself drew
    attention: dict[str, list[np.ndarray]] | None = None
    answers: Answers | None = None
    notes: tuple[str, ...] = ()


def without_model(told: Told, why: str) -> Looks:
    """What can be shown of a run whose model or pictures are not to be had."""
    drawn = told.workdir / "figures" / "reconstructions.png"
    return Looks(drawn=drawn if drawn.is_file() else None, notes=(why,))


def look(told: Told, pictures: int, seconds: int | float) -> Looks:
    """Open the last checkpoint and ask it about `pictures` of the test pictures, for about so many seconds at most."""
    use_compilation_cache()
    try:
        trained = load(told.workdir)
        source = open_tests(trained)
        batch = spread_batch(source, Preprocess.from_config(trained.config["pp"]), SHOWN)
    except UserError as error:
        return without_model(told, f"Nothing of the model is shown. {error}")
    notes: list[str] = []

    def tried(made: Callable[..., Any], *given: Any) -> Any:
        """None, and a note, for what this run does not have or this machine cannot do."""
        try:
            return made(*given)
        except UserError as error:
            notes.append(str(error))
            return None

    drawing = tried(filled_in, trained, batch)
    return Looks(
        trained.step,
        drawing,
        None if drawing else without_model(told, "").drawn,
        tried(looked_at, trained, batch),
        tried(answered, trained, source, pictures, seconds) if method_of(trained.config).labels else None,
        tuple(notes),
    )


def filled_in(trained: Trained, batch: Batch) -> Drawing | None:
    """What the method shows of pictures, where it shows any."""
    picture = method_of(trained.config).picture
    if picture is None or not len(batch.image):
        return None
    networks = opened(trained.config)[1].whole()
    return picture(trained.model, jnp.asarray(batch.image), trained.config, **networks)


def looked_at(trained: Trained, batch: Batch) -> dict[str, list[np.ndarray]] | None:
    """Maps by title: attention of the last block, its heads averaged, and rollout, over each picture."""
    if not hasattr(method_of(trained.config).backbone(trained.model), "features"):
        return None  # a tokenizer: no attention
    encoder = trained.encoder
    tokens = encoder.cfg.num_patches + encoder.cfg.num_prefix
    if tokens > MOST_TOKENS:
        raise UserError(f"Attention is not shown: {tokens:,} tokens are too many for a page.")
    pixels = trained.normalised(batch.image)
    (last,) = attention(encoder, pixels, [-1])
    maps = {"last block": last.mean(axis=1), "rollout": rollout(encoder, pixels)}
    return {"picture": list(batch.image)} | {title: list(to_patches(encoder, found)) for title, found in maps.items()}


def answered(trained: Trained, source: Source, pictures: int, seconds: int | float) -> Answers:
    """Ask about pictures from all over the test set; stop where time is up, which comes to a random sample of them."""
    config, preprocess = trained.config, Preprocess.from_config(trained.config["pp"])
    some = Shuffled(source, pictures)
    size = min(config["batch_eval"], BATCH, len(some))
    rows: list[int] = []
    batches = eval_batches(some, preprocess, batch=size, max_unreadable=config["max_unreadable"])
    try:
        metrics, said, labels = said_of(trained, _noted(batches, size, rows, seconds), lambda answers: answers)
    finally:
        batches.close()
    names = tuple(trained.class_names or source.class_names or ())
    kept = np.asarray(chosen(jnp.asarray(said))) if config["task"] == "classes" else said

    def seen(row: int) -> np.ndarray:
        try:
            return preprocess.evaluate(some[rows[row]]).image
        except UnreadablePicture as error:
            raise UserError(f"A picture was there and cannot be read any more: {error}.") from error

    judged = judge(config, kept, labels, names)
    mistakes = [found._replace(image=seen(found.row)) for found in worst(config, said, labels, names)]
    why = "" if len(said) == len(source) else f"a random {len(said):,} of the {len(source):,} test pictures"
    return Answers(len(said), len(source), metrics | judged.whole, judged, names, mistakes, why)


class Shuffled:
    """So many records of a source in random order, always the same one."""

    def __init__(self, source: Source, count: int):
        self.whole, self.name, self.class_names = source, source.name, source.class_names
        self.indices = np.random.default_rng(0).permutation(len(source))[:count]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.whole[int(self.indices[index])]


def _noted(batches: Iterator[Batch], size: int, rows: list[int], seconds: int | float) -> Iterator[Batch]:
    """The batches until time is up, at least one; `rows` gets the places of the pictures in them that could be read."""
    until = time.monotonic() + seconds
    for number, batch in enumerate(batches):
        rows += (number * size + np.flatnonzero(batch.weight > 0)).tolist()
        yield batch
        if time.monotonic() > until:
            return
