"""Labels out of the features of a TFDS data set: a ClassLabel, several of them, flags, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vit_jax.contracts import UserError
from vit_jax.data.labels import Labels

ONE = ("label", "original_label")  # ReaL keeps ImageNet's own under the second name
SEVERAL = ("labels", "label", "attributes")  # VOC's, ours (`vit-jax prepare`), CelebA's
Reader = Callable[[Any], int | np.ndarray]


def label_reader(features: Any, labels: Labels | None, where: str) -> tuple[tuple[str, ...] | None, Reader]:
    """Names of the classes or numbers, and what gives a record's label.

    Where labels are asked for, `labels.columns` names their features. One class: a ClassLabel. Any number of classes: a
    Sequence(ClassLabel), or flags, each a feature of its own or all in one FeaturesDict. Numbers: scalars, or vectors.

    Raises:
      UserError: features that are not there, or that do not hold such labels.
    """
    asked = labels or Labels()
    keys = _keys(features, asked, where)
    if not keys:
        return None, lambda record: -1
    if asked.task == "classes":
        names = tuple(getattr(features[keys[0]], "names", None) or ())
        if len(keys) != 1 or not names or features[keys[0]].shape != ():
            raise _not_these(features, keys, asked.task, where)
        return names, lambda record: int(record[keys[0]])
    if asked.task == "multilabel" and len(keys) == 1:
        names = tuple(getattr(getattr(features[keys[0]], "feature", None), "names", None) or ())
        if names:
            return _same(names, asked, where), lambda record: _several(record[keys[0]], len(names))
    return _numbers(features, keys, asked, where)


def _keys(features: Any, asked: Labels, where: str) -> list[str]:
    if unknown := [key for key in asked.columns if key not in features]:
        raise UserError(
            f"Expected the features {', '.join(asked.columns)} in {where}, it has no {', '.join(unknown)} but "
            f"{', '.join(features)}: change config.label_columns."
        )
    usual = ONE if asked.task == "classes" else SEVERAL
    return list(asked.columns) or [key for key in usual if key in features][:1]


def _several(places: Iterable[Any], classes: int) -> np.ndarray:
    vector = np.zeros(classes, np.float32)
    vector[np.asarray(list(places), np.int64)] = 1.0
    return vector


def _numbers(features: Any, keys: list[str], asked: Labels, where: str) -> tuple[tuple[str, ...], Reader]:
    """One number for every scalar, several of a vector, in the order of the names that a model knows already."""
    found: dict[str, tuple[str, Any]] = {}  # name -> (feature, place within it)
    for key in keys:
        feature = features[key]
        if hasattr(feature, "items"):
            found |= {name: (key, name) for name in sorted(feature)}  # TFDS's file has no order of its own
            kinds = list(feature.values())
        elif getattr(feature, "shape", None) == ():
            found[key], kinds = (key, ()), [feature]
        elif len(getattr(feature, "shape", ()) or ()) == 1 and feature.shape[0]:
            found |= {f"{key}[{place}]": (key, place) for place in range(feature.shape[0])}
            kinds = [feature]
        else:
            raise _not_these(features, keys, asked.task, where)
        if any(getattr(kind, "names", None) or not _holds_numbers(kind) for kind in kinds):
            raise _not_these(features, keys, asked.task, where)
    order = [found[name] for name in _same(tuple(found), asked, where)]

    def label_of(record: Any) -> np.ndarray:
        vector = np.asarray([record[key][place] if place != () else record[key] for key, place in order], np.float32)
        right = np.isfinite(vector).all() if asked.task == "regression" else np.isin(vector, (0.0, 1.0)).all()
        if not right:
            raise UserError(
                f"Expected {'finite numbers' if asked.task == 'regression' else '0 or 1'} as labels of {where}, got "
                f"{vector[:8].tolist()}: change config.label_columns or config.task."
            )
        return vector

    return tuple(asked.names or found), label_of


def _holds_numbers(feature: Any) -> bool:
    dtype = getattr(feature, "np_dtype", None)
    return dtype is not None and np.dtype(dtype).kind in "biuf"


def _same(names: tuple[str, ...], asked: Labels, where: str) -> tuple[str, ...]:
    """The names a model knows, which these must be, in its order; `names` where it knows none."""
    if asked.names is not None and set(asked.names) != set(names):
        raise UserError(
            f"Expected the labels of the run ({', '.join(asked.names[:5])} ...), got those of {where} "
            f"({', '.join(names[:5])} ...): give --dataset with the same ones."
        )
    return names if asked.names is None else asked.names


def _not_these(features: Any, keys: list[str], task: str, where: str) -> UserError:
    return UserError(
        f"Expected labels for task {task!r} in {', '.join(keys)} of {where}, it holds "
        f"{', '.join(type(features[key]).__name__ for key in keys)}: change config.label_columns or config.task."
    )
