"""Learning-rate schedules: a linear warm-up times a named shape of the progress after it."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.contracts import Config, UserError

Shape = Callable[[Float[Array, ""]], Float[Array, ""]]
Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]

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

    Warm-up: lr * step / warmup_steps, so the first step has rate 0 (MAE util/lr_sched.py; Google's utils.py).
    """
    kind = config["decay_type"]
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
    peak, end = peak_lr(config), config["end_lr"]

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        decayed = end + (peak - end) * shape(progress)
        return jnp.where(step < warmup_steps, peak * step / max(warmup_steps, 1), decayed)

    return schedule


def peak_lr(config: Config) -> float:
    """`base_lr`, times batch / lr_scaling where the recipe scales it (lr_scaling 256 in MAE; None: as it is)."""
    scale = config["lr_scaling"]
    return config["base_lr"] * (config["batch"] / scale if scale else 1.0)
