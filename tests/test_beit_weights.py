"""BEiT's files in and out: unilm's .pth, Hugging Face's folders, what they are used for, and files that contradict themselves."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit_jax
from tests import tolerances
from tests.beit_twins import KINDS, beit, hidden_patches, pixels, relative_index, torch, unilm
from tests.torch_twins import relative
from vit_jax import UserError, configuration, train
from vit_jax.commands.cli import main
from vit_jax.conversion.convert import write
from vit_jax.ops.positions import resample_relative
from vit_jax.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore")
MASKED, CLASSIFIER = "BeitForMaskedImageModeling", "BeitForImageClassification"
FILES = {MASKED: "beit_pt22k.pth", CLASSIFIER: "beit_ft22kto1k.pth"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """name -> (model, file, tensors): pre-trained and fine-tuned, as unilm writes them, buffers and all."""
    folder, found = tmp_path_factory.mktemp("unilm"), {}
    for name, file in FILES.items():
        model = beit(name)
        tensors, buffers = unilm(model)
        torch.save({"model": tensors | buffers, "epoch": 799}, folder / file)
        found[name] = model, folder / file, tensors
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (model, folder) of transformers, each read by several tests."""
    home, found = tmp_path_factory.mktemp("hf"), {}
    for name in KINDS:
        found[name] = beit(name), home / name
        found[name][0].save_pretrained(home / name)
    return found


def outputs(trained_or_model):
    """Logits, or what a masked image model says of every patch."""
    model = getattr(trained_or_model, "model", trained_or_model)
    masked = hasattr(model, "mask_token")
    given = (pixels()[0], hidden_patches()) if masked else (pixels()[0],)
    return np.asarray(nnx.jit(lambda model, *given: model(*given))(model, *map(jnp.asarray, given)))


def theirs(model):
    with torch.no_grad():
        if model.config.architectures[0].endswith("Model"):
            return model(pixels()[1]).pooler_output.numpy()
        masks = {"bool_masked_pos": torch.from_numpy(hidden_patches())} if model.config.use_mask_token else {}
        return model(pixels()[1], **masks).logits.numpy()


# ---- unilm's files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_unilms_files_are_read_and_go_out_as_they_came(name, published, tmp_path):
    model, file, tensors = published[name]
    assert relative(outputs(vit_jax.load(file)), theirs_of(model)) < tolerances.CONVERTED
    weights, _ = open_weights(file)
    write(weights, tmp_path / "out.pth", "beit")
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(back) == {"model"}
    assert back["model"].keys() == tensors.keys()
    assert all(torch.equal(back["model"][key], tensor) for key, tensor in tensors.items())


def theirs_of(model):
    model.config.architectures = [type(model).__name__]
    return theirs(model)


def test_what_a_pre_trained_file_tells(published):
    config = open_weights(published[MASKED][1])[0].config
    assert config["objective"] == "beit"
    assert config["beit"] == {
        "vocab_size": 24, "tokenizer": None, "tokenizer_sha256": None, "num_masked": None, "min_block": None,
    }  # fmt: skip
    pp, model = config["pp"], config["model"]
    assert (pp["crop"], pp["mean"], pp["std"], pp["interpolation"]) == (32, (0.5,), (0.5,), "bicubic")
    assert (pp["second_share"], pp["second_interpolation"]) == (1.0, "lanczos")  # codes of 8 x 8, as patches are here
    assert (model["relative_positions"], model["key_bias"], model["norm_after_pool"]) == ("shared", False, False)
    assert model["transformer"]["num_heads"] == 4  # which the table shows


def test_a_patch_of_16_has_codes_in_a_view_of_half_the_size(tmp_path):
    tensors, _ = unilm(beit(MASKED, patch_size=16, image_size=48))
    torch.save({"model": tensors}, tmp_path / "x.pth")
    pp = open_weights(tmp_path / "x.pth")[0].config["pp"]
    assert (pp["crop"], pp["second_share"]) == (48, 0.5)


def test_pixel_statistics_are_given_by_hand(published):
    """The file of a run on ImageNet-1k looks as one on ImageNet-22k, which had others."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    trained = vit_jax.load(published[MASKED][1], mean=mean, std=std)
    white = trained.pixels(np.full((32, 32, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, 0, 0], (1 - np.asarray(mean)) / np.asarray(std), rtol=1e-6)
    for wrong in ({"mean": (0.5, 0.5)}, {"std": (0.0,)}, {"mean": "grey"}, {"std": (float("nan"),)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            vit_jax.load(published[MASKED][1], **wrong)


@pytest.mark.parametrize("name", FILES)
def test_unilms_files_become_folders_by_the_command(name, published, tmp_path, capsys):
    model, file, _ = published[name]
    assert main(["convert", str(file), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert "every number read back bit for bit" in capsys.readouterr().out
    loaded, report = type(model).from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values()), report
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())
    assert relative(theirs(loaded.eval()), theirs_of(model)) < tolerances.CONVERTED


# ---- folders ---------------------------------------------------------------------------------------------------------
SAID = (
    "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "layer_norm_eps", "image_size", "patch_size", "num_channels", "use_mask_token", "drop_path_rate",
    "use_absolute_position_embeddings", "use_relative_position_bias", "use_shared_relative_position_bias",
    "use_mean_pooling", "layer_scale_init_value",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_folders_go_out_as_they_came(name, folders, tmp_path):
    model, folder = folders[name]
    weights, _ = open_weights(folder)
    write(weights, tmp_path / name, "hf")
    loaded, report = type(model).from_pretrained(tmp_path / name, output_loading_info=True)
    assert not any(report.values()), report
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in state.items())
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / name))
    said = SAID + (("vocab_size",) if "Masked" in name else ("id2label",) if "Classification" in name else ())
    changed = [field for field in said if after[field] != before[field]]
    assert not changed, changed
    for field in ("mean", "std"):  # one number for all channels is written for each
        weights.config["pp"][field] *= 3
    assert open_weights(tmp_path / name)[0].config == weights.config
    assert relative(outputs(vit_jax.load(tmp_path / name)), theirs(loaded.eval())) < tolerances.CONVERTED


def test_what_is_written_of_pictures_is_what_is_read(folders, tmp_path):
    weights, _ = open_weights(folders[CLASSIFIER][1])
    weights.config["pp"] |= {"mean": (0.1, 0.2, 0.3), "std": (0.4,), "resize": 36, "interpolation": "lanczos"}
    write(weights, tmp_path / CLASSIFIER, "hf")
    told = json.loads((tmp_path / CLASSIFIER / "preprocessor_config.json").read_text())
    assert told["image_processor_type"] == "BeitImageProcessor"
    assert (told["image_mean"], told["image_std"], told["resample"]) == ([0.1, 0.2, 0.3], [0.4, 0.4, 0.4], 1)
    assert (told["size"], told["crop_size"]) == ({"shortest_edge": 36}, {"height": 32, "width": 32})
    pp = open_weights(tmp_path / CLASSIFIER)[0].config["pp"]
    assert (pp["mean"], pp["std"], pp["resize"]) == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4), 36)


def test_a_folder_of_2021(folders, tmp_path):
    """As the hub has them: a pickle with buffers, and the words of an older preprocessor."""
    model, folder = folders[CLASSIFIER]
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        name = f"beit.encoder.layer.{layer}.attention.attention.relative_position_bias.relative_position_index"
        tensors[name] = relative_index(4)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    old = {"feature_extractor_type": "BeitFeatureExtractor", "crop_size": 32, "size": 32, "do_center_crop": False,
           "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    trained = vit_jax.load(tmp_path)
    assert relative(outputs(trained), theirs(model)) < tolerances.CONVERTED
    pp = trained.config["pp"]
    assert (pp["resize"], pp["interpolation"], pp["mean"]) == (None, "bilinear", (0.5, 0.5, 0.5))


def test_an_encoder_leaves_a_mask_token_without_a_head(tmp_path):
    """As AutoModel saves the encoder of a masked image model."""
    model = beit("BeitModel", use_mask_token=True)
    model.save_pretrained(tmp_path / "in")
    weights, _ = open_weights(tmp_path / "in")
    write(weights, tmp_path / "out", "hf")
    loaded, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.state_dict().keys() - loaded.state_dict().keys() == {"embeddings.mask_token"}
    assert relative(theirs(loaded.eval()), theirs(model)) < tolerances.CONVERTED
