"""Twenty steps of MAE pre-training and fine-tuning beside PyTorch's AdamW with the published parameter groups."""

import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")

from tests import tolerances  # noqa: E402
from tests.test_protocols import batches, small_program  # noqa: E402
from tests.timm_twins import load_timm  # noqa: E402
from vit_jax import configuration, sharding  # noqa: E402
from vit_jax.conversion.convert import Weights, write  # noqa: E402
from vit_jax.ops.keys import fold, key_for  # noqa: E402
from vit_jax.ops.masks import make_mask  # noqa: E402
from vit_jax.ops.paths import flat_params, path_name  # noqa: E402
from vit_jax.ops.pixels import normalise  # noqa: E402
from vit_jax.weights import open_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, TOTAL, WARMUP, SEED = 20, 40, 5, 0


def recipe(name):
    """A published recipe on a small model; what is random in training is off."""
    config = configuration.load(name)
    config.update({"total_epochs": None, "total_steps": TOTAL, "warmup_epochs": None, "warmup_steps": WARMUP})
    config.update({"batch": 8, "compute_dtype": "float32", "base_lr": 1e-2, "lr_scaling": None})
    config.pp.update({"crop": 32})
    config.model.patches.size, config.model.hidden_size = (8, 8), 32
    config.model.transformer.update({"num_layers": 3, "num_heads": 4, "mlp_dim": 48, "drop_path": 0.0})
    if config.objective == "mae":
        config.mae.decoder.update({"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32})
        config.mae.num_visible = 4
    config.update({"mixup": 0.0, "cutmix": 0.0})
    return config


def rate(step, config, scale):
    """util/lr_sched.py, by hand: linear warm-up, half a cosine after it; layer decay scales all of it."""
    if step < WARMUP:
        return scale * config.base_lr * step / WARMUP
    wave = 0.5 * (1.0 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))
    return scale * (config.end_lr + (config.base_lr - config.end_lr) * wave)


def stored(program, state, config, classes, path, to):
    """Our parameters in their format."""
    params = {name: np.array(leaf) for name, leaf in flat_params(state.params).items()}
    write(Weights(params, configuration.plain(config), classes, None, "native"), path, to)


def begun(state, params):
    """`state` with these parameters, by path."""
    found = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(params[path_name(path)], leaf.sharding), state.params
    )
    return state._replace(params=found)


def compare(config, classes, state, program, mesh, theirs, groups, read_back, rate=rate, fed=batches):
    """Step both, and give the norms of their gradients.

    `theirs(pixels, batch, step) -> loss`; `groups`: (parameters, layer decay's factor, weight decay);
    `rate(step, config, factor)`: by hand; `fed(config, classes, steps)`: the batches.
    """
    trained, norms = [parameter for group in groups for parameter in group[0]], []
    optimizer = torch.optim.AdamW(
        [{"params": list(p), "lr": 0.0, "weight_decay": decay, "scale": scale} for p, scale, decay in groups],
        betas=(config.b1, config.b2),
    )
    for step, batch in enumerate(fed(config, classes, STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, config, group["scale"])
        pixels = np.array(normalise(jax.numpy.asarray(batch.image), config.pp.mean, config.pp.std))
        loss = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), batch, step)
        optimizer.zero_grad()
        loss.backward()
        # PyTorch divides by the norm + 1e-6, and never multiplies by more than 1.
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, config.grad_norm_clip or math.inf)))
        optimizer.step()
        state, report = program.step(state, sharding.put(batch, mesh), np.int32(SEED), *program.frozen)
        ours = float(report.means["loss"].total / report.means["loss"].count)
        assert abs(ours - float(loss)) <= tolerances.TRAJECTORY_LOSS * abs(float(loss)), (step, ours, float(loss))
    expected = read_back()
    for path, leaf in flat_params(state.params).items():
        ours, wanted = np.asarray(leaf), expected[path]
        if path.endswith("qkv/bias"):
            # The key's bias shifts all logits of a query alike: its gradient is zero but for rounding, which Adam
            # blows up to full steps, on either side another way.
            ours, wanted = ours[:, ::2], wanted[:, ::2]
        difference = np.abs(ours - wanted).max() / np.abs(wanted).max()
        assert difference <= tolerances.TRAJECTORY_PARAMS, (path, difference)
    return norms


def test_mae_pre_training(tmp_path):
    config = recipe("mae.py:b16")
    program, state, mesh = small_program(config, None)
    stored(program, state, config, None, tmp_path / "init", "hf")
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "init").train()
    # transformers lets its decoder's table train; MAE's models_mae.py freezes both.
    trained = {name: p.requires_grad_("pos" not in name) for name, p in model.named_parameters() if "pos" not in name}
    plain = [p for name, p in trained.items() if p.ndim > 1 and not name.endswith(".bias")]
    bare = [p for name, p in trained.items() if p.ndim <= 1 or name.endswith(".bias")]

    def theirs(pixels, batch, step):
        keys = fold(jax.random.split(key_for(SEED, "train", step), len(pixels)), 1)
        mask = make_mask("random", keys, (4, 4), config.mae.num_visible)
        return model(pixels, noise=torch.from_numpy(np.array(mask.restore, np.float32))).loss

    def read_back():
        model.save_pretrained(tmp_path / "last")
        return open_weights(tmp_path / "last")[0].params

    compare(config, None, state, program, mesh, theirs, [(plain, 1.0, 0.05), (bare, 1.0, 0.0)], read_back)


def layer_of(name, depth):
    """util/lr_decay.py, in words: what comes before the blocks 0, block i is i + 1, the rest depth + 1."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


@pytest.mark.skipif(load_timm() is None, reason="timm is not installed")
def test_mae_fine_tuning(tmp_path):
    timm, classes, decay = load_timm(), 5, 0.65
    config = recipe("mae_finetune.py:b16")
    assert config.layer_decay == decay
    program, state, mesh = small_program(config, classes)
    stored(program, state, config, classes, tmp_path / "init.pth", "timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 1.5}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=classes, global_pool="avg").train()
    model.load_state_dict(torch.load(tmp_path / "init.pth", weights_only=True))
    groups = [
        ([p], decay ** (4 - layer_of(name, 3)), 0.0 if p.ndim == 1 or name in ("pos_embed", "cls_token") else 0.05)
        for name, p in model.named_parameters()
    ]

    def theirs(pixels, batch, step):
        labels = torch.from_numpy(batch.label).long()
        return torch.nn.functional.cross_entropy(model(pixels), labels, label_smoothing=config.label_smoothing)

    def read_back():
        torch.save(model.state_dict(), tmp_path / "last.pth")
        return open_weights(tmp_path / "last.pth", num_heads=4)[0].params

    compare(config, classes, state, program, mesh, theirs, groups, read_back)
