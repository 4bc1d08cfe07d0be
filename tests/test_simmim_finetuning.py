"""Twenty steps of SimMIM's fine-tuning beside timm's BEiT and PyTorch's AdamW, with the published groups and schedule."""

import math

import pytest

from tests.test_protocols import small_program
from tests.test_simmim import Theirs, references

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")

from tests.test_trajectories import TOTAL, WARMUP, begun, compare, recipe  # noqa: E402
from vit_jax.weights import open_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES, DECAY, DEPTH = 5, 0.65, 3


def rate(step, config, scale):
    """One step late, the cosine counted from step 0; layer decay scales the peak, not the first and the last rate."""
    asked, peak = max(step - 1, 0), scale * config.base_lr
    if asked < WARMUP:
        return config.warmup_lr + asked * (peak - config.warmup_lr) / WARMUP
    return config.end_lr + 0.5 * (peak - config.end_lr) * (1 + math.cos(math.pi * asked / TOTAL))


def layer_of(name):
    """SimMIM's get_vit_layer: what comes before the blocks 0, block i is i + 1, the rest last."""
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else DEPTH + 1


def test_twenty_steps_equal_pytorchs(tmp_path):
    timm = references()[1]
    config = recipe("simmim_finetune.py:b16")
    config.model.transformer.mlp_dim = 128
    config.update({"warmup_lr": 1e-4, "end_lr": 2e-4, "grad_norm_clip": 0.4})
    assert (config.schedule, config.layer_decay, config.model.relative_positions) == ("simmim", DECAY, "block")
    program, state, mesh = small_program(config, CLASSES)
    torch.manual_seed(0)
    model = Theirs(torch, timm, config, shared=False, classes=CLASSES).encoder.train()
    del model.mask_token
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)

    def read_back():
        torch.save(model.state_dict(), tmp_path / "beit.pth")
        return open_weights(tmp_path / "beit.pth")[0].params

    state = begun(state, read_back())
    groups = [
        (
            [parameter],
            DECAY ** (DEPTH + 1 - layer_of(name)),
            0.0 if parameter.ndim == 1 or name.endswith(".bias") or name == "cls_token" else config.weight_decay,
        )
        for name, parameter in model.named_parameters()
    ]
    assert len({scale for _, scale, _ in groups}) == DEPTH + 2

    def theirs(pixels, batch, step):
        labels = torch.from_numpy(batch.label).long()
        return torch.nn.functional.cross_entropy(model(pixels), labels, label_smoothing=config.label_smoothing)

    norms = compare(config, CLASSES, state, program, mesh, theirs, groups, read_back, rate)
    assert min(norms) < config.grad_norm_clip < max(norms)
