"""Learning-rate schedules: a linear warm-up times a named shape of the progress after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax import derived
from vit_jax.contracts import Config, UserError

Shape = Callable[[Float[Array, ""]], Float[Array, ""]]
Rate = Callable[[Int[Array, ""] | int], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate of a step; the part of it, if any, that all parameters share, whatever their layer decay."""

    rate: Rate
    shared: Rate | None = None

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        return self.rate(step)


# progress in [0, 1] after the warm-up -> factor between 1 (base_lr) and 0 (end_lr)
SHAPES: dict[str, Shape] = {
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "constant": lambda progress: jnp.ones_like(progress),
}


def step_shape(boundaries: tuple[float, ...], factor: float) -> Shape:
    """Multiply by `factor` at each boundary, given as a share of the progress."""

    def shape(progress: Float[Array, ""]) -> Float[Array, ""]:
        passed = jnp.sum(progress >= jnp.asarray(boundaries, jnp.float32))
        return jnp.asarray(factor, jnp.float32) ** passed

    return shape


def make_schedule(config: Config, total_steps: int, warmup_steps: int) -> Schedule:
    """The learning rate of a step, counted from 0, as `config` says (`decay_type`, `end_lr`, `base_lr`, `lr_scaling`).

    `config.schedule` says how steps are counted: "google": warm-up from `warmup_lr` at step 0, decay from its end on (MAE
    util/lr_sched.py; Google's utils.py). "beit": the same, the warm-up reaching the peak one step earlier (a linspace with
    both ends; unilm/beit utils.py). "simmim": one step late, as its scheduler is called after the optimiser with the same
    number, the decay counted from step 0, and layer decay acting on the peak alone, not on `warmup_lr` and `end_lr`.
    """
    kind, origin = config["decay_type"], config["schedule"]
    if kind == "step":
        shape = step_shape(tuple(config["decay_boundaries"]), config["decay_factor"])
    elif kind in SHAPES:
        shape = SHAPES[kind]
    else:
        raise UserError(f"Expected decay_type of {sorted([*SHAPES, 'step'])}, got {kind!r}: change decay_type.")
    if warmup_steps >= total_steps and total_steps > 0 and warmup_steps > 0:
        raise UserError(
            f"Expected fewer warm-up steps than the {total_steps} steps of the run, got {warmup_steps}: "
            "change warmup_steps or total_steps."
        )
    start, peak, end = config["warmup_lr"], peak_lr(config), config["end_lr"]
    late = origin == "simmim"
    rising = max(warmup_steps - (origin == "beit"), 1)

    def counted(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        return jnp.maximum(step - 1, 0) if late else step

    def decay(step: Float[Array, ""]) -> Float[Array, ""]:
        first = 0 if late else warmup_steps
        return shape(jnp.clip((step - first) / max(total_steps - first, 1), 0.0, 1.0))

    def rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = counted(step)
        return jnp.where(step < warmup_steps, start + (peak - start) * step / rising, end + (peak - end) * decay(step))

    def shared(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = counted(step)
        return jnp.where(step < warmup_steps, start * (1 - step / rising), end * (1 - decay(step)))

    return Schedule(rate, shared if late else None)


def schedule_of(config: Config, steps_per_epoch: int | float) -> Schedule:
    """The same, of a run over so many batches a pass."""
    total, warmup = (length(config, steps_per_epoch) for length in (derived.total_steps, derived.warmup_steps))
    return make_schedule(config, total, warmup)


def peak_lr(config: Config) -> float:
    """`base_lr`, times batch / lr_scaling where the recipe scales it (lr_scaling 256 in MAE; None: as it is)."""
    scale = config["lr_scaling"]
    return config["base_lr"] * (config["batch"] / scale if scale else 1.0)
