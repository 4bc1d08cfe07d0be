"""SimMIM: its masks, its loss beside PyTorch's around timm's BEiT, its schedule beside timm's scheduler, its files."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from tests.test_protocols import batches, small_program
from tests.timm_twins import load_timm
from vit_jax import UserError, configuration, sharding
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble, build
from vit_jax.methods.simmim import hidden_squares
from vit_jax.models.registry import count_params
from vit_jax.ops.keys import fold, key_for
from vit_jax.ops.paths import flat_params, path_name
from vit_jax.ops.pixels import normalise
from vit_jax.training.schedules import make_schedule

pytestmark = pytest.mark.filterwarnings("ignore")


def recipe(name="simmim.py:b16"):
    """The published recipe on a small model; what is random in training but the masks is off."""
    config = configuration.load(name)
    config.update({"compute_dtype": "float32", "batch": 8, "total_epochs": None, "total_steps": 40})
    config.update(
        {"warmup_steps": 5, "base_lr": 1e-2, "lr_scaling": None, "warmup_lr": 1e-4, "mixup": 0.0, "cutmix": 0.0}
    )
    config.pp.crop = 32
    config.model.patches.size, config.model.hidden_size = (8, 8), 32
    config.model.transformer.update({"num_layers": 3, "num_heads": 4, "mlp_dim": 128, "drop_path": 0.0})
    if config.objective == "simmim":
        config.simmim.mask_unit = 16
    return config


def references():
    """(torch, timm), or the test is skipped."""
    torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
    if (timm := load_timm()) is None:
        pytest.skip("timm is not installed")
    importlib.import_module("timm.scheduler")
    return torch, timm


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_squares_are_hidden_whole_and_as_many_as_published():
    config = configuration.load("simmim.py:b16")
    hidden = np.asarray(hidden_squares(jax.random.split(jax.random.key(0), 64), config)).reshape(64, 14, 14)
    assert (hidden.sum((1, 2)) == 120).all()  # 30 of 49 squares of 2 x 2 patches
    squares = hidden.reshape(64, 7, 2, 7, 2).sum((2, 4))
    assert set(np.unique(squares)) == {0, 4}
    assert abs(squares.mean() / 4 - 30 / 49) < 1e-6
    assert (squares.mean(0) / 4).min() > 0.4  # every place has its turn


@pytest.mark.parametrize(
    "changes", [{"simmim.mask_unit": 24}, {"pp.crop": 240}, {"simmim.mask_unit": 8}, {"pp.crop": (224, 80)}]
)
def test_a_unit_that_does_not_fit_is_a_sentence(changes):
    config = configuration.load("simmim.py:b16")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=r"change simmim\.mask_unit"):
        hidden_squares(jax.random.split(jax.random.key(0), 2), config)


def test_predictions_do_not_see_what_is_hidden():
    config = recipe()
    model = build(config, None)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.standard_normal((2, 32, 32, 3)), jnp.float32)
    hidden = hidden_squares(jax.random.split(jax.random.key(1), 2), config)
    shown = jnp.repeat(jnp.repeat(hidden.reshape(2, 4, 4), 8, 1), 8, 2)[..., None]
    other = jnp.where(shown, jnp.asarray(rng.standard_normal(pixels.shape), jnp.float32), pixels)
    apply = nnx.jit(lambda model, pixels: model(pixels, hidden))
    np.testing.assert_array_equal(apply(model, pixels), apply(model, other))
    assert float(jnp.abs(apply(model, pixels) - apply(model, pixels + 1.0)).max()) > 0


def test_parameters_are_the_published_count():
    shapes = jax.eval_shape(lambda: build(configuration.load("simmim.py:b16"), None))
    assert count_params(nnx.state(shapes, nnx.Param)) == 86_256_720


@pytest.mark.slow
def test_digits_learn_by_it(tmp_path):
    """Below the error of every patch's own mean, which knows the picture."""
    from vit_jax import train

    config = configuration.load("digits.py:pretrain,simmim")
    config.update({"total_steps": 60, "warmup_steps": 6, "batch": 96, "eval_every": 0, "base_lr": 4e-3})
    config.model.transformer.num_layers = config.unroll = 1
    found = train.run(config, tmp_path / "run").metrics
    assert found["loss"] < 0.75  # 0.87 is the deviation of the pixels from the mean picture


# ---- the schedule ----------------------------------------------------------------------------------------------------


def test_the_cosine_is_one_step_late_and_layer_decay_scales_the_peak_alone():
    """Beside timm's scheduler, called after the optimiser as the published loop does it."""
    torch, timm = references()
    total, warm, start, end, peak = 40, 5, 1e-3, 2e-3, 0.5
    config = configuration.load("simmim_finetune.py:b16")
    config.update({"base_lr": peak, "lr_scaling": None, "warmup_lr": start, "end_lr": end})
    schedule = make_schedule(config, total, warm)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": peak * scale} for scale in (1.0, 0.5)]
    optimizer = torch.optim.AdamW(groups)
    theirs = timm.scheduler.CosineLRScheduler(
        optimizer, t_initial=total, lr_min=end, cycle_limit=1, warmup_t=warm, warmup_lr_init=start, t_in_epochs=False
    )
    for step in range(total):
        rate, shared = float(schedule(step)), float(schedule.shared(step))
        found = [shared + scale * (rate - shared) for scale in (1.0, 0.5)]
        np.testing.assert_allclose(found, [group["lr"] for group in optimizer.param_groups], rtol=2e-6)
        theirs.step_update(step)


def test_the_drop_comes_one_step_late():
    """The published scheduler by hand: warm-up, then x 0.1 from step 30 on, asked for the step before."""
    config = configuration.load("simmim.py:b16")
    config.update({"base_lr": 0.5, "lr_scaling": None, "warmup_lr": 1e-3, "decay_boundaries": (0.75,)})
    schedule = make_schedule(config, 40, 5)
    for step in range(40):
        asked = max(step - 1, 0)
        expected = 1e-3 + asked * (0.5 - 1e-3) / 5 if asked < 5 else 0.5 * 0.1 ** (asked >= 30)
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6), step


def test_beits_warm_up_reaches_the_peak_a_step_earlier():
    config = configuration.load("vit.py:b16,cifar10")
    config.update({"schedule": "beit", "base_lr": 1.0, "end_lr": 0.1, "decay_type": "cosine"})
    rates = [float(make_schedule(config, 20, 5)(step)) for step in range(20)]
    expected = [*np.linspace(0, 1, 5), *(0.1 + 0.45 * (1 + math.cos(math.pi * i / 15)) for i in range(15))]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


# ---- beside PyTorch --------------------------------------------------------------------------------------------------


class Theirs:
    """timm's BEiT as SimMIM's encoder, the decoder and the loss from the paper's description."""

    def __init__(self, torch, timm, config, shared=True, classes=0):
        body = config.model.transformer
        self.torch = torch
        self.encoder = timm.models.beit.Beit(
            img_size=config.pp.crop, patch_size=config.model.patches.size[0], embed_dim=config.model.hidden_size,
            depth=body.num_layers, num_heads=body.num_heads, mlp_ratio=body.mlp_dim / config.model.hidden_size,
            init_values=body.layer_scale, use_abs_pos_emb=False, use_rel_pos_bias=not shared,
            use_shared_rel_pos_bias=shared, global_pool="avg", num_classes=classes,
        )  # fmt: skip
        if shared:
            self.encoder.fc_norm, self.encoder.norm = torch.nn.Identity(), torch.nn.LayerNorm(32, eps=1e-6)
        self.encoder.mask_token = torch.nn.Parameter(torch.zeros(1, 1, config.model.hidden_size))
        self.decoder = torch.nn.Conv2d(config.model.hidden_size, 8 * 8 * 3, 1)
        self.shuffle = torch.nn.PixelShuffle(8)

    def named(self):
        return {f"encoder.{name}": p for name, p in self.encoder.named_parameters()} | {
            f"decoder.0.{name}": p for name, p in self.decoder.named_parameters()
        }

    def reconstructed(self, pixels, hidden):
        x, encoder = self.encoder.patch_embed(pixels), self.encoder
        m = hidden.reshape(len(x), -1, 1).to(x.dtype)
        x = x * (1 - m) + encoder.mask_token * m
        x = self.torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
        bias = encoder.rel_pos_bias() if encoder.rel_pos_bias is not None else None
        for block in encoder.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        x = encoder.norm(x)[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4)
        return self.shuffle(self.decoder(x))

    def loss(self, pixels, hidden):
        m = hidden.reshape(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).to(pixels.dtype)
        off = self.torch.nn.functional.l1_loss(pixels, self.reconstructed(pixels, hidden), reduction="none")
        return (off * m).sum() / (m.sum() + 1e-5) / 3


@pytest.fixture
def both(tmp_path):
    """(torch, their model with random weights, the small recipe, our reading of their file)."""
    torch, timm = references()
    from vit_jax.weights import open_weights

    config = recipe()
    torch.manual_seed(0)
    theirs = Theirs(torch, timm, config)
    for parameter in theirs.named().values():
        torch.nn.init.normal_(parameter, std=0.1)

    def read(name="simmim.pth"):
        torch.save({"model": {key: p.detach().clone() for key, p in theirs.named().items()}}, tmp_path / name)
        return open_weights(tmp_path / name)[0]

    return torch, theirs, config, read


def test_forward_loss_and_gradients_equal_pytorchs(both):
    torch, theirs, config, read = both
    weights = read()
    assert (weights.source, weights.config["objective"], weights.config["pp"]["crop"]) == ("simmim", "simmim", 32)
    model = assemble(configuration.plain(config), None, weights.params)
    batch = next(batches(config, None, 1))
    key = jax.random.key(3)
    objective = method_of(config).objective(config, None)
    inputs = objective.prepare(jax.tree.map(jnp.asarray, batch), key, True)
    pixels = torch.from_numpy(np.array(inputs["images"]).transpose(0, 3, 1, 2).copy())
    hidden = torch.from_numpy(np.array(inputs["hidden"]))
    loss = theirs.loss(pixels, hidden)
    loss.backward()
    predicted = np.asarray(model(inputs["images"], inputs["hidden"])).reshape(8, 4, 4, 8, 8, 3)
    expected = (
        theirs.reconstructed(pixels, hidden).detach().numpy().reshape(8, 3, 4, 8, 4, 8).transpose(0, 2, 4, 3, 5, 1)
    )
    assert np.abs(predicted - expected).max() <= tolerances.FORWARD * np.abs(expected).max()

    graph, params = nnx.split(model)

    def ours(params):
        return objective.losses(nnx.merge(graph, params), inputs, None, False)[0].reduce().value()

    value, gradient = jax.value_and_grad(ours)(params)
    assert abs(float(value) - float(loss)) <= tolerances.FORWARD * float(loss)
    for parameter in theirs.named().values():
        parameter.data = parameter.grad
    wanted = read("gradients.pth").params
    found = flat_params(gradient)
    assert found.keys() == wanted.keys()
    errors = {
        path: np.abs(np.asarray(found[path]) - wanted[path]).max() / np.abs(wanted[path]).max() for path in wanted
    }
    assert max(errors.values()) <= tolerances.GRADIENT, errors


def test_twenty_steps_equal_pytorchs(both):
    """AdamW with the published groups, clip and schedule; the masks are ours."""
    torch, theirs, config, read = both
    program, state, mesh = small_program(config, None)
    start = read().params
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(start[path_name(path)], leaf.sharding), state.params
    )
    state = state._replace(params=params)
    plain, bare = [], []
    for name, parameter in theirs.named().items():
        skipped = parameter.ndim <= 1 or name.endswith(".bias") or name == "encoder.cls_token"
        (bare if skipped else plain).append(parameter)
    optimizer = torch.optim.AdamW([{"params": plain, "weight_decay": 0.05}, {"params": bare, "weight_decay": 0.0}])
    schedule = make_schedule(config, config.total_steps, config.warmup_steps)
    for step, batch in enumerate(batches(config, None, 20)):
        hidden = hidden_squares(fold(jax.random.split(key_for(0, "train", step), 8), 1), config)
        pixels = (
            np.array(normalise(jnp.asarray(batch.image), config.pp.mean, config.pp.std)).transpose(0, 3, 1, 2).copy()
        )
        loss = theirs.loss(torch.from_numpy(pixels), torch.from_numpy(np.array(hidden)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*plain, *bare], config.grad_norm_clip)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step))
        optimizer.step()
        state, report = program.step(state, sharding.put(batch, mesh), np.int32(0))
        ours = float(report.means["loss"].total / report.means["loss"].count)
        assert abs(ours - float(loss)) <= tolerances.TRAJECTORY_LOSS * float(loss), (step, ours, float(loss))
    wanted = read("last.pth").params
    for path, leaf in flat_params(state.params).items():
        error = np.abs(np.asarray(leaf) - wanted[path]).max() / np.abs(wanted[path]).max()
        assert error <= tolerances.TRAJECTORY_PARAMS, (path, error)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_go_out_as_they_came(both, tmp_path):
    torch, _, _, read = both
    from vit_jax.conversion.convert import write

    weights = read()
    write(weights, tmp_path / "out.pth", "beit")
    there, back = (torch.load(tmp_path / name, weights_only=True)["model"] for name in ("simmim.pth", "out.pth"))
    assert there.keys() == back.keys()
    assert all(torch.equal(there[name], back[name]) for name in there)
    with pytest.raises(UserError, match="a place for every parameter"):
        write(weights, tmp_path / "out.safetensors", "timm")


@pytest.mark.parametrize("classes", [5, 0])
def test_fine_tuned_models_of_timm_are_read(classes, tmp_path):
    torch, timm = references()
    import vit_jax

    config = recipe()
    theirs = Theirs(torch, timm, config, shared=False, classes=classes).encoder
    del theirs.mask_token
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "beit.pth")
    ours = vit_jax.load(tmp_path / "beit.pth")
    pixels = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    expected = theirs.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).detach().numpy()
    found = np.asarray(ours.model(jnp.asarray(pixels)))
    assert np.abs(found - expected).max() <= tolerances.FORWARD * np.abs(expected).max()
    assert ours.config["model"]["relative_positions"] == "block"
    larger = vit_jax.load(tmp_path / "beit.pth", image_size=48)
    assert any("relative_positions resampled from (4, 4) to (6, 6) (geometric)" in note for note in larger.notes)


def test_fine_tuning_gives_every_block_the_shared_table(both, tmp_path):
    from vit_jax.training.transfer import transfer

    weights = both[3]()
    config = recipe("simmim_finetune.py:b16")
    shapes = {
        path: leaf.shape for path, leaf in flat_params(nnx.split(jax.eval_shape(lambda: build(config, 7)))[1]).items()
    }
    moved = transfer(weights.params, weights.config, shapes, config)
    table = moved.params["transformer/blocks/attention/relative_positions"]
    assert table.shape == (3, 7 * 7 + 3, 4)
    for block in range(3):
        np.testing.assert_array_equal(table[block], weights.params["encoder/transformer/relative_positions"])
    assert sorted(moved.fresh) == ["head_out/bias", "head_out/kernel", "norm/bias", "norm/scale"]
    assert sorted(moved.unused) == [
        "encoder/norm/bias",
        "encoder/norm/scale",
        "mask_token",
        "predict/bias",
        "predict/kernel",
    ]


def test_micro_batches_with_unequal_rows_add_up():
    """Rows of weight 0 count for nothing, whatever is hidden in them."""
    config = recipe()
    objective, model = method_of(config).objective(config, None), build(config, None)
    batch = next(batches(config, None, 1))
    half = batch._replace(weight=np.asarray([1, 0, 1, 0, 1, 0, 0, 0], np.float32))
    inputs = objective.prepare(jax.tree.map(jnp.asarray, half), jax.random.key(0), True)
    whole = objective.losses(model, inputs, None, False)[0]
    assert set(np.unique(np.asarray(whole.count))) == {0.0, 12.0}  # 3 of 4 squares of 4 patches
    first, second = (
        objective.losses(model, jax.tree.map(lambda x, part=part: x[part], inputs), None, False)[0].reduce()
        for part in (np.s_[:4], np.s_[4:])
    )
    np.testing.assert_allclose(first.merge(second).value(), whole.reduce().value(), rtol=1e-6)
