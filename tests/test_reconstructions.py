"""What `reconstruct` shows: visible pixels as they are, hidden ones grey or predicted, normalised targets undone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.methods.mae import MAE, MAEConfig, reconstructed
from vit_jax.models.layers import TransformerConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.ops.masks import make_mask
from vit_jax.visualisation import curves, reconstructions

SMALL = TransformerConfig(hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32)


@pytest.mark.parametrize("normalised", [False, True])
def test_reconstruct(normalised):
    encoder = ViTConfig(SMALL, (8, 16), (4, 4), cls_token=True, positions="sincos2d_mae", train_positions=False)
    model = MAE(MAEConfig(encoder, SMALL, 3, normalised_target=normalised), rngs=nnx.Rngs(0))
    # a model that predicts zero everywhere: the middle of the range, or each patch's true mean
    model.predict.kernel[...] = jnp.zeros_like(model.predict.kernel[...])
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 3), dtype=np.uint8)
    mask = make_mask("random", jax.random.split(jax.random.key(0), 2), (2, 4), 3)
    drawing = reconstructed(model, jnp.asarray(images), {"pp": {"mean": (0.5,), "std": (0.5,)}}, mask)
    original, masked, prediction, pasted = drawing.columns.values()
    hidden = np.repeat(np.repeat(np.asarray(mask.hidden).reshape(2, 2, 4), 4, 1), 4, 2)

    np.testing.assert_allclose(original, images / 255, atol=1e-6)
    np.testing.assert_array_equal(masked[hidden], 0.5)
    np.testing.assert_array_equal(masked[~hidden], original[~hidden])
    np.testing.assert_allclose(pasted[~hidden], original[~hidden], atol=1e-6)
    np.testing.assert_array_equal(pasted[hidden], prediction[hidden])
    for row in range(2):
        for place in np.flatnonzero(mask.hidden[row]):
            part = np.s_[row, 4 * (place // 4) : 4 * (place // 4) + 4, 4 * (place % 4) : 4 * (place % 4) + 4]
            expected = original[part].mean() if normalised else 0.5
            np.testing.assert_allclose(prediction[part], expected, atol=1e-5)
    assert prediction[~hidden].min() >= 0.8  # dimmed: it means nothing there
    assert np.ptp(prediction[~hidden]) <= 0.2
    figure = reconstructions.draw(*drawing)
    assert len(figure.axes) == 8
    note = " ".join(figure.get_supxlabel().split())  # it is broken into lines
    assert "dimmed" in note
    assert ("true patch" in note) == normalised


def test_curves_draw_what_was_written():
    rows = [{"step": s, "kind": "train", "loss": 1 / s, "baseline": 1.0, "lr": 0.1 * s} for s in (1, 2, 3)]
    figure = curves.draw([*rows, {"step": 3, "kind": "eval", "loss": 0.5, "accuracy": 0.25}])
    losses, others, rate = figure.axes
    assert {line.get_label() for line in losses.lines} == {"train loss", "train baseline", "test loss"}
    np.testing.assert_allclose(others.lines[0].get_ydata(), [0.25])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.1, 0.2, 0.3])
