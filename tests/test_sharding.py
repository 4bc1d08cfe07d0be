"""Every mesh gives one device's numbers, and what is large is split whatever its size."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from tests import tolerances
from tests.networks import with_second
from tests.test_training import busy, made_up_batch
from vit_jax import configuration, sharding
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.methods.method import NO_NETWORKS
from vit_jax.ops.paths import flat_params
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program

# (data, fsdp, tensor). All with the supervised model; a MAE adds masks and a second stack, so six of its meshes are slow.
MESHES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]
QUICK = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


class Step(NamedTuple):
    report: Any
    gradients: dict
    metrics: dict
    first: Any
    last: Any
    frozen: tuple


def one_step(config, sizes, given=None, networks=NO_NETWORKS):
    """Report, gradients (by a step of plain SGD with rate 1) and test metrics of one step."""
    classes = 10 if method_of(config).labels else None
    config.update({"optim": "sgd", "momentum": 0.0, "base_lr": 1.0, "lr_scaling": None, "decay_type": "constant"})
    config.update({"weight_decay": 0.0, "grad_norm_clip": None, "ema": None, "optim_dtype": "float32"})
    mesh = sharding.make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    objective = method_of(config).objective(config, classes)
    program = make_program(config, objective, make_schedule(config, 10, 0), classes, mesh, networks)
    # The first state is the seed's on any mesh; taking it over saves compiling its creation again.
    state = program.init(np.int32(0)) if given is None else jax.device_put(given, program.layout)
    first = jax.device_get(state)
    before = {path: np.asarray(leaf) for path, leaf in flat_params(state.params).items()}
    judge = make_eval_step(objective, program.graph, program.layout.params, mesh, networks, program.frozen)
    metrics = evaluate(judge, state.params, [with_second(made_up_batch(seed=5, padded=3), config)], mesh)
    batch = with_second(made_up_batch(seed=1, padded=2), config)
    state, report = program.step(state, sharding.put(batch, mesh), np.int32(0), *program.frozen)
    gradients = {path: before[path] - np.asarray(leaf) for path, leaf in flat_params(state.params).items()}
    return Step(jax.device_get(report), gradients, metrics, first, state, program.frozen)


def assert_equal_steps(one, other):
    for name, mean in one.report.means.items():
        np.testing.assert_allclose(other.report.means[name].total, mean.total, rtol=tolerances.MESH)
        assert other.report.means[name].count == mean.count
    np.testing.assert_allclose(other.report.grad_norm, one.report.grad_norm, rtol=tolerances.MESH)
    for name, value in one.metrics.items():
        np.testing.assert_allclose(other.metrics[name], value, rtol=tolerances.MESH)
    largest = max(float(np.abs(value).max()) for value in one.gradients.values())
    for path, value in one.gradients.items():
        difference = float(np.abs(other.gradients[path] - value).max())
        assert difference <= tolerances.MESH * max(float(np.abs(value).max()), 0.1 * largest), (path, difference)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.mark.parametrize(
    ("stage", "sizes"),
    [("scratch", sizes) for sizes in MESHES]
    + [pytest.param("pretrain", sizes, marks=() if sizes in QUICK else pytest.mark.slow) for sizes in MESHES],
    ids=str,
)
def test_eight_devices_equal_one(small, kept, stage, sizes):
    """Mixup, cutmix, dropout, drop path, masks, padded rows and accumulation all on."""
    if stage not in kept:
        kept[stage] = one_step(busy(small, stage, accum_steps=2), {"data": 1})
    given = None if sizes == (2, 2, 2) else kept[stage].first  # one mesh makes its own, to see that it is the same
    together = one_step(busy(small, stage, accum_steps=2), dict(zip(sharding.AXES, sizes, strict=True)), given)
    assert_equal_steps(kept[stage], together)
    split = [path for path, leaf in flat_params(together.last).items() if not leaf.sharding.is_fully_replicated]
    assert bool(split) == (sizes[1] * sizes[2] > 1)
    if split:
        assert any(path.startswith("params") and "fc1/kernel" in path for path in split)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_sizes_that_do_not_divide_are_split_all_the_same(small, sizes, monkeypatch):
    monkeypatch.setattr(sharding, "LARGE", 1)
    config = functools.partial(busy, small, "scratch")

    def odd(**changes):
        made = config(**changes)
        made.model.hidden_size = 36
        made.model.transformer.update({"num_heads": 3, "mlp_dim": 50})
        return made

    kept, together = one_step(odd(), {"data": 1}), one_step(odd(), dict(zip(sharding.AXES, sizes, strict=True)))
    assert_equal_steps(kept, together)
    for path, leaf in flat_params(together.last.params).items():
        if "blocks" in path and path.endswith("kernel"):
            share = leaf.addressable_shards[0].data.size / leaf.size
            assert share <= 2 / (sizes[1] * sizes[2]), (path, leaf.shape, leaf.sharding.spec)


@pytest.mark.parametrize("sizes", [(1, 256, 1), (2, 128, 1), (1, 32, 8), (8, 4, 8), (1, 1, 16), (5, 24, 1)], ids=str)
@pytest.mark.parametrize(
    ("model", "mlp", "classes"), [("ViT-G_14", 8192, 21843), ("ViT-g_14", 4304, 1000), ("ViT-B_16", 3072, 21843)]
)
def test_published_sizes_are_split_evenly_on_any_mesh(model, mlp, classes, sizes):
    """1664, 4304, 21843: a device holds at most a tenth more than its even share, vectors aside."""
    axes = sharding.factored(dict(zip(sharding.AXES, sizes, strict=True)))
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    config = configuration.default_fields()
    config.model = configuration.model_config(model)
    config.model.transformer.mlp_dim = mlp
    held = total = vectors = 0
    for path, leaf in flat_params(jax.eval_shape(lambda: build(config, classes))).items():
        ways = leaf.size // math.prod(
            NamedSharding(mesh, sharding.spec_for(path, leaf.shape, mesh)).shard_shape(leaf.shape)
        )
        vectors += leaf.size if path.endswith(("bias", "scale")) else 0
        held, total = held + leaf.size / ways, total + leaf.size
    assert (
        held <= 1.1 * total / (sizes[1] * sizes[2] / (3 if sizes[1] == 24 else 1)) + vectors
    )  # nothing here divides by 3


def test_every_parameter_of_every_model_has_a_layout():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    for name in ("ViT-B_16", "ViT-g_14", "R50+ViT-B_16"):
        config = configuration.default_fields()
        config.model = configuration.model_config(name)
        config.model.representation_size = 768
        params = flat_params(jax.eval_shape(lambda config=config: build(config, 10)))
        layouts = sharding.layout({path: leaf.shape for path, leaf in params.items()}, mesh)
        assert layouts.keys() == params.keys()
    with pytest.raises(ValueError, match="head/strange"):
        sharding.layout({"head/strange": (3, 4)}, mesh)


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 0}, {"data": -1, "fsdp": -1}, {"pipeline": 2}, {"tensor": 16}])
def test_meshes_that_do_not_fit_name_the_setting(sizes):
    with pytest.raises(ValueError, match=r"config\.mesh"):
        sharding.make_mesh(sizes)


def test_axes_are_factored_and_read_back():
    assert sharding.factored({"data": 2, "fsdp": 12, "tensor": 2}) == {
        "data": 2, "fsdp0": 3, "fsdp1": 2, "fsdp2": 2, "tensor0": 2,
    }  # fmt: skip
    assert sharding.axis_sizes(sharding.make_mesh({"fsdp": 4})) == {"data": 2, "fsdp": 4, "tensor": 1}


def test_rows_of_a_batch_and_back():
    """One process holds all rows; every device gets its own, whatever `tensor` repeats."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert sharding.local_rows(12, mesh) == list(range(12))
    rows = np.arange(24).reshape(12, 2)
    placed = sharding.put(rows, mesh)
    np.testing.assert_array_equal(np.asarray(placed), rows)
    assert [shard.data.shape for shard in placed.addressable_shards] == [(3, 2)] * 8
