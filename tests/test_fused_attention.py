"""cuDNN's attention as far as it can be tested without a GPU: padding, the program written for CUDA, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from vit_jax import UserError, api, configuration, devices, sharding
from vit_jax.contracts import Batch
from vit_jax.methods import method_of
from vit_jax.methods.building import build
from vit_jax.models.attention import attention_weights, padded_attention
from vit_jax.ops.paths import flat_params
from vit_jax.training.checkpoints import Checkpoints
from vit_jax.training.schedules import make_schedule
from vit_jax.training.step import make_program


@pytest.mark.parametrize("multiple", [1, 2, 8])
@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (8, 8)])
def test_padding_changes_neither_values_nor_gradients(multiple, queries, keys):
    key, shape = jax.random.key(0), {"query": queries, "key": keys, "value": keys}
    parts = [jax.random.normal(jax.random.fold_in(key, n), (3, size, 2, 4)) for n, size in enumerate(shape.values())]

    def in_the_open(query, key, value):
        return jnp.einsum("bhmn,bnhe->bmhe", attention_weights(query, key), value)

    def padded(query, key, value):
        return padded_attention(query, key, value, "xla", multiple=multiple)

    for ours, plain in zip(gradients(padded, parts), gradients(in_the_open, parts), strict=True):
        np.testing.assert_allclose(ours, plain, atol=tolerances.EXACT * float(np.abs(plain).max()))


def gradients(attend, parts):
    """The output, and the gradients of a sum of it with uneven weights."""
    out, backward = jax.vjp(attend, *parts)
    return jax.device_get((out, *backward(jnp.sin(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))))


@pytest.mark.parametrize("stage", ["scratch", "pretrain"])
@pytest.mark.parametrize("mesh_shape", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_the_step_is_written_for_cuda_with_the_kernel(small, monkeypatch, stage, mesh_shape):
    """Lowered, not compiled. The digits' 17 tokens are as odd as ImageNet's 197, which JAX refuses to differentiate."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    config = small(stage, compute_dtype="bfloat16", attention="cudnn")
    count = int(np.prod(list(mesh_shape.values())))
    mesh = sharding.make_mesh(mesh_shape, jax.devices()[:count])
    classes = None if stage == "pretrain" else 10
    program = make_program(
        config, method_of(config).objective(config, classes), make_schedule(config, 10, 1), classes, mesh
    )
    batch = Batch(np.zeros((16, 8, 8, 3), np.uint8), np.zeros(16, np.int32), np.ones(16, np.float32))
    traced = program.step.trace(program.abstract, batch, np.int32(0))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kernels = ["CustomSPMDPartitioning"] if count > 1 else ["__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("]
    assert all(kernel in text for kernel in kernels)


def test_cudnn_is_refused_where_it_cannot_run(small):
    with pytest.raises(UserError, match="Expected an NVIDIA GPU"):
        devices.make_mesh(small(attention="cudnn", compute_dtype="bfloat16"))
    config, mesh = small(attention="cudnn"), sharding.make_mesh({"data": -1})
    with pytest.raises(ValueError, match="compute_dtype bfloat16"):
        make_program(config, method_of(config).objective(config, 10), make_schedule(config, 10, 1), 10, mesh)


def test_what_was_trained_with_cudnn_is_used_anywhere(small, tmp_path):
    config = small(attention="cudnn", compute_dtype="bfloat16")
    params = flat_params(nnx.state(build(config, 10), nnx.Param))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_weights(
        {path: np.asarray(leaf) for path, leaf in params.items()}, configuration.plain(config),
        {"class_names": None, "num_classes": 10, "dataset": "fake", "image_size": [8, 8]},
    )  # fmt: skip
    checkpoints.close()
    assert np.isfinite(np.asarray(api.load(tmp_path)([np.zeros((8, 8, 3), np.uint8)]))).all()
