"""The tokenizer method: its parts by hand, training on digits, schedules, files of whole modules, what it refuses."""

import math
import struct
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from tests.test_hostile_weights import measured, pth, tensor, text
from tests.test_training import assert_same_states, made_up_batch, run_steps
from vit_jax import UserError, api, configuration, sharding, train
from vit_jax.commands import cli
from vit_jax.evaluation.evaluators import evaluate, make_eval_step
from vit_jax.methods import method_of
from vit_jax.methods.tokenizer import METHOD, divergence, eased, histogram, relaxed, summary
from vit_jax.models.dvae import DVAE, DVAEConfig, tokens
from vit_jax.models.registry import count_params
from vit_jax.ops.logit_laplace import logit_laplace_nll, map_pixels, unmap_pixels
from vit_jax.ops.paths import flat_params
from vit_jax.run_figures import draw_run
from vit_jax.training.tracker import read_metrics


@pytest.fixture(scope="module")
def tiny(make_small):
    """Eight-pixel colour pictures, 4 x 4 places of 16 codes."""

    def make(**changes):
        config = make_small("pretrain,tokenizer", **changes)
        config.tokenizer.temperature_steps = config.tokenizer.kl_steps = 4
        return config

    return make


def test_published_sizes():
    model = jax.eval_shape(lambda: DVAE(DVAEConfig((256, 256)), rngs=nnx.Rngs(0)))
    assert count_params(model.encoder) == 53_786_240
    assert count_params(model.decoder) == 43_829_766
    assert (model.cfg.grid, model.cfg.factor, model.cfg.gain) == ((32, 32), 8, 1 / 64)


def test_pixels_there_and_back():
    pixels = jnp.asarray([0.0, 0.25, 1.0])
    np.testing.assert_allclose(map_pixels(pixels), [0.1, 0.3, 0.9], rtol=tolerances.EXACT)
    np.testing.assert_allclose(unmap_pixels(map_pixels(pixels)), pixels, atol=tolerances.EXACT)
    np.testing.assert_array_equal(unmap_pixels(jnp.asarray([0.05, 0.95])), [0.0, 1.0])


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -0.7), (-2.0, 0.4)])
def test_logit_laplace_integrates_to_one(mean, log_scale):
    """Over logits, on which the density is smooth: dx = x (1 - x) dlogit."""
    logits = np.linspace(-30, 30, 600_001)
    x = 1 / (1 + np.exp(-logits))
    usable = (x > 1e-6) & (x < 1 - 1e-6)  # float32 has no more numbers next to 1
    grid = jnp.asarray(x[usable], jnp.float32).reshape(1, 1, -1, 1)
    nll = logit_laplace_nll(grid, jnp.full_like(grid, mean), jnp.full_like(grid, log_scale))
    density = np.exp(-np.asarray(nll, np.float64).reshape(-1))
    inside = np.sum(density * (x * (1 - x))[usable]) * (logits[1] - logits[0])
    scale = math.exp(log_scale)
    edge = math.log(1e6 - 1)  # what lies beyond the edges, by the Laplace distribution's own formula
    beyond = 0.5 * (math.exp(-(edge - mean) / scale) + math.exp(-(edge + mean) / scale))
    np.testing.assert_allclose(inside + beyond, 1.0, atol=1e-4)


def test_relaxed_codes_become_the_likeliest_as_the_temperature_falls():
    """Logits far apart leave the noise nothing to decide, so what is drawn is what `tokens` picks."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(1000.0 * rng.permuted(np.tile(np.arange(8.0), (2, 3, 4, 1)), axis=-1), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    cold = relaxed(logits, jnp.full((2,), 1e-3), keys)
    np.testing.assert_array_equal(cold, jax.nn.one_hot(jnp.argmax(logits, -1), 8))
    level = relaxed(jnp.zeros((2, 30, 40, 4)), jnp.asarray([1e-4, 1e4]), keys)
    drawn = np.asarray(level[0]).reshape(-1, 4)
    assert (drawn.max(axis=1) > 0.99).mean() > 0.99  # one code each ...
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=0.05)  # ... as often as its probability says
    np.testing.assert_allclose(level[1], 0.25, atol=1e-2)  # hot: shares of all


def test_divergence_by_hand():
    logits = jnp.log(jnp.asarray([[[[0.5, 0.5, 1e-30, 1e-30]], [[0.25, 0.25, 0.25, 0.25]]]]))
    np.testing.assert_allclose(divergence(logits), [math.log(2)], rtol=tolerances.EXACT)


def test_codes_used_and_perplexity_by_hand():
    counts = histogram(jnp.asarray([[[0, 2], [2, 2]], [[2, 0], [1, 0]]]), 5)
    np.testing.assert_array_equal(counts, [[1, 0, 3, 0, 0], [2, 1, 1, 0, 0]])
    found = summary({"loss": 1.5, "codes": np.asarray(counts).sum(0) / 8})
    assert found["loss"] == 1.5
    assert found["codes_used"] == 3
    assert "codes" not in found
    np.testing.assert_allclose(found["perplexity"], (8 / 3) ** (3 / 8) * 8 ** (1 / 8) * 2 ** (1 / 2), rtol=1e-9)
    assert summary({"codes": np.full(4, 0.25)})["perplexity"] == pytest.approx(4)
    assert math.isnan(summary({"codes": float("nan")})["perplexity"])


def test_schedules_by_hand(tiny):
    assert [float(eased(jnp.int32(step), 1.0, 0.5, 10)) for step in (0, 5, 10, 99)] == pytest.approx(
        [1, 0.75, 0.5, 0.5]
    )
    assert float(eased(jnp.int32(0), 1.0, 0.5, 0)) == 1.0
    config = configuration.load("tokenizer.py:dalle")
    objective = METHOD.objective(config, None)
    begin, middle, end = (objective.schedules(jnp.int32(step)) for step in (0, 75_000, 150_000))
    assert [float(now["temperature"]) for now in (begin, middle, end)] == pytest.approx([1, (1 + 1 / 16) / 2, 1 / 16])
    assert [float(now["kl_weight"]) for now in (begin, middle, end)] == pytest.approx([0, 6.6, 6.6])
    batch = jax.tree.map(jnp.asarray, made_up_batch(4))
    inputs = METHOD.objective(tiny(), None).inputs(batch, jax.random.key(0), False)
    np.testing.assert_allclose(inputs["temperature"], np.full(4, 0.5), rtol=tolerances.EXACT)  # evaluation: the end
    np.testing.assert_allclose(inputs["kl_weight"], np.full(4, 0.3), rtol=tolerances.EXACT)


def test_the_step_moves_the_schedule(tiny):
    """The weight of the divergence at step 0 is 0, later it is not: the loss says so, of the same numbers."""
    config = tiny(base_lr=0.0, total_steps=10)
    _, _, reports = run_steps(config, steps=5, batches=[made_up_batch(seed=1)] * 5)
    of = [{name: mean.total / mean.count for name, mean in report.means.items()} for report in reports]
    shares = 4 * 4 / (8 * 8 * 3)
    weights = [(now["loss"] - now["nll"]) / (now["kl"] * shares) for now in of]
    expected = [0.3 * 0.5 * (1 - math.cos(math.pi * step / 4)) for step in range(5)]
    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_accumulation_equals_the_full_batch(tiny):
    batches = [made_up_batch(seed=1), made_up_batch(seed=2, padded=5)]
    _, full, reports = run_steps(tiny(ema=0.9, adam_eps=1e-3), steps=2, batches=batches)
    _, parts, others = run_steps(tiny(ema=0.9, adam_eps=1e-3, accum_steps=4), steps=2, batches=batches)
    for one, other in zip(reports, others, strict=True):
        for name, mean in one.means.items():
            np.testing.assert_allclose(other.means[name].total, mean.total, rtol=tolerances.SUM_ORDER, atol=1e-6)
            np.testing.assert_allclose(other.means[name].count, mean.count)
    assert_same_states(full, parts)


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_a_mesh_equals_one_device(tiny, shape):
    config = tiny(remat="full")
    _, _, reports = run_steps(tiny(), steps=1)
    spread, other, others = run_steps(config, mesh_shape=shape, steps=1, devices=8)
    for name, mean in reports[0].means.items():
        np.testing.assert_allclose(others[0].means[name].total, mean.total, rtol=tolerances.MESH, atol=1e-5)
    np.testing.assert_allclose(others[0].grad_norm, reports[0].grad_norm, rtol=tolerances.MESH)
    kernel = flat_params(other.params)["encoder/conv_output/kernel"]
    assert not kernel.sharding.is_fully_replicated
    mesh = sharding.make_mesh(shape, jax.devices())
    objective = method_of(config).objective(config, None)
    judge = make_eval_step(objective, spread.graph, spread.layout.params, mesh)
    found = summary(evaluate(judge, other.params, [made_up_batch(seed=5, padded=3)], mesh))
    assert found["examples"] == 13
    assert 1 <= found["perplexity"] <= found["codes_used"] <= 13 * 16


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run on real digits, drawn."""
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    config = configuration.load("digits.py:pretrain,tokenizer")
    config.update({"total_steps": 60, "warmup_steps": 5, "eval_every": 30, "checkpoint_every": 30, "batch": 64})
    config.tokenizer.update({"temperature_steps": 50, "kl_steps": 20})
    result = train.run(config, workdir, draw=draw_run)
    return workdir, result


def test_training_on_digits_lowers_the_loss(trained):
    workdir, result = trained
    first, last = (row for row in read_metrics(workdir) if row["kind"] == "eval")
    assert last["nll"] < first["nll"]
    assert last["mse"] < 0.142  # the variance of the pixels: what one grey for all would reach
    assert 1 < last["perplexity"] <= last["codes_used"] <= 64
    assert result.metrics["perplexity"] == last["perplexity"]
    assert (workdir / "figures" / "reconstructions.png").exists()


def test_it_is_loaded_judged_and_looked_at(trained, tmp_path, capsys):
    workdir, result = trained
    loaded = api.load(workdir)
    pixels = loaded.pixels(np.zeros((2, 8, 8, 1), np.uint8))
    codes = np.asarray(tokens(loaded.model, pixels))
    assert codes.shape == (2, 16)
    assert loaded.model.cfg.vocab_size == 64
    assert loaded.model.cfg.factor == 2
    np.testing.assert_array_equal(codes.reshape(2, 4, 4), jnp.argmax(loaded.model.logits(pixels), -1))
    assert cli.main(["eval", str(workdir), "--json"]) == 0
    said = capsys.readouterr().out
    assert f'"perplexity": {result.metrics["perplexity"]}' in said
    drawing = METHOD.picture(loaded.model, jnp.zeros((2, 8, 8, 1), jnp.uint8), loaded.config)
    assert list(drawing.columns) == ["original", "codes", "reconstruction"]
    assert [column.shape[:3] for column in drawing.columns.values()] == [(2, 8, 8)] * 3
    from PIL import Image

    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "x.png")
    assert cli.main(["reconstruct", str(workdir), str(tmp_path / "x.png"), "--out", str(tmp_path / "out.png")]) == 0
    assert "codes in use" in capsys.readouterr().out
    assert (tmp_path / "out.png").exists()
    for command in ("embed", "predict"):
        assert cli.main([command, str(workdir), str(tmp_path / "x.png")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_resume_is_bit_equal(tiny, tmp_path):
    """Two starts of three steps are one of six, schedules included."""
    config = tiny(decay_type="constant")
    train.run(config, tmp_path / "whole")
    config.total_steps = 3
    train.run(config, tmp_path / "parts")
    config.total_steps = 6
    train.run(config, tmp_path / "parts")
    one, other = (flat_params(nnx.state(api.load(tmp_path / name).model)) for name in ("whole", "parts"))
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"pp.mean": (0.5,)}, r"pp\.mean"),
        ({"tokenizer.decoder_width": None}, r"tokenizer\.decoder_width"),
        ({"tokenizer.encoder_width": 18}, r"tokenizer\.encoder_width"),
        ({"tokenizer.num_groups": 5}, r"tokenizer\.num_groups"),
        ({"tokenizer.vocab_size": 1}, r"tokenizer\.vocab_size"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_written(tiny, fields, word, tmp_path):
    config = tiny()
    config.update_from_flattened_dict(fields)
    with pytest.raises(UserError, match=word):
        train.run(config, tmp_path / "new")
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


# ---- OpenAI's files


def twin(torch, kind, sizes):
    """A module laid out as DALL-E's, of classes in a module that only exists while the file is written."""
    module = types.ModuleType("dall_e_that_is_not_installed")

    class Conv2d(torch.nn.Module):
        def __init__(self, shape):
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(shape) / math.sqrt(math.prod(shape[1:])))
            self.b = torch.nn.Parameter(torch.randn(shape[0]))

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.device, self.use_mixed_precision = torch.device("cpu"), True

    for each in (Conv2d, Half):
        each.__module__, each.__qualname__ = module.__name__, each.__name__
        setattr(module, each.__name__, each)
    sys.modules[module.__name__] = module

    def put(owner, path, value):
        *outer, last = path
        for name in outer:
            if name not in owner._modules:
                owner.add_module(name, torch.nn.Sequential())
            owner = owner._modules[name]
        owner.add_module(last, value)

    half = Half()
    for name, shape in sizes[kind].items():
        put(half, name.split("."), Conv2d(shape))
    return half, module.__name__


def sizes_of(cfg):
    """{half: {name of a convolution: shape}} as OpenAI's files have them, from ours."""
    model = jax.eval_shape(lambda: DVAE(cfg, rngs=nnx.Rngs(0)))
    found = {"encoder": {}, "decoder": {}}
    for path, leaf in flat_params(nnx.state(model)).items():
        half, *rest = path.split("/")
        if rest[-1] == "kernel":
            name = ".".join(rest[:-1]).replace("conv_input", "input").replace("conv_output", "output.conv")
            name = name.replace("group", "group_").replace("block", "block_").replace("conv_skip", "id_path")
            for number in "1234":
                name = name.replace(f".conv{number}", f".res_path.conv_{number}")
            height, width, inputs, outputs = leaf.shape
            found[half][f"blocks.{name}"] = (outputs, inputs, height, width)
    return found


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")  # of the classes made here
@pytest.mark.parametrize("zipped", [True, False])
def test_whole_pickled_modules_are_read_without_their_classes(zipped, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    cfg = DVAEConfig((16, 16), vocab_size=12, encoder_width=4, decoder_width=8, decoder_inputs=6)
    sizes, states = sizes_of(cfg), {}
    for kind in ("encoder", "decoder"):
        half, name = twin(torch, kind, sizes)
        try:
            torch.save(half, tmp_path / f"{kind}.pkl", _use_new_zipfile_serialization=zipped)
        finally:
            del sys.modules[name]
        states[kind] = {name: value.detach().numpy() for name, value in half.state_dict().items()}
    with pytest.raises(ImportError):
        __import__(name)

    loaded = api.load(tmp_path, stored_size=16)
    assert (loaded.model.cfg.vocab_size, loaded.model.cfg.decoder_inputs, loaded.model.cfg.decoder_width) == (12, 6, 8)
    params = flat_params(nnx.state(loaded.model))
    kernel = states["decoder"]["blocks.group_2.block_1.res_path.conv_3.w"]
    np.testing.assert_array_equal(params["decoder/group2/block1/conv3/kernel"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        params["encoder/group3/block1/conv_skip/bias"], states["encoder"]["blocks.group_3.block_1.id_path.b"]
    )
    assert sum(value.size for state in states.values() for value in state.values()) == count_params(loaded.model)
    assert name not in sys.modules

    alone = api.load(tmp_path / "encoder.pkl", stored_size=16)
    assert alone.model.cfg.decoder_width is None
    assert len(METHOD.picture(alone.model, jnp.zeros((1, 16, 16, 3), jnp.uint8), alone.config).columns) == 2
    assert cli.main(["convert", str(tmp_path / "encoder.pkl"), str(tmp_path / "native")]) == 0
    assert "dalle" in capsys.readouterr().out
    assert cli.main(["convert", str(tmp_path / "encoder.pkl"), str(tmp_path / "x.pth"), "--to", "timm"]) == 2
    with pytest.raises(UserError, match="decoder alone"):
        api.load(tmp_path / "decoder.pkl")
    damaged = bytearray((tmp_path / "encoder.pkl").read_bytes())
    (tmp_path / "encoder.pkl").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(UserError, match=r"^Expected [^\n]*$"):
        api.load(tmp_path / "encoder.pkl")


# Opcodes: an object of a class with a state by name.
MODULE = b"cno_such\nModule\n)\x81"
ENDLESS = MODULE + b"q\0}" + text(b"_modules") + b"}" + text(b"again") + b"h\0ssb"


@pytest.mark.parametrize(
    "program",
    [
        MODULE,
        MODULE + b"K\x03b",
        MODULE + b"}" + text(b"_parameters") + b"K\x03sb",
        ENDLESS,
        b"".join([MODULE + b"}" + text(b"_modules") + b"}" + text(b"x" * 99)] * 50) + MODULE + b"ssb" * 50,
        b"cno_such\ncall\n" + tensor() + b"\x85R",
        b"cno_such\nbuild\n" + ENDLESS + b"\x85R",
    ],
    ids=range(7),
)
def test_modules_that_lie(program, tmp_path):
    assert measured(pth(tmp_path / "x.pkl", program))


def test_a_module_by_hand(tmp_path):
    numbers = struct.pack("<8f", *range(8))
    inner = MODULE + b"}" + text(b"_parameters") + b"}" + text(b"w") + tensor() + b"ssb"
    program = MODULE + b"}" + text(b"_modules") + b"}" + text(b"a") + inner + b"ssb"
    from vit_jax.conversion.files import open_archive

    archive = open_archive(pth(tmp_path / "x.pkl", program, numbers))
    assert list(archive.tensors) == ["a.w"]
    np.testing.assert_array_equal(archive.tensors["a.w"], range(8))
