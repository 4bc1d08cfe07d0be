"""The same model in `transformers`, and its tensors under our names: for the parity tests."""

import re

import numpy as np

PARTS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attention/out",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}


def as_numpy(tensors):
    return {name: tensor.detach().double().numpy().astype(np.float32) for name, tensor in tensors.items()}


def _blocks(tensors, theirs, ours, heads):
    """Per-layer tensors stacked along a leading axis, q, k, v fused into (d, 3, h, e)."""
    depth = 1 + max(int(match[1]) for name in tensors if (match := re.match(rf"{re.escape(theirs)}\.(\d+)\.", name)))
    layers = [
        {name.removeprefix(f"{theirs}.{i}."): t for name, t in tensors.items() if name.startswith(f"{theirs}.{i}.")}
        for i in range(depth)
    ]
    d = layers[0]["attention.q_proj.weight"].shape[0]
    out = {}

    def stack(name, function):
        out[f"{ours}/blocks/{name}"] = np.stack([function(layer) for layer in layers])

    qkv = ("q_proj", "k_proj", "v_proj")
    stack(
        "attention/qkv/kernel",
        lambda layer: np.stack([layer[f"attention.{p}.weight"].T.reshape(d, heads, -1) for p in qkv], 1),
    )
    stack("attention/qkv/bias", lambda layer: np.stack([layer[f"attention.{p}.bias"].reshape(heads, -1) for p in qkv]))
    for name, place in PARTS.items():
        if "norm" in name:
            stack(f"{place}/scale", lambda layer, name=name: layer[f"{name}.weight"])
        elif name == "attention.o_proj":
            stack(f"{place}/kernel", lambda layer, name=name: layer[f"{name}.weight"].T.reshape(heads, d // heads, d))
        else:
            stack(f"{place}/kernel", lambda layer, name=name: layer[f"{name}.weight"].T)
        stack(f"{place}/bias", lambda layer, name=name: layer[f"{name}.bias"])
    return out


def _encoder(tensors, heads):
    out = _blocks(tensors, "vit.layers", "transformer", heads)
    kernel = tensors["vit.embeddings.patch_embeddings.projection.weight"]  # (d, c, row, column)
    out["embedding/kernel"] = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
    out["embedding/bias"] = tensors["vit.embeddings.patch_embeddings.projection.bias"]
    out["cls"] = tensors["vit.embeddings.cls_token"][0]
    if "vit.embeddings.position_embeddings" in tensors:
        out["positions"] = tensors["vit.embeddings.position_embeddings"][0]
    out["norm/scale"], out["norm/bias"] = tensors["vit.layernorm.weight"], tensors["vit.layernorm.bias"]
    return out


def vit_params(tensors, heads):
    """transformers' ViTForImageClassification -> our paths."""
    out = _encoder(tensors, heads)
    out["head_out/kernel"], out["head_out/bias"] = tensors["classifier.weight"].T, tensors["classifier.bias"]
    return out


def mae_params(tensors, heads, decoder_heads):
    """transformers' ViTMAEForPreTraining -> our paths (position tables are constants on both sides)."""
    encoder = _encoder(tensors, heads)
    encoder.pop("positions", None)
    out = {f"encoder/{name}": value for name, value in encoder.items()}
    out |= _blocks(tensors, "decoder.decoder_layers", "decoder", decoder_heads)
    for theirs, ours in (("decoder_embed", "decoder_embed"), ("decoder_pred", "predict")):
        out[f"{ours}/kernel"], out[f"{ours}/bias"] = (
            tensors[f"decoder.{theirs}.weight"].T,
            tensors[f"decoder.{theirs}.bias"],
        )
    out["decoder_norm/scale"] = tensors["decoder.decoder_norm.weight"]
    out["decoder_norm/bias"] = tensors["decoder.decoder_norm.bias"]
    out["mask_token"] = tensors["decoder.mask_token"][0]
    return out


def beit_params(tensors, heads):
    """transformers' BeitForMaskedImageModeling or BeitForImageClassification -> our paths."""
    # Keys have no bias there, nor here; zeros in its place, and out again.
    biases = [name for name in tensors if name.endswith("q_proj.bias")]
    keyed = tensors | {name.replace("q_proj", "k_proj"): np.zeros_like(tensors[name]) for name in biases}
    out = _blocks(keyed, "beit.layers", "transformer", heads)
    out["transformer/blocks/attention/qv_bias"] = out.pop("transformer/blocks/attention/qkv/bias")[:, ::2]
    table = "relative_position_bias_table"
    own = {
        "scale1": "lambda_1",
        "scale2": "lambda_2",
        "attention/relative_positions": f"relative_position_bias.{table}",
    }
    for ours, theirs in own.items():
        if f"beit.layers.0.{theirs}" in tensors:
            layers = [tensors[f"beit.layers.{i}.{theirs}"] for i in range(len(biases))]
            out[f"transformer/blocks/{ours}"] = np.stack(layers)
    kernel = tensors["beit.embeddings.patch_embeddings.projection.weight"]  # (d, c, row, column)
    out["embedding/kernel"] = kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])
    out["embedding/bias"] = tensors["beit.embeddings.patch_embeddings.projection.bias"]
    out["cls"] = tensors["beit.embeddings.cls_token"][0]
    masked = "lm_head.weight" in tensors
    norm, head = ("layernorm", "lm_head") if masked else ("beit.pooler.layernorm", "classifier")
    out["norm/scale"], out["norm/bias"] = tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
    last = {"kernel": tensors[f"{head}.weight"].T, "bias": tensors[f"{head}.bias"]}
    if not masked:
        return out | {f"head_out/{name}": value for name, value in last.items()}
    out["transformer/relative_positions"] = tensors[f"beit.shared_position_bias.{table}"]
    out = {f"encoder/{name}": value for name, value in out.items()}
    out["mask_token"] = tensors["beit.embeddings.mask_token"][0]
    return out | {f"predict/{name}": value for name, value in last.items()}


def relative(ours, theirs):
    """Largest difference over the largest number."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
