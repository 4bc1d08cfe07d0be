"""Vision Transformers and masked image modelling in JAX.

The public names are loaded on first use, so `import vit_jax` costs nothing and starts no accelerator.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.api import Trained, create, features, load
    from vit_jax.contracts import UserError
    from vit_jax.fitting import finetune, fit
    from vit_jax.looking import attention, reconstruct, shard
    from vit_jax.reporting.making import report
    from vit_jax.training.tracker import read_metrics

__version__ = "0.1.0"
__all__ = [
    "Trained",
    "UserError",
    "attention",
    "create",
    "features",
    "finetune",
    "fit",
    "load",
    "read_metrics",
    "reconstruct",
    "report",
    "shard",
]

_HOMES = {
    "UserError": "vit_jax.contracts",
    **dict.fromkeys(("create", "features", "load", "Trained"), "vit_jax.api"),
    **dict.fromkeys(("fit", "finetune"), "vit_jax.fitting"),
    "report": "vit_jax.reporting.making",
    **dict.fromkeys(("attention", "reconstruct", "shard"), "vit_jax.looking"),
    "read_metrics": "vit_jax.training.tracker",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vit_jax' has no attribute {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
