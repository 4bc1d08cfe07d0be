"""Converted weights against the original PyTorch code: `transformers`, timm; `.pth` files, hostile ones too."""

import argparse
import pickle
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the `torch` extra is not installed")
transformers = pytest.importorskip("transformers", reason="the `torch` extra is not installed")

import vit_jax  # noqa: E402
from tests import tolerances  # noqa: E402
from tests.test_conversion import relative  # noqa: E402
from tests.test_parity_transformers import randomise, set_their_tables  # noqa: E402
from tests.timm_twins import load_timm  # noqa: E402
from vit_jax import UserError  # noqa: E402
from vit_jax.conversion.convert import write  # noqa: E402
from vit_jax.conversion.pickles import read_pickled  # noqa: E402
from vit_jax.ops.masks import from_scores  # noqa: E402
from vit_jax.weights import open_weights  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
timm = load_timm()
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")
PICTURES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
         "image_size": 32, "patch_size": 8}  # fmt: skip
LIGHT = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2,
         "decoder_intermediate_size": 32}  # fmt: skip
HF = {
    "ViTForImageClassification": ("ViTConfig", {"num_labels": 5}, "logits"),
    "ViTForImageClassification-tanh": ("ViTConfig", {"num_labels": 5, "hidden_act": "gelu_new"}, "logits"),
    "ViTModel": ("ViTConfig", {}, "pooler_output"),
    "DeiTModel": ("DeiTConfig", {}, "pooler_output"),
    "DeiTForImageClassification": ("DeiTConfig", {"num_labels": 5}, "logits"),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {"num_labels": 5}, "logits"),
}


def as_torch(pictures):
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def logits(path, pictures=PICTURES, **given):
    model = vit_jax.load(path, **given).model
    return np.asarray(jax.jit(lambda x: model(x))(pictures))


def theirs(model, pictures=PICTURES, out=None):
    with torch.no_grad():
        found = model.eval()(as_torch(pictures))
    return (found if out is None else getattr(found, out)).numpy()


@pytest.mark.parametrize("name", HF)
def test_hugging_face_folders_both_ways(name, tmp_path):
    kind, fields, out = HF[name]
    architecture = getattr(transformers, name.split("-")[0])
    model = architecture(getattr(transformers, kind)(**SMALL, **fields))
    randomise(model)
    model.save_pretrained(tmp_path / "in")
    expected = theirs(model, out=out)
    assert relative(logits(tmp_path / "in"), expected) < tolerances.CONVERTED
    weights, _ = open_weights(tmp_path / "in")
    write(weights, tmp_path / "out", "hf")
    loaded, report = architecture.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert relative(theirs(loaded, out=out), expected) < tolerances.CONVERTED


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    model = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(**SMALL, **LIGHT, norm_pix_loss=True, layer_norm_eps=1e-6)
    )
    set_their_tables(model)
    randomise(model)
    folder = tmp_path_factory.mktemp("mae")
    model.save_pretrained(folder / "hf")
    return model.eval(), folder / "hf"


def our_prediction(path, scores, **given):
    model = vit_jax.load(path, **given).model
    mask = from_scores(jnp.asarray(scores), 4)
    return np.asarray(jax.jit(lambda x: model(x, mask))(PICTURES))


def test_mae_of_hugging_face_and_of_facebook(mae_folder, tmp_path):
    model, folder = mae_folder
    scores = np.random.default_rng(1).random((2, 16)).astype(np.float32)
    with torch.no_grad():
        expected = model(as_torch(PICTURES), noise=torch.from_numpy(scores)).logits.numpy()
    assert relative(our_prediction(folder, scores), expected) < tolerances.CONVERTED
    weights, _ = open_weights(folder)
    assert weights.config["mae"]["normalised_target"]
    # Facebook's file: names and shapes as published, the state dict under "model"
    write(weights, tmp_path / "mae_pretrain_full.pth", "mae")
    stored = torch.load(tmp_path / "mae_pretrain_full.pth", weights_only=True)["model"]
    assert {"cls_token", "pos_embed", "decoder_pos_embed", "mask_token", "decoder_pred.weight"} <= set(stored)
    assert stored["blocks.2.attn.qkv.weight"].shape == (96, 32)
    assert stored["decoder_blocks.1.mlp.fc1.bias"].shape == (32,)
    given = {"num_heads": 4, "decoder_num_heads": 2}
    assert np.array_equal(
        our_prediction(tmp_path / "mae_pretrain_full.pth", scores, **given), our_prediction(folder, scores)
    )
    # The demo's files predict raw pixels; nothing in them says so but the name.
    (tmp_path / "mae_pretrain_full.pth").rename(tmp_path / "mae_visualize_x.pth")
    assert not open_weights(tmp_path / "mae_visualize_x.pth", **given)[0].config["mae"]["normalised_target"]
    write(weights, tmp_path / "again", "hf")
    loaded, report = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_position_tables_that_are_not_the_formula_are_refused(mae_folder, tmp_path):
    weights, _ = open_weights(mae_folder[1])
    write(weights, tmp_path / "x.pth", "mae")
    stored = torch.load(tmp_path / "x.pth", weights_only=True)
    stored["model"]["decoder_pos_embed"] += 0.1
    torch.save(stored, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"decoder_pos_embed .expected the sin-cos formula"):
        open_weights(tmp_path / "x.pth", num_heads=4, decoder_num_heads=2)


# name: (timm's model, its settings, the wrapper that the published file has)
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
TIMM = {
    "augreg": ("vit_tiny_patch16_224", {}, False),
    "21k": ("vit_tiny_patch16_224", {"num_classes": 0}, False),
    "mae_finetuned": ("vit_tiny_patch16_224", {"global_pool": "avg"}, True),
    "deit": ("deit_tiny_patch16_224", {}, True),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {}, True),
    "deit3": ("deit3_small_patch16_224", {}, True),
}


@needs_timm
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", TIMM)
def test_timm_mae_and_deit_files(name, suffix, tmp_path):
    kind, fields, wrapped = TIMM[name]
    model = timm.create_model(kind, **{**SIZES, **fields})
    randomise(model)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if name == "deit3":  # Facebook's own spelling
        state = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for key, v in state.items()}
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save({"model": state, "args": argparse.Namespace(lr=1e-3), "epoch": 3} if wrapped else state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)
    expected = theirs(model)
    assert relative(logits(path, num_heads=4), expected) < tolerances.CONVERTED
    weights, _ = open_weights(path, num_heads=4)
    if suffix == ".pth":
        mean = weights.config["pp"]["mean"]
        assert tuple(mean) == ((0.485, 0.456, 0.406) if wrapped else (0.5,))
    write(weights, tmp_path / "back.pth", "mae" if name == "deit3" else "timm")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    back = back.get("model", back)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@needs_timm
def test_published_sizes_equal_at_b(tmp_path):
    model = timm.create_model("vit_base_patch16_224", num_classes=1000)
    randomise(model, scale=0.02)
    torch.save(model.state_dict(), tmp_path / "b.pth")
    picture = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    assert relative(logits(tmp_path / "b.pth", picture), theirs(model, picture)) < tolerances.CONVERTED


# name: (seconds that conversion may take, peak memory in sizes of the file)
LARGE = {"vit_base_patch16_224": (10, 2.0), "vit_large_patch16_224": (60, 2.0), "vit_huge_patch14_224": (60, 2.0)}


@needs_timm
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_sizes_convert_in_time_and_memory(name, tmp_path):
    """`vit-jax convert` in a process of its own, checks included; then the logits beside timm's."""
    import subprocess
    import sys
    import time

    model = timm.create_model(name, num_classes=1000)
    randomise(model, scale=0.02)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    size = (tmp_path / "x.pth").stat().st_size
    picture = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    expected = theirs(model, picture)
    del model
    script = (
        "import re, sys; from vit_jax import configuration; from vit_jax.conversion.convert import read, write;"
        # ru_maxrss would be this test's own: it outlives exec.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024;"
        "import jax, vit_jax.api; from vit_jax.methods.building import build; before = peak();"
        "w = read(sys.argv[1], configuration.completed);"
        "write(w, sys.argv[2], 'google'); print(peak() - before)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.pth"), str(tmp_path / "x.npz")], capture_output=True, text=True
    )
    seconds, grown = time.perf_counter() - began, int(done.stdout)
    print(f"{name}: {seconds:.1f} s, {grown / size:.2f} times the file of {size / 2**20:.0f} MiB")
    assert seconds <= LARGE[name][0]
    assert grown <= LARGE[name][1] * size
    tolerance = tolerances.CONVERTED if "base" in name else tolerances.CONVERTED_LARGE
    assert relative(logits(tmp_path / "x.pth", picture), expected) < tolerance


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_of_both_ages_without_torch(zipped, tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "view": base[1:, ::2], "half": base.to(torch.bfloat16), "scalar": torch.tensor(3.0), "long": base.long(),
        "parameter": torch.nn.Parameter(base.T),
    }  # fmt: skip
    content = {"model": state, "args": argparse.Namespace(a=1), "epoch": 7, "numpy": np.float64(2.0)}
    content["optimizer"] = torch.optim.AdamW([torch.nn.Parameter(base)]).state_dict()
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_pickled(tmp_path / "x.pth")
    assert set(read) == set(state)
    for name, tensor in state.items():
        assert np.array_equal(np.asarray(read[name], np.float64), tensor.detach().double().numpy()), name


class Hostile:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["system", "eval", "import"])
def test_hostile_pickles_are_refused_and_never_run(kind, zipped, tmp_path):
    import os

    mark = tmp_path / "ran"
    command = f"open({str(mark)!r}, 'w')"
    hostile = {
        "system": Hostile(os.system, f"touch {mark}"),
        "eval": Hostile(eval, command),
        "import": Hostile(__import__, "antigravity"),
    }[kind]
    path = tmp_path / "x.pth"
    torch.save({"model": {"w": torch.zeros(2)}, "args": hostile}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="nothing of it was executed"):
        read_pickled(path)
    assert not mark.exists()


def test_a_tensor_past_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.zeros(8)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as good, zipfile.ZipFile(tmp_path / "short.pth", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name)[:4] if name.endswith("data/0") else good.read(name))
    with pytest.raises(UserError, match="past its storage"):
        _ = read_pickled(tmp_path / "short.pth")["w"]


def test_other_pickles_are_no_weights(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError):
        read_pickled(tmp_path / "x.pth")
