"""Ways to train, one file each: what a method adds to a backbone, what it prepares once a batch, its loss, what to look at.

`config.objective` names a method of this table, or a user's own as `package.module:NAME`. Nothing else asks for a name.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from vit_jax.contracts import Config, UserError, first_line

if TYPE_CHECKING:
    from vit_jax.methods.method import Method

METHODS = {
    "classify": "vit_jax.methods.classification:METHOD",
    "mae": "vit_jax.methods.mae:METHOD",
    "simmim": "vit_jax.methods.simmim:METHOD",
    "patch_prediction": "vit_jax.methods.patch_prediction:METHOD",
    "beit": "vit_jax.methods.beit:METHOD",
    "tokenizer": "vit_jax.methods.tokenizer:METHOD",
}


def method_of(config: Config) -> Method:
    """The method that `config.objective` names.

    Raises:
      UserError: no method of that name, or a module of one's own that cannot be imported or has none.
    """
    from vit_jax.methods.method import Method

    module, name = located(config["objective"]).split(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Expected config.objective={config['objective']} to name a method, it cannot be imported "
            f"({first_line(error)}): give package.module:NAME of an installed package, or one of {', '.join(METHODS)}."
        ) from error
    if not isinstance(found, Method):
        raise UserError(
            f"Expected config.objective={config['objective']} to name a vit_jax.methods.method.Method, it is "
            f"{type(found).__name__}."
        )
    return found


def located(objective: str) -> str:
    """`package.module:NAME` of a method, ours by their short names."""
    if objective in METHODS:
        return METHODS[objective]
    if objective.count(":") == 1 and all(part for part in objective.split(":")):
        return objective
    near = difflib.get_close_matches(objective, METHODS, n=1)
    raise UserError(
        f"Expected config.objective of {', '.join(METHODS)}, or your own as package.module:NAME, got {objective!r}"
        f"{f'; did you mean {near[0]}?' if near else '.'}"
    )
