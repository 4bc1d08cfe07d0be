"""The ResNet stem trains: the gradient of its pooling by hand and beside PyTorch's, then a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import train
from vit_jax.models.resnet import max_pool

# A row of windows by hand. 4 wide: columns 0-2 and 2-4 (the fifth is border). 5 wide: border-1, 1-3, 3-border.
ROWS = [
    ([1, 5, 3, 2], [5, 3], [0, 1, 1, 0]),
    ([4, 4, 4, 4], [4, 4], [1, 0, 1, 0]),  # the first of equals
    ([1, 2, 9, 3, 0], [2, 9, 3], [0, 1, 1, 1, 0]),
    ([-7, -7, -8, -9, -9], [-7, -7, -9], [1, 1, 0, 1, 0]),  # a border of zeros would win
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("row", "largest", "gradient"), ROWS)
def test_pooling_and_its_gradient_by_hand(row, largest, gradient, dtype):
    x = jnp.asarray(row, dtype)[None, None, :, None]
    found, found_gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(max_pool(x))))(x)
    assert max_pool(x).dtype == found_gradient.dtype == dtype
    np.testing.assert_array_equal(max_pool(x).reshape(-1).astype(jnp.float32), largest)
    np.testing.assert_array_equal(found_gradient.reshape(-1).astype(jnp.float32), gradient)
    assert float(found) == sum(largest)


@pytest.mark.parametrize("side", [7, 8])
def test_gradient_of_pooling_is_pytorchs(side):
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    x = np.random.default_rng(0).integers(0, 5, (2, side, side, 3)).astype(np.float32)  # many ties
    ours = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x) ** 2)))(jnp.asarray(x))
    theirs = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    before = 1 if side % 2 else 0
    padded = torch.nn.functional.pad(theirs, (before, 1, before, 1), value=-float("inf"))
    torch.nn.functional.max_pool2d(padded, 3, 2).square().sum().backward()
    np.testing.assert_array_equal(ours, theirs.grad.numpy().transpose(0, 2, 3, 1))


def test_a_hybrid_is_trained_and_evaluated(small, tmp_path):
    config = small("scratch", total_steps=2, warmup_steps=0, checkpoint_every=1, compute_dtype="bfloat16", base_lr=0.1)
    config.pp.crop = 16
    config.model.resnet.num_layers = ()  # R+Ti/16's: the root and its pooling
    result = train.run(config, tmp_path)
    assert (result.step, np.isfinite(result.metrics["loss"])) == (2, True)
    assert "stem/conv_root/kernel" in (tmp_path / "parameters.txt").read_text()
