"""Another length for a run that has begun: allowed where every step it has taken would have been the same one.

What hangs on a run's length does so through schedules: the learning rate, and the numbers that an objective changes over the
run. So those of the old and the new configuration are compared at the steps taken, and nothing else needs to be known.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vit_jax import derived
from vit_jax.contracts import Config, UserError
from vit_jax.methods import method_of
from vit_jax.training.schedules import schedule_of

Numbers = Callable[[Int[Array, ""]], dict[str, Float[Array, ""]]]


# What a checkpoint's metadata says of the data: field -> in words.
DATA = {
    "class_names": "classes",
    "training_pictures": "numbers of training pictures",
    "test_pictures": "numbers of test pictures",
}


class Data(NamedTuple):
    """What a schedule asks of the data."""

    steps_per_epoch: float
    num_classes: int | None


class Difference(NamedTuple):
    """The first step taken at which a number would have been another one."""

    name: str
    step: int
    was: float
    would_be: float


def check_data(ours: Mapping[str, Any], stored: Mapping[str, Any], workdir: str) -> None:
    """Whether a run goes on with the data it began with, as far as a checkpoint's metadata can tell.

    With pictures more or fewer a folder is split anew, and some that were trained on would be tested on.

    Raises:
      UserError: another number of pictures, or other classes.
    """
    for name, words in DATA.items():
        was, now = stored.get(name), ours[name]
        if was is not None and was != now:  # earlier versions did not count
            told = _first_difference(was, now) if isinstance(was, list) else f"{now:,} (there {was:,})"
            raise UserError(
                f"Expected the data that {workdir} was trained on, the {words} differ: {told}. Bring back the same "
                f"data, or give another --workdir and --config.init_from={workdir}."
            )


def _first_difference(was: Sequence[str], now: Sequence[str] | None) -> str:
    found = itertools.zip_longest(was, now or (), fillvalue="none")
    number, (old, new) = next((place, pair) for place, pair in enumerate(found) if pair[0] != pair[1])
    return f"number {number} is {new!r} (there {old!r})"


def check(config: Config, stored: Config, done: int, data: Data, changed: Sequence[str], workdir: str) -> None:
    """Whether a run of `stored` may go on after `done` steps as one of `config`.

    Args:
      changed: the fields of a schedule that differ.

    Raises:
      UserError: fewer steps than were taken, or a schedule by which these would have been others.
    """
    total = derived.total_steps(config, data.steps_per_epoch)
    if total < done:
        raise UserError(
            f"Expected a run of at least the {done} steps that {workdir} has taken, got {total}: raise total_steps or "
            "total_epochs, or give another --workdir."
        )
    ours = _changed(config, base_lr=stored["base_lr"])  # a rate that was changed by hand says so by itself
    found = difference(ours, stored, done, data) if changed else None
    if found is None:
        return
    warmup = derived.warmup_steps(stored, data.steps_per_epoch)
    kept = _changed(ours, warmup_steps=warmup, warmup_epochs=None)
    if warmup < total and difference(kept, stored, done, data) is None:
        advice = f"keep its warm-up with --config.warmup_steps={warmup}"
    else:
        advice = f"to train on from what it learned give another --workdir and --config.init_from={workdir}"
    words = ", ".join(f"{field} {config[field]} (there {stored[field]})" for field in changed)
    raise UserError(
        f"Expected the {done} steps that {workdir} has taken to be the same with {words}, the {found.name} of step "
        f"{found.step} was {found.was:.6g} and would have been {found.would_be:.6g}: {advice}."
    )


def grows(config: Config, data: Data) -> bool:
    """Whether a run of `config`, once finished, may go on with a larger length."""
    total = derived.total_steps(config, data.steps_per_epoch)
    return difference(_changed(config, total_steps=2 * total, total_epochs=None), config, total, data) is None


def difference(ours: Config, theirs: Config, done: int, data: Data) -> Difference | None:
    """The first one in the steps 0 to `done` - 1, bit for bit; None where all are the same."""
    new, old = (_over(_numbers(config, data), done) for config in (ours, theirs))
    found = [
        Difference(name, int(step), float(old[name][step]), float(new[name][step]))
        for name in old
        for step in np.flatnonzero(new[name] != old[name])[:1]
    ]
    return min(found, key=lambda one: one.step, default=None)


def _changed(config: Config, **fields: Any) -> Config:
    return {name: config[name] for name in config} | fields


def _numbers(config: Config, data: Data) -> Numbers:
    schedule = schedule_of(config, data.steps_per_epoch)
    changing = method_of(config).objective(config, data.num_classes).schedules

    def at(step: Int[Array, ""]) -> dict[str, Float[Array, ""]]:
        rates = {"learning rate": schedule.rate(step)}
        if schedule.shared is not None:
            rates["shared part of the learning rate"] = schedule.shared(step)
        return rates | changing(step)

    return at


def _over(numbers: Numbers, done: int) -> Mapping[str, Any]:
    return jax.device_get(jax.jit(jax.vmap(numbers))(jnp.arange(done)))
