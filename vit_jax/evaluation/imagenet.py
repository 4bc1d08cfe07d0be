"""The rules of ImageNet's other test sets: ReaL's several right answers, class subsets, mean corruption error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from vit_jax.ops.ranking import chance_right

# Top-1 errors of AlexNet by corruption, mean over the five severities (Hendrycks and Dietterich 2019).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)


def accuracy(
    logits: Float[np.ndarray, "n c"], answers: Sequence[Collection[int]], classes: Collection[int] | None = None
) -> float:
    """Share of pictures whose best class is among their right answers; pictures without any are left out.

    One answer each is plain top-1; ReaL has several, or none (Beyer et al. 2020, "Are we done with ImageNet?"). Ties count
    for their share and NaN is wrong (ops.ranking); NaN itself where no picture has an answer.

    Args:
      classes: those to choose among, the answers' own included (ImageNet-A and -R hold 200 of the 1000); None: all.
    """
    kept = np.arange(logits.shape[1]) if classes is None else np.asarray(sorted(classes))
    column = {int(label): place for place, label in enumerate(kept)}
    pairs = [(row, column[label]) for row, labels in enumerate(answers) for label in set(labels)]
    judged = sum(1 for labels in answers if len(labels))
    if not judged:
        return float("nan")
    rows, labels = np.asarray(pairs).T
    # Only one class comes first, so the chances of a picture's several answers add up.
    return float(np.asarray(chance_right(logits[:, kept][rows], labels)).sum() / judged)


def mean_corruption_error(errors: Mapping[tuple[str, int], float]) -> float:
    """Of ImageNet-C, in units of AlexNet's: the mean over corruptions of (sum over severities) / (AlexNet's sum).

    Raises:
      ValueError: a corruption or severity that is missing or NaN, all of them named.
    """
    wanted = [(name, severity) for name in ALEXNET_ERRORS for severity in SEVERITIES]
    missing = [
        f"{name}_{severity}" for name, severity in wanted if not np.isfinite(errors.get((name, severity), np.nan))
    ]
    if missing:
        raise ValueError(f"Expected errors of 15 corruptions at 5 severities, missing: {', '.join(missing)}.")
    shares = [np.mean([errors[name, s] for s in SEVERITIES]) / alexnet for name, alexnet in ALEXNET_ERRORS.items()]
    return float(np.mean(shares))
