"""transformers' BEiT, tiny, with weights that all matter; and the state dict that microsoft/unilm would write for it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")

from tests.test_parity_transformers import randomise  # noqa: E402

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
         "patch_size": 8, "num_labels": 5, "vocab_size": 24, "drop_path_rate": 0.0, "layer_norm_eps": 1e-6}  # fmt: skip
# What config.json says beside sizes. The first two are as published (use_mean_pooling is true unless it is said).
KINDS = {
    "BeitForMaskedImageModeling": {"use_mask_token": True, "use_shared_relative_position_bias": True},
    "BeitForImageClassification": {"use_relative_position_bias": True},
    "BeitForMaskedImageModeling-positions": {"use_mask_token": True, "use_absolute_position_embeddings": True},
    "BeitForImageClassification-token": {"use_relative_position_bias": True, "use_mean_pooling": False},
    "BeitForImageClassification-bare": {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0},
    "BeitModel": {"use_relative_position_bias": True, "layer_scale_init_value": 1e-5},
    "BeitModel-token": {
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": False,
        "hidden_act": "gelu_pytorch_tanh",
    },
}


def beit(name, **changes):
    """The architecture before the "-" of a name of KINDS."""
    fields = {**SIZES, **KINDS[name], **changes}
    model = getattr(transformers, name.split("-")[0])(transformers.BeitConfig(**fields))
    randomise(model)
    if fields.get("use_absolute_position_embeddings"):
        torch.nn.init.normal_(getattr(model, "beit", model).embeddings.position_embeddings)
    return model.eval()


def relative_index(grid):
    """The buffer of every table of relative positions: its row for every query and key, the class token first."""
    patches = [(row, column) for row in range(grid) for column in range(grid)]
    offsets, index = (2 * grid - 1) ** 2, torch.zeros((grid * grid + 1,) * 2, dtype=torch.long)
    for one, (row, column) in enumerate(patches, 1):
        for other, (below, beside) in enumerate(patches, 1):
            index[one, other] = (row - below + grid - 1) * (2 * grid - 1) + column - beside + grid - 1
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


PARTS = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}  # fmt: skip
OUTSIDE = {
    "cls_token": "beit.embeddings.cls_token", "mask_token": "beit.embeddings.mask_token",
    "patch_embed.proj.weight": "beit.embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "beit.embeddings.patch_embeddings.projection.bias",
    "rel_pos_bias.relative_position_bias_table": "beit.shared_position_bias.relative_position_bias_table",
    "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
    "fc_norm.weight": "beit.pooler.layernorm.weight", "fc_norm.bias": "beit.pooler.layernorm.bias",
    "lm_head.weight": "lm_head.weight", "lm_head.bias": "lm_head.bias",
    "head.weight": "classifier.weight", "head.bias": "classifier.bias",
}  # fmt: skip


def unilm(model):
    """(tensors, buffers) by the names of microsoft/unilm's beit/modeling_pretrain.py and modeling_finetune.py."""
    theirs = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tensors = {ours: theirs[name] for ours, name in OUTSIDE.items() if name in theirs}
    grid = model.config.image_size // model.config.patch_size
    buffers = {"rel_pos_bias.relative_position_index": relative_index(grid)}
    for number in range(model.config.num_hidden_layers):
        layer, block = f"beit.layers.{number}", f"blocks.{number}"
        for ours, name in PARTS.items():
            for kind in ("weight", "bias"):
                tensors[f"{block}.{ours}.{kind}"] = theirs[f"{layer}.{name}.{kind}"]
        fused = [theirs[f"{layer}.attention.{part}_proj.weight"] for part in "qkv"]
        tensors[f"{block}.attn.qkv.weight"] = torch.cat(fused)
        for part in "qv":
            tensors[f"{block}.attn.{part}_bias"] = theirs[f"{layer}.attention.{part}_proj.bias"]
        for scale in (1, 2):
            tensors[f"{block}.gamma_{scale}"] = theirs[f"{layer}.lambda_{scale}"]
        if (table := f"{layer}.relative_position_bias.relative_position_bias_table") in theirs:
            tensors[f"{block}.attn.relative_position_bias_table"] = theirs[table]
            buffers = {key: index for key, index in buffers.items() if not key.startswith("rel_pos")}
            buffers[f"{block}.attn.relative_position_index"] = relative_index(grid)
    return tensors, buffers


def pixels(size=32, count=3):
    """(ours, theirs) of the same noise."""
    ours = np.random.default_rng(0).standard_normal((count, size, size, 3)).astype(np.float32)
    return ours, torch.from_numpy(np.ascontiguousarray(ours.transpose(0, 3, 1, 2)))


def hidden_patches(counts=(4, 6, 2), patches=16):
    """Masks that hide so many patches each, in no order."""
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(patches) < count for count in counts])
