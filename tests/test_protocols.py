"""The published protocols, step by step against PyTorch; partial fine-tuning; the reviewed tables of rates and decays."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from vit_jax import UserError, configuration, sharding
from vit_jax.contracts import Batch
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.methods.method import NO_NETWORKS
from vit_jax.ops.paths import flat_params
from vit_jax.training.optimizer import print_table, settings_table
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program

REVIEWED = Path(__file__).parent / "reviewed"
RECIPES = ["mae.py:b16", "mae_finetune.py:b16", "mae_finetune.py:l16", "mae_finetune.py:h14", "mae_linprobe.py:b16",
           "mae_partial.py:b16,0.5", "mae_partial.py:l16,4", "vit.py:b16,cifar10", "augreg.py:R26_S_32",
           "vit_scratch.py:s16", "simmim.py:b16", "simmim_finetune.py:b16", "beit.py:b16", "beit_finetune.py:b16",
           "beit_finetune.py:l16,after22k,384"]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_rates_and_decays_are_the_reviewed_ones(recipe, request):
    config = configuration.load(recipe)
    shapes = nnx.split(jax.eval_shape(lambda: build(config, 1000 if method_of(config).labels else None)))[1]
    table = print_table(settings_table(shapes, config))
    path = REVIEWED / f"{recipe.replace('.py:', '-').replace(',', '-')}.txt"
    if request.config.getoption("--refresh-reviewed"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(table)
    assert path.read_text() == table, f"look at the change, then: pytest {__file__} --refresh-reviewed"


def small_program(config, classes, networks=NO_NETWORKS):
    """(program, state, mesh) on one device."""
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    schedule = make_schedule(config, config.total_steps, config.warmup_steps)
    program = make_program(config, method_of(config).objective(config, classes), schedule, classes, mesh, networks)
    return program, program.init(np.int32(0)), mesh


def batches(config, classes, count):
    rng = np.random.default_rng(0)
    size, b = config.pp.crop, config.batch
    for _ in range(count):
        images = rng.integers(0, 256, (b, size, size, config.pp.channels), dtype=np.uint8)
        yield Batch(images, rng.integers(0, classes or 1, b).astype(np.int32), np.ones(b, np.float32))


@pytest.mark.parametrize(("blocks", "moving"), [(0, 0), (0.5, 1), (1, 1), (2, 2)])
def test_partial_fine_tuning_moves_the_last_blocks_only(small, blocks, moving):
    config = small("finetune", train_blocks=blocks)
    program, state, mesh = small_program(config, 5)
    before = {path: np.asarray(leaf) for path, leaf in flat_params(state.params).items()}
    for batch in batches(config, 5, 3):
        state, _ = program.step(state, sharding.put(batch, mesh), np.int32(0))
    for path, leaf in flat_params(state.params).items():
        same = np.asarray(leaf) == before[path]
        if "/blocks/" in path:
            assert same[: 2 - moving].all(), path
            for block in range(2 - moving, 2):
                only_mlp = blocks == 0.5 and not any(word in path for word in ("norm2", "mlp"))
                assert same[block].all() if only_mlp else not same[block].all(), path
        elif path.startswith("head_out"):
            assert not same.all(), path
        elif path.startswith("norm"):
            assert same.all() if blocks == 0 else not same.all(), path
        else:
            assert same.all(), path


def test_frozen_blocks_change_no_number_but_the_gradient(small):
    whole, part = small("finetune"), small("finetune", train_blocks=1)
    x = jnp.asarray(np.random.default_rng(0).random((2, 8, 8, 3)), jnp.float32)

    def gradient(config):
        graph, params = nnx.split(build(config, 5))
        params = jax.tree.map(lambda p: p + 0.1, params)
        value, grads = jax.value_and_grad(lambda p: jnp.sum(jnp.square(nnx.merge(graph, p)(x))))(params)
        return value, flat_params(grads)

    (value, full), (same, cut) = gradient(whole), gradient(part)
    assert value == same
    for path, grad in cut.items():
        if "/blocks/" in path:
            assert not np.any(grad[0]), path
            np.testing.assert_allclose(grad[1], full[path][1], rtol=1e-5, atol=1e-6)
        elif path.startswith(("cls", "embedding", "positions")):
            assert not np.any(grad), path


@pytest.mark.parametrize("blocks", [-1, 0.7, 3])
def test_other_numbers_of_blocks_are_refused(small, blocks):
    with pytest.raises(ValueError, match="train_blocks"):
        build(small("finetune", train_blocks=blocks), 5)


def linear_probe(small):
    config = small("finetune", train_blocks=0, optim="lars", weight_decay=0.0, layer_decay=None, label_smoothing=0.0)
    config.update({"base_lr": 0.5, "lr_scaling": None, "momentum": 0.9, "total_steps": 24, "warmup_steps": 4})
    config.update({"grad_norm_clip": None})
    config.model.update({"classifier": "token", "norm_after_pool": False, "head_norm": "batch", "head_std": 0.01})
    return config


def test_batch_statistics_refuse_accumulation(small):
    config = linear_probe(small)
    config.accum_steps = 2
    with pytest.raises(UserError, match="accum_steps 1"):
        small_program(config, 5)


def test_linear_probe_equals_pytorch_for_twenty_steps(small):
    """Affine-free BatchNorm with torch's running statistics, and LARS as MAE's util/lars.py describes it."""
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    config = linear_probe(small)
    program, state, mesh = small_program(config, 5)
    first = flat_params(state.params)
    head = torch.nn.Linear(16, 5)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.array(first["head_out/kernel"])).T)
        head.bias.copy_(torch.from_numpy(np.array(first["head_out/bias"])))
    norm = torch.nn.BatchNorm1d(16, affine=False, eps=1e-6)
    momentum = {parameter: torch.zeros_like(parameter) for parameter in head.parameters()}
    schedule = make_schedule(config, config.total_steps, config.warmup_steps)
    encoder = nnx.merge(program.graph, jax.tree.map(jnp.copy, state.params))
    pooled = jax.jit(lambda images: encoder.pool(encoder.features(images)))
    prepare = method_of(config).objective(config, 5).prepare

    for number, batch in enumerate(batches(config, 5, 20)):
        images = prepare(sharding.put(batch, mesh), jax.random.key(0), False)["images"]
        features = torch.from_numpy(np.array(pooled(jnp.asarray(images))))
        loss = torch.nn.functional.cross_entropy(head(norm(features)), torch.from_numpy(batch.label).long())
        head.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in head.parameters():
                update = parameter.grad.clone()
                if parameter.ndim > 1:
                    size, change = parameter.norm(), update.norm()
                    update *= 0.001 * size / change if size > 0 and change > 0 else 1.0
                momentum[parameter].mul_(0.9).add_(update)
                parameter -= float(schedule(number)) * momentum[parameter]
        state, report = program.step(state, sharding.put(batch, mesh), np.int32(0))
        ours = float(report.means["loss"].total / report.means["loss"].count)
        assert abs(ours - float(loss.detach())) <= tolerances.TRAJECTORY_LOSS * abs(float(loss.detach())), number
    last = flat_params(state.params)
    for path, theirs in {
        "head_out/kernel": head.weight.detach().T, "head_out/bias": head.bias.detach(),
        "head_norm/mean": norm.running_mean, "head_norm/var": norm.running_var,
    }.items():  # fmt: skip
        difference = np.abs(np.asarray(last[path]) - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        assert difference <= tolerances.TRAJECTORY_PARAMS, path


def test_lars_measures_each_stacked_block_apart(small):
    from vit_jax.training.optimizer import lr_scales, make_optimizer

    config = linear_probe(small)
    config.update({"train_blocks": None, "weight_decay": 0.1})
    params = nnx.split(build(config, 5))[1]
    params = jax.tree.map(lambda p: p + 0.05, params)
    grads = jax.tree.map(lambda p: jnp.cos(3.0 * p), params)
    optimizer = make_optimizer(params, config)
    updates = optimizer.update(grads, optimizer.init(params), params)[0]
    updates = flat_params(jax.tree.map(lambda u, scale: u * scale, updates, lr_scales(params, config)))
    flat, flat_grads = flat_params(params), flat_params(grads)
    for path, update in updates.items():
        theta, change = np.asarray(flat[path], np.float64), np.asarray(flat_grads[path], np.float64)
        if path.startswith("head_norm"):
            assert not np.any(update)
        elif path.endswith(("bias", "scale")):
            np.testing.assert_allclose(update, change, rtol=1e-6)
        else:
            stacked = "/blocks/" in path
            for t, g, u in zip(*(a if stacked else a[None] for a in (theta, change, np.asarray(update))), strict=True):
                total = g + 0.1 * t * config.weight_decay / 0.1
                np.testing.assert_allclose(u, 0.001 * np.linalg.norm(t) / np.linalg.norm(total) * total, rtol=1e-5)
