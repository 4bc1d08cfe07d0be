"""What follows from other fields unless it is set by hand. Each such field is None in configs/, and is worked out here.

So a picture size, a length or a mask ratio can be changed alone, and what hangs on it goes along.
"""

from __future__ import annotations

from vit_jax.contracts import Config, UserError


def resize(pp: Config) -> int | None:
    """Short side in pixels before evaluation's centre crop; None: the whole picture is resized to the crop."""
    if pp["resize"] is not None or pp["crop_share"] is None:
        return pp["resize"]
    crop = pp["crop"] if isinstance(pp["crop"], int) else min(pp["crop"])
    return round(crop / pp["crop_share"])


def second_crop(pp: Config) -> tuple[int, int] | None:
    """(height, width) of the second view of every picture; None: there is none."""
    if pp["second_share"] is None:
        return None
    height, width = (pp["crop"], pp["crop"]) if isinstance(pp["crop"], int) else pp["crop"]
    return max(1, round(height * pp["second_share"])), max(1, round(width * pp["second_share"]))


def total_steps(config: Config, steps_per_epoch: int | float) -> int:
    """Optimiser steps of the run, from exactly one of `total_steps` and `total_epochs`.

    Raises:
      UserError: both or neither, or a length that comes to no step at all.
    """
    steps, epochs = config["total_steps"], config["total_epochs"]
    _one_of("total", steps, epochs)
    if steps is not None:
        return steps
    steps = round(epochs * steps_per_epoch)
    if steps < 1:
        raise UserError(
            f"Expected at least one step, {epochs:g} epochs of {steps_per_epoch:.3g} steps each come to none: lower "
            "config.batch, or raise config.total_epochs."
        )
    return steps


def warmup_steps(config: Config, steps_per_epoch: int | float) -> int:
    """Optimiser steps of the warm-up: `warmup_steps` or `warmup_epochs`, else `warmup_share` of the run (None: none)."""
    steps, epochs, share = (config[f"warmup_{unit}"] for unit in ("steps", "epochs", "share"))
    if steps is None and epochs is None:
        return round((share or 0.0) * total_steps(config, steps_per_epoch))
    _one_of("warmup", steps, epochs)
    return steps if steps is not None else round(epochs * steps_per_epoch)


def _one_of(name: str, steps: int | None, epochs: int | float | None) -> None:
    if (steps is None) == (epochs is None):
        raise UserError(
            f"Expected exactly one of {name}_steps and {name}_epochs, got {steps} and {epochs}: set the other to None."
        )


def in_words(config: Config, steps_per_epoch: int | float) -> list[str]:
    """What was worked out, for the run to say."""
    pp, found = config["pp"], []
    if pp["resize"] is None and pp["crop_share"] is not None:
        found.append(f"pp.resize {resize(pp)} (pp.crop {pp['crop']} is {pp['crop_share']:.4g} of it)")
    if second := second_crop(pp):
        found.append(f"second view of {second[0]} x {second[1]} pixels (pp.second_share {pp['second_share']:.4g})")
    if config["total_steps"] is None:
        found.append(f"total_steps {total_steps(config, steps_per_epoch)} (total_epochs {config['total_epochs']:g})")
    if config["warmup_steps"] is None:
        unit = "warmup_epochs" if config["warmup_epochs"] is not None else "warmup_share"
        found.append(f"warmup_steps {warmup_steps(config, steps_per_epoch)} ({unit} {config[unit] or 0:.4g})")
    return found
