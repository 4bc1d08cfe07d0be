"""Where a run's numbers go besides metrics.jsonl. One more is a file here and a line in LOGGERS."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from vit_jax.contracts import UserError
from vit_jax.loggers.logger import Begun, Logger
from vit_jax.loggers.tensorboard import TensorBoard
from vit_jax.loggers.weights_and_biases import WeightsAndBiases

LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def check(names: Sequence[str]) -> None:
    """Raise `UserError` for a logger that there is not, or whose package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"Expected config.loggers of {', '.join(LOGGERS)}, got {name!r}: change config.loggers.")
        found = importlib.util.find_spec(LOGGERS[name].package)
        if found is None or found.origin is None:  # a folder of that name, as W&B leaves behind, is no package
            raise UserError(
                f"Expected the package {LOGGERS[name].package}, which config.loggers asks for, it is not installed: "
                f'`pip install "{LOGGERS[name].install}"`, or leave {name!r} out of config.loggers.'
            )


def opened(names: Sequence[str], begun: Begun) -> list[Logger]:
    """The loggers of these names, each once. Raises as `check`."""
    check(names)
    return [LOGGERS[name](begun) for name in dict.fromkeys(names)]
