"""Formulas against numbers worked by hand or by another formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tolerances
from vit_jax.ops import losses, masks, means, mixing, patches, pixels, positions
from vit_jax.ops.keys import key_for


def test_patches_are_row_column_channel_and_come_back():
    images = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    rows = patches.patchify(images, (2, 3))
    assert rows.shape == (2, 4, 18)
    np.testing.assert_array_equal(rows[0, 1], images[0, 0:2, 3:6].reshape(-1))
    np.testing.assert_array_equal(patches.unpatchify(rows, (2, 2), (2, 3)), images)


def test_grid_must_be_whole():
    assert patches.grid_of((32, 48), (16, 8)) == (2, 6)
    for size in ((30, 32), (8, 16)):
        with pytest.raises(ValueError, match=r"change pp\.crop or model\.patches\.size"):
            patches.grid_of(size, (16, 16))


def test_sincos_tables_by_hand():
    mae = positions.sincos2d((2, 3), 8, "mae")
    # token 1 is row 0, column 1: x = 1, y = 0; omega = 1, 10000^(-1/2)
    np.testing.assert_allclose(mae[1], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01), 0, 0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(mae[3, 4:], [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)], atol=1e-7)
    big_vision = positions.sincos2d((2, 3), 8, "big_vision")
    np.testing.assert_allclose(big_vision[1, :2], [np.sin(1), np.sin(1e-4)], atol=1e-7)
    assert (
        np.abs(positions.sincos2d((14, 14), 768, "mae") - positions.sincos2d((14, 14), 768, "big_vision")).max() > 0.02
    )
    with pytest.raises(ValueError, match="divisible by 4"):
        positions.sincos2d((2, 2), 6, "mae")


@pytest.mark.parametrize(("old", "new"), [((3, 4), (7, 5)), ((4, 4), (2, 3)), ((14, 14), (24, 24))])
def test_google_resampling_is_scipys_zoom(old, new):
    from scipy.ndimage import zoom

    table = np.random.default_rng(0).normal(size=(1 + old[0] * old[1], 3)).astype(np.float32)
    ours = positions.resample_table(table, old, new, "google")
    theirs = zoom(table[1:].reshape(*old, 3), (new[0] / old[0], new[1] / old[1], 1), order=1).reshape(-1, 3)
    np.testing.assert_array_equal(ours[0], table[0])
    np.testing.assert_allclose(ours[1:], theirs, atol=tolerances.EXACT)


@pytest.mark.parametrize(("old", "new"), [((3, 4), (7, 5)), ((14, 14), (24, 24)), ((7, 28), (14, 14))])
def test_bicubic_resampling_is_torchs(old, new):
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    table = np.random.default_rng(0).normal(size=(old[0] * old[1], 3)).astype(np.float32)
    ours = positions.resample_table(table, old, new, "bicubic")
    grid = torch.tensor(table.reshape(1, *old, 3)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(-1, 3).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(masks.SCORES))
@pytest.mark.parametrize("num_visible", [1, 7, 20, 24])
def test_masks_hide_the_right_number_and_restore_the_order(kind, num_visible):
    keys = jax.random.split(jax.random.key(3), 5)
    mask = masks.make_mask(kind, keys, (4, 6), num_visible)
    assert mask.visible.shape == (5, num_visible)
    np.testing.assert_array_equal(mask.hidden.sum(-1), 24 - num_visible)
    tokens = jnp.broadcast_to(jnp.arange(24.0)[None, :, None], (5, 24, 1))
    kept = masks.take(tokens, mask.visible)
    assert not np.take_along_axis(np.asarray(mask.hidden), np.asarray(mask.visible), 1).any()
    hidden = jnp.full((5, 24 - num_visible, 1), -1.0)
    restored = masks.take(jnp.concatenate([kept, hidden], 1), mask.restore)[..., 0]
    np.testing.assert_array_equal(restored, jnp.where(mask.hidden, -1.0, tokens[..., 0]))


def test_random_masks_are_uniform_and_differ_by_example():
    mask = masks.make_mask("random", jax.random.split(jax.random.key(0), 4000), (4, 4), 4)
    share = np.asarray(~mask.hidden).mean(axis=0)
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_grid_mask_keeps_one_of_every_two_by_two():
    hidden = masks.make_mask("grid", jax.random.split(jax.random.key(0), 2), (4, 4), 4).hidden.reshape(2, 4, 4)
    np.testing.assert_array_equal(~hidden[0, ::2, ::2], True)


def test_block_masks_hide_compact_areas():
    keys = jax.random.split(jax.random.key(0), 64)

    def neighbours(kind):  # share of hidden patches whose right neighbour is hidden too
        hidden = np.asarray(masks.make_mask(kind, keys, (14, 14), 98).hidden).reshape(64, 14, 14)
        return (hidden[:, :, 1:] & hidden[:, :, :-1]).sum() / hidden[:, :, :-1].sum()

    assert neighbours("block") > 0.75 > 0.6 > neighbours("random")


def test_mask_from_an_array():
    hidden = np.asarray([[True, False, True, False], [False, False, True, True]])
    mask = masks.from_hidden(hidden)
    np.testing.assert_array_equal(mask.hidden, hidden)
    np.testing.assert_array_equal(np.sort(mask.visible, -1), [[1, 3], [0, 1]])
    with pytest.raises(ValueError, match="equally many"):
        masks.from_hidden(np.asarray([[True, False], [True, True]]))
    with pytest.raises(ValueError, match=r"mae\.num_visible"):
        masks.make_mask("random", jax.random.split(jax.random.key(0), 1), (2, 2), 5)


def test_pixels_normalise_and_come_back():
    images = np.asarray([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    values = pixels.normalise(jnp.asarray(images), (0.5,), (0.5,))
    np.testing.assert_allclose(values.reshape(-1), [-1, -0.6, 1], atol=1e-6)
    np.testing.assert_allclose(pixels.denormalise(values, (0.5,), (0.5,)).reshape(-1), [0, 0.2, 1], atol=1e-6)
    with pytest.raises(ValueError, match=r"pp\.mean"):
        pixels.normalise(jnp.asarray(images), (0.5, 0.5), (0.5,))


def test_patch_variance_is_unbiased():
    found = pixels.patch_statistics(jnp.asarray([[[1.0, 2.0, 3.0, 6.0]]]))
    np.testing.assert_allclose(found.mean.reshape(()), 3.0)
    np.testing.assert_allclose(found.std.reshape(()), np.sqrt((4 + 1 + 0 + 9) / 3 + 1e-6), rtol=1e-6)


def test_losses_by_hand():
    logits, targets = jnp.log(jnp.asarray([[0.2, 0.3, 0.5]])), jnp.asarray([[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(losses.softmax_xent(logits, targets), [-np.log(0.3)], rtol=1e-6)
    np.testing.assert_allclose(losses.sigmoid_xent(jnp.zeros((1, 3)), targets), [3 * np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(
        losses.smoothed_targets(jnp.asarray([1]), 4, 0.1), [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6
    )
    np.testing.assert_allclose(losses.patch_errors(jnp.zeros((1, 1, 2)), jnp.asarray([[[1.0, 3.0]]])), [[5.0]])


def test_means_ignore_rows_of_weight_zero_whatever_they_hold():
    mean = means.weighted(jnp.asarray([1.0, jnp.nan, 5.0]), jnp.asarray([1.0, 0.0, 1.0])).reduce()
    assert float(mean.value()) == 3.0
    both = mean.merge(means.Mean(jnp.asarray(6.0), jnp.asarray(1.0)))
    assert float(both.value()) == 4.0


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_keeps_pictures_and_targets_in_step(mixup, cutmix):
    # picture i is the constant i, class i: a mixed picture's mean must be its target's expected class
    images = jnp.broadcast_to(jnp.arange(4.0)[:, None, None, None], (4, 16, 16, 1))
    weight = jnp.ones(4)
    shares = []
    for number in range(20):
        key = key_for(0, "mix", number)
        mixed, targets = mixing.mix(key, images, jnp.eye(4), weight, mixup=mixup, cutmix=cutmix)
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), targets @ jnp.arange(4.0), atol=1e-5)
        np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)
        shares.append(float(targets[0, 0]))
    assert np.std(shares) > 0.05


def test_mixing_never_blends_padding_in():
    images, weight = jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.asarray([1.0, 1.0, 1.0, 0.0])
    mixed, targets = mixing.mix(jax.random.key(0), images, jnp.eye(4), weight, mixup=0.8, cutmix=0.0)
    np.testing.assert_array_equal(mixed[0], images[0])
    np.testing.assert_array_equal(targets[0], jnp.eye(4)[0])
    assert not np.array_equal(mixed[1], images[1])


def test_keys_differ_by_seed_stream_and_step():
    data = {
        tuple(jax.random.key_data(key_for(*place)).tolist())
        for place in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))
    }
    assert len(data) == 4
    np.testing.assert_array_equal(
        jax.random.key_data(key_for(0, "a", 5)), jax.random.key_data(jax.jit(lambda s: key_for(0, "a", s))(5))
    )
