"""BEiT's files in and out: unilm's .pth, Hugging Face's folders, what they are for, and such as contradict themselves."""

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
from vit_jax.commands.convert import write_native
from vit_jax.conversion.convert import Weights, param_shapes, write
from vit_jax.ops.positions import resample_relative
from vit_jax.training.transfer import transfer
from vit_jax.weights import open_weights

image_processing_pil_beit = pytest.importorskip("transformers.models.beit.image_processing_pil_beit")
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


def test_pixel_statistics_are_given_to_commands(published, tmp_path, capsys):
    given = ["convert", str(published[MASKED][1]), str(tmp_path / "out"), "--to", "hf", "--mean"]
    for wrong, said in (("0.1,0.2", "Expected mean"), ("grey", "argument --mean"), ("()", "argument --mean")):
        assert main([*given, wrong]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main([*given, "0.1,0.2,0.3", "--std", "0.25"]) == 0
    pp = open_weights(tmp_path / "out")[0].config["pp"]
    assert (pp["mean"], pp["std"]) == ((0.1, 0.2, 0.3), (0.25,) * 3)


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
    weights.config["pp"] |= {"mean": (0.1, 0.2, 0.3), "std": (0.4,), "resize": 36}
    write(weights, tmp_path / CLASSIFIER, "hf")
    told = json.loads((tmp_path / CLASSIFIER / "preprocessor_config.json").read_text())
    assert told["image_processor_type"] == "BeitImageProcessor"
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    processor = image_processing_pil_beit.BeitImageProcessorPil.from_pretrained(tmp_path / CLASSIFIER)
    expected = processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    found = vit_jax.load(tmp_path / CLASSIFIER).pixels(picture)
    assert found.shape == expected.shape == (1, 32, 32, 3)
    assert relative(found, expected) < tolerances.EXACT


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


# ---- what they are used for ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder {train,test}/{dark,light}/*.png."""
    home, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split in ("train", "test"):
        for label, colour in (("dark", 40), ("light", 200)):
            folder = home / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                noise = colour + rng.integers(-30, 30, (40, 36, 3))
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{number}.png")
    return home


def test_commands_take_a_pre_trained_file(published, pictures, tmp_path, capsys):
    model, file, _ = published[MASKED]
    assert main(["predict", str(file), str(pictures)]) == 2
    assert "Expected a classifier" in capsys.readouterr().err
    given = ["probe", str(file), "--dataset", str(pictures), "--cache", str(tmp_path), "--shots", "1", "--epochs", "2"]
    assert main([*given, "--json"]) == 0
    assert [row["pooling"] for row in json.loads(capsys.readouterr().out)["results"]] == ["cls", "mean", "model"]
    folder, out = pictures / "test" / "dark", tmp_path / "features.npz"
    assert main(["embed", str(file), str(folder), "--out", str(out)]) == 0
    trained = vit_jax.load(file)
    seen = np.asarray(trained.pixels([str(path) for path in sorted(folder.glob("*.png"))]))
    with torch.no_grad():
        tokens = model.layernorm(model.beit(torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())).last_hidden_state)
    assert relative(np.load(out)["feature"], tokens[:, 1:].mean(1).numpy()) < tolerances.CONVERTED
    api = vit_jax.features(trained, sorted(map(str, folder.glob("*.png"))), layers=(0, -1), form="NHWC")
    assert [layer.shape for layer in api] == [(4, 4, 4, 32)] * 2


def test_reconstruct_asks_for_the_tokenizer_that_no_file_names(published, pictures, tmp_path, capsys):
    config = configuration.plain(configuration.load("tokenizer.py:dalle"))
    config["tokenizer"] |= {"vocab_size": 24, "blocks_per_group": 1, "encoder_width": 4, "decoder_width": 4}
    config["pp"]["crop"], rng = 32, np.random.default_rng(0)
    shapes = param_shapes(config, None)
    params = {path: rng.standard_normal(shape).astype(np.float32) for path, shape in shapes.items()}
    write_native(Weights(params, config, None, None, "native"), str(tmp_path / "codes"))
    given = ["reconstruct", str(published[MASKED][1]), str(pictures / "test" / "dark" / "0.png"), "--out"]
    assert main([*given, str(tmp_path / "x.png")]) == 2
    assert "Expected the tokenizer that these weights learned from" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
    assert main([*given, str(tmp_path / "x.png"), "--tokenizer", str(tmp_path / "codes")]) == 0
    assert "codes of hidden patches right" in capsys.readouterr().out
    assert Image.open(tmp_path / "x.png").size > (100, 50)


def test_commands_take_a_fine_tuned_file(published, pictures, capsys):
    model, file, _ = published[CLASSIFIER]
    picture = str(pictures / "test" / "light" / "0.png")
    assert main(["predict", str(file), picture, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    seen = np.asarray(vit_jax.load(file).pixels(picture)).transpose(0, 3, 1, 2).copy()
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(seen)).logits, -1)[0].numpy()
    best = int(expected.argmax())
    assert next(iter(said["probabilities"])) == f"class {best}"
    assert said["probabilities"][f"class {best}"] == pytest.approx(expected[best], rel=1e-4)


def test_fine_tuning_at_another_size_begins_with_the_shared_table_in_every_block(published, small, tmp_path):
    """From the file to a checkpoint, at a learning rate of 0; the table is spread as BEiT's loader does it."""
    _, file, tensors = published[MASKED]
    config = small("finetune", init_from=str(file), total_steps=1, warmup_steps=0, base_lr=0.0, checkpoint_every=1)
    config.model.relative_positions, config.pp.crop, config.batch = "block", 48, 8
    train.run(config, tmp_path / "run", typed=frozenset({"pp.crop"}))
    moved = vit_jax.load(tmp_path / "run")
    assert (moved.config["pp"]["crop"], tuple(moved.config["pp"]["mean"])) == (48, (0.5,))
    table = resample_relative(tensors["rel_pos_bias.relative_position_bias_table"].numpy(), (4, 4), (6, 6))
    assert table.shape == (11 * 11 + 3, 4)
    blocks = moved.model.transformer.blocks
    np.testing.assert_array_equal(blocks.attention.relative_positions[...], np.stack([table, table]))
    np.testing.assert_array_equal(blocks.scale1[...][1], tensors["blocks.1.gamma_1"])
    np.testing.assert_array_equal(moved.model.norm.scale[...], np.ones(32))  # fc_norm starts fresh


def test_fine_tuning_takes_the_shared_table_itself(published):
    weights, _ = open_weights(published[MASKED][1])
    config = configuration.default_fields()
    config.update(configuration.plain({key: weights.config[key] for key in ("model", "pp")}))
    config.model.update({"relative_positions": "block", "norm_after_pool": True})
    shapes = param_shapes(config, 5)
    moved = transfer(weights.params, weights.config, shapes, config)
    table = published[MASKED][2]["rel_pos_bias.relative_position_bias_table"].numpy()
    np.testing.assert_array_equal(
        moved.params["transformer/blocks/attention/relative_positions"], np.stack([table, table])
    )
    assert sorted(moved.fresh) == ["head_out/bias", "head_out/kernel", "norm/bias", "norm/scale"]
    assert moved.unused == ["encoder/norm/bias", "encoder/norm/scale", "mask_token", "predict/bias", "predict/kernel"]


def test_a_classifier_at_another_size(published):
    """Fine-tuned tables, spread by `load`; and at their own size the same numbers as ever."""
    larger = vit_jax.load(published[CLASSIFIER][1], image_size=48)
    assert larger.model(jnp.zeros((1, 48, 48, 3))).shape == (1, 5)
    tables = [published[CLASSIFIER][2][f"blocks.{i}.attn.relative_position_bias_table"].numpy() for i in range(2)]
    expected = resample_relative(np.stack(tables), (4, 4), (6, 6))
    np.testing.assert_array_equal(larger.model.transformer.blocks.attention.relative_positions[...], expected)


# ---- files that contradict themselves --------------------------------------------------------------------------------


def refusal(action):
    """The one sentence of a refusal."""
    with pytest.raises(UserError) as error:
        action()
    said = str(error.value)
    assert said.startswith("Expected")
    assert "\n" not in said
    return said


# what is wrong: (the tensors changed, words of the sentence)
WRONG = {
    "a head of another width": ({"lm_head.weight": torch.zeros(24, 16)}, ["lm_head.weight (expected (24, 32), got (24, 16"]),
    "a head of another vocabulary": ({"lm_head.bias": torch.zeros(20)}, ["lm_head.bias (expected (24,), got (20,))"]),
    "a head with one axis": ({"lm_head.weight": torch.zeros(24)}, ["2 axes", "lm_head.weight"]),
    "no mask token": ({"mask_token": None}, ["1 missing: mask_token"]),
    "no shared table": ({"rel_pos_bias.relative_position_bias_table": None}, ["num_heads="]),
    "a table of no square": (
        {"rel_pos_bias.relative_position_bias_table": torch.zeros(51, 4)}, ["square grid", "51 rows", "stored_size"],
    ),
    "half a block": ({"blocks.1.attn.q_bias": None}, ["1 missing: blocks.1.attn.q_bias"]),
    "a classifier, too": ({"head.weight": torch.zeros(5, 32)}, ["1 not used: head.weight"]),
    "a norm after pooling, too": ({"fc_norm.weight": torch.zeros(32)}, ["1 not used: fc_norm.weight"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_that_does_not_match(kind, published, tmp_path):
    changes, words = WRONG[kind]
    tensors = {name: tensor for name, tensor in (published[MASKED][2] | changes).items() if tensor is not None}
    torch.save({"model": tensors}, tmp_path / "x.pth")
    said = refusal(lambda: open_weights(tmp_path / "x.pth"))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_a_file_is_needed(name, published, tmp_path):
    """Of those of a block, such as only BEiT has."""
    whole, own = published[name][2], ("q_bias", "v_bias", "bias_table", "gamma_1", "gamma_2")
    needed = [
        key for key in whole if not key.startswith("blocks") or (key.startswith("blocks.1") and key.endswith(own))
    ]
    assert len(needed) > 10
    for gone in needed:
        torch.save({"model": {key: tensor for key, tensor in whole.items() if key != gone}}, tmp_path / "x.pth")
        refusal(lambda: open_weights(tmp_path / "x.pth"))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file(share, published, tmp_path):
    content = published[MASKED][1].read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(share * len(content))])
    assert "x.pth" in refusal(lambda: open_weights(tmp_path / "x.pth"))
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "out"), "--to", "hf"]) == 2
    assert not (tmp_path / "out").exists()


CONTRADICTIONS = [
    (MASKED, "use_shared_relative_position_bias", False), (MASKED, "use_relative_position_bias", True),
    (MASKED, "use_absolute_position_embeddings", True), (MASKED, "use_mask_token", False),
    (MASKED, "use_mean_pooling", False), (MASKED, "vocab_size", 25), (MASKED, "layer_scale_init_value", 0.0),
    (MASKED, "image_size", 40), (MASKED, "image_size", 0), (MASKED, "patch_size", 16), (MASKED, "hidden_size", 16),
    (MASKED, "num_attention_heads", 8), (MASKED, "model_type", "vit"), (MASKED, "use_mask_token", 3),
    (CLASSIFIER, "use_mean_pooling", False), (CLASSIFIER, "use_relative_position_bias", False),
    (CLASSIFIER, "layer_scale_init_value", -1), (CLASSIFIER, "num_hidden_layers", 3), (CLASSIFIER, "hidden_act", "relu"),
    (f"{MASKED}-positions", "image_size", 40), (f"{CLASSIFIER}-bare", "layer_scale_init_value", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "value"), CONTRADICTIONS)
def test_config_json_that_contradicts_the_tensors(name, field, value, folders, tmp_path):
    for path in folders[name][1].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {field: value}))
    assert field in refusal(lambda: open_weights(tmp_path))


def test_a_model_with_two_norms_is_no_published_one(tmp_path):
    beit(MASKED, use_mean_pooling=False).save_pretrained(tmp_path)
    assert "use_mean_pooling true" in refusal(lambda: open_weights(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "simmim"}, "objective 'simmim'"),
        ({"model.norm_after_pool": False}, "a mean of normed tokens"),
        ({"model.classifier": "map"}, "classifier 'map'"),
        ({"model.positions": "sincos2d", "model.train_positions": False}, "a formula"),
        ({"pp.crop": (32, 64)}, "not square"),
    ],
)
def test_models_that_no_folder_holds(changes, words, folders, tmp_path):
    weights, _ = open_weights(folders[CLASSIFIER][1])
    config = configuration.default_fields()
    config.update(configuration.plain(weights.config))
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    said = refusal(lambda: write(weights._replace(config=configuration.plain(config)), tmp_path / "out", "hf"))
    assert words in said
    assert "write --to beit" in said
    assert not (tmp_path / "out").exists()
