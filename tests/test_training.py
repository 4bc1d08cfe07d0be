"""The step: accumulation, meshes, schedules, rates and decays, non-finite steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tolerances
from vit_jax import UserError, configuration, sharding
from vit_jax.contracts import Batch
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.methods.classification import METHOD
from vit_jax.ops.paths import flat_params
from vit_jax.training.optimizer import print_table, settings_table
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program


def made_up_batch(size=16, seed=0, padded=0):
    rng = np.random.default_rng(seed)
    weight = np.ones(size, np.float32)
    weight[size - padded :] = 0
    return Batch(
        rng.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, size, dtype=np.int32), weight
    )


def run_steps(config, mesh_shape=None, steps=3, batches=None, devices=1):
    mesh = sharding.make_mesh(mesh_shape or {"data": 1}, jax.devices()[:devices])
    objective = method_of(config).objective(config, None if config.objective == "mae" else 10)
    schedule = make_schedule(config, 10, 1)
    program = make_program(config, objective, schedule, None if config.objective == "mae" else 10, mesh)
    state, reports = program.init(np.int32(0)), []
    for number in range(steps):
        batch = made_up_batch(seed=number) if batches is None else batches[number]
        state, report = program.step(state, sharding.put(batch, mesh), np.int32(0))
        reports.append(jax.device_get(report))
    return program, state, reports


def busy(small, stage, **changes):
    """Every random thing switched on."""
    config = small(stage, **changes)
    config.model.transformer.update({"dropout_rate": 0.1, "drop_path": 0.2, "attention_dropout_rate": 0.1})
    # The key bias has a gradient of zero, in floats rounding noise, which Adam's usual 1e-8 would blow up to a full step.
    config.update({"mixup": 0.8, "cutmix": 1.0, "ema": 0.9, "base_lr": 1e-2, "adam_eps": 1e-3})
    config.model.head_std = 0.1
    return config


def assert_same_states(one, other):
    ours, theirs = flat_params(one), flat_params(other)
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        scale = max(float(np.abs(np.asarray(value)).max()), 1e-3)
        difference = float(np.abs(np.asarray(value) - np.asarray(theirs[path])).max())
        assert difference <= tolerances.SUM_ORDER * scale, (path, difference, scale)


@pytest.mark.parametrize("stage", ["scratch", "pretrain"])
def test_accumulation_equals_the_full_batch(small, stage):
    batches = [made_up_batch(seed=1), made_up_batch(seed=2, padded=5)]
    _, full, reports = run_steps(busy(small, stage), steps=2, batches=batches)
    _, parts, others = run_steps(busy(small, stage, accum_steps=4), steps=2, batches=batches)
    for one, other in zip(reports, others, strict=True):
        for name, mean in one.means.items():
            np.testing.assert_allclose(other.means[name].total, mean.total, rtol=tolerances.SUM_ORDER)
            np.testing.assert_allclose(other.means[name].count, mean.count)
    assert_same_states(full, parts)


@pytest.mark.parametrize(("kind", "at_middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_schedules_by_hand(kind, at_middle):
    config = configuration.default_fields()
    config.update({"decay_type": kind, "base_lr": 0.1, "lr_scaling": 256, "batch": 512, "end_lr": 0.0})
    schedule = make_schedule(config, 110, 10)
    expected = {0: 0.0, 5: 0.1, 10: 0.2, 60: 0.2 * at_middle, 110: 0.2 if kind == "constant" else 0.0}
    for step, value in expected.items():
        np.testing.assert_allclose(schedule(step), value, atol=1e-7)


def test_step_schedule_and_errors():
    config = configuration.default_fields()
    config.update({"decay_type": "step", "decay_boundaries": (0.5, 0.75), "base_lr": 1.0})
    schedule = make_schedule(config, 100, 0)
    np.testing.assert_allclose([schedule(s) for s in (0, 49, 50, 74, 75, 99)], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    config.decay_type = "cosin"
    with pytest.raises(UserError, match="decay_type"):
        make_schedule(config, 100, 0)
    config.decay_type = "cosine"
    with pytest.raises(UserError, match="warmup_steps"):
        make_schedule(config, 10, 20)


def test_mae_schedule_is_the_reference_one():
    import math

    config = configuration.load("mae.py:b16")
    schedule = make_schedule(config, 800 * 312, 40 * 312)
    for step in (0, 1, 40 * 312 - 1, 40 * 312, 100_000, 800 * 312 - 1):
        epoch, lr = step / 312, 2.4e-3
        reference = lr * epoch / 40 if epoch < 40 else lr * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 760))
        np.testing.assert_allclose(schedule(step), reference, rtol=2e-4, atol=1e-9)


def test_layer_decay_and_exclusions_of_mae_fine_tuning():
    config = configuration.load("mae_finetune.py:b16")
    table = settings_table(jax.eval_shape(lambda: build(config, 1000)), config)
    assert table["cls"] == (0.65**13, 0.0)
    assert table["positions"] == (0.65**13, 0.0)
    assert table["embedding/kernel"] == (0.65**13, 0.05)
    assert table["embedding/bias"] == (0.65**13, 0.0)
    scales, decay = table["transformer/blocks/mlp/fc1/kernel"]
    np.testing.assert_allclose(scales, [0.65 ** (12 - block) for block in range(12)])
    assert decay == 0.05
    assert table["transformer/blocks/norm1/scale"].weight_decay == 0.0
    assert table["norm/scale"] == (1.0, 0.0)
    assert table["head_out/kernel"] == (1.0, 0.05)
    pretraining = configuration.load("mae.py:b16")
    table = settings_table(jax.eval_shape(lambda: build(pretraining, None)), pretraining)
    assert table["mask_token"].weight_decay == table["encoder/cls"].weight_decay == 0.05
    assert "decay 0.05" in print_table(table)
    pretraining.weight_decay_rules = (("kernel$", 1.0),)
    with pytest.raises(UserError, match=r"mask_token.*weight_decay_rules"):
        settings_table(jax.eval_shape(lambda: build(pretraining, None)), pretraining)


def test_adamw_is_optaxs(small):
    """One step of the chain against optax.adamw with a mask, clip off."""
    config = small("scratch", grad_norm_clip=None, weight_decay=0.3, base_lr=1e-2)
    program, after, _ = run_steps(config, steps=2)
    before = program.init(np.int32(0))
    reference = optax.adamw(
        learning_rate=make_schedule(config, 10, 1), b1=config.b1, b2=config.b2, weight_decay=0.3,
        mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in str(path) or
                                                             "cls" in str(path) or "positions" in str(path), params),
    )  # fmt: skip
    from flax import nnx

    from vit_jax.ops.keys import key_for

    objective, params, opt_state = method_of(config).objective(config, 10), before.params, reference.init(before.params)
    for number in range(2):
        batch = jax.tree.map(jnp.asarray, made_up_batch(seed=number))
        key = key_for(0, "train", number)

        def loss(params, batch=batch, key=key):
            inputs = objective.prepare(batch, key, True)
            keys = jax.random.split(key, 16)
            return objective.losses(nnx.merge(program.graph, params), inputs, keys, True)[0].reduce().value()

        updates, opt_state = reference.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    for path, value in flat_params(params).items():
        np.testing.assert_allclose(flat_params(after.params)[path], value, atol=2e-5, err_msg=path)


def test_sgd_keeps_its_momentum_in_bfloat16(small):
    config = small("scratch", optim="sgd", optim_dtype="bfloat16", weight_decay=0.0)
    _, state, _ = run_steps(config, steps=1)
    momenta = [leaf for path, leaf in flat_params(state).items() if "opt_state" in path and leaf.ndim]
    assert momenta
    assert {leaf.dtype for leaf in momenta} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_a_step_that_is_not_finite_changes_nothing_but_the_clock(small):
    config = small("scratch")
    config.pp.std = (1e-38,)  # pictures overflow
    program, state, reports = run_steps(config, steps=2)
    first = program.init(np.int32(0))
    assert [bool(report.finite) for report in reports] == [False, False]
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (2, 2, 2)
    for path, value in flat_params(state.params).items():
        np.testing.assert_array_equal(value, flat_params(first.params)[path])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_batch_must_divide(small):
    with pytest.raises(UserError, match=r"config\.batch"):
        run_steps(small("scratch", accum_steps=3), steps=0)
    with pytest.raises(UserError, match="objective"):
        method_of(small("scratch", objective="mea"))
    with pytest.raises(UserError, match="labelled"):
        METHOD.objective(small("scratch"), 0)


def test_a_finite_gradient_with_infinite_parameters_is_skipped(small):
    """The decay alone overflows: loss and gradient are finite."""
    config = small("scratch", weight_decay=1e30, base_lr=1e30, ema=0.9)
    _, state, reports = run_steps(config, steps=2)
    assert all(np.isfinite(report.grad_norm) and not report.finite for report in reports[1:])
    assert int(state.skipped_in_row) > 0
    for path, leaf in flat_params(state).items():
        assert np.isfinite(np.asarray(leaf, np.float32)).all(), path
