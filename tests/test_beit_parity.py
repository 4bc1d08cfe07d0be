"""BEiT beside `transformers` on the same weights, masks and pixels: both heads, losses, every gradient, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import tolerances
from tests.beit_twins import KINDS, beit, hidden_patches, pixels, torch, transformers
from tests.torch_twins import relative
from vit_jax import configuration
from vit_jax.conversion.catalogue import BEIT
from vit_jax.methods import method_of
from vit_jax.methods.building import assemble, build
from vit_jax.models.registry import count_params
from vit_jax.ops.paths import flat_params
from vit_jax.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def ours_of(theirs, folder):
    """(our model of a folder of theirs, its weights)."""
    theirs.save_pretrained(folder)
    weights, _ = open_weights(folder)
    return assemble(weights.config, weights.num_classes, weights.params), weights


def check_gradients(theirs, ours, folder):
    """`ours` by path beside what backward() left in `theirs`, which is read as weights are."""
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    _, weights = ours_of(theirs, folder)
    assert ours.keys() == weights.params.keys()
    errors = {path: relative(ours[path], expected) for path, expected in weights.params.items()}
    assert max(errors.values()) < tolerances.GRADIENT, errors


@pytest.mark.parametrize("name", [name for name in KINDS if "Masked" in name])
def test_masked_image_model(name, tmp_path):
    theirs, hidden, (ours_in, theirs_in) = beit(name), hidden_patches(), pixels()
    codes = np.random.default_rng(2).integers(0, 24, hidden.shape)
    model, weights = ours_of(theirs, tmp_path / "weights")
    result = theirs(theirs_in, bool_masked_pos=torch.from_numpy(hidden), labels=torch.from_numpy(codes[hidden]))
    result.loss.backward()
    logits = nnx.jit(lambda model: model(jnp.asarray(ours_in), jnp.asarray(hidden)))(model)
    assert relative(logits, result.logits.detach().numpy()) < tolerances.FORWARD

    config = weights.config
    assert (config["objective"], config["beit"]["vocab_size"], config["beit"]["tokenizer"]) == ("beit", 24, None)
    objective = method_of(config).objective(config, None)
    inputs = {"images": ours_in, "hidden": hidden, "codes": codes, "weight": np.ones(3, np.float32)}
    inputs = {name: jnp.asarray(value) for name, value in inputs.items()}
    graph, params = nnx.split(model)

    def loss(params):
        found, metrics = objective.losses(nnx.merge(graph, params), inputs, None, False)
        return found.reduce().value(), metrics["accuracy"].reduce().value()

    (value, accuracy), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative(value, result.loss.item()) < tolerances.FORWARD
    right = result.logits.detach().numpy().argmax(-1)[hidden] == codes[hidden]
    assert float(accuracy) == pytest.approx(right.mean())
    check_gradients(theirs, flat_params(gradients), tmp_path / "gradients")


@pytest.mark.parametrize("name", [name for name in KINDS if "Classification" in name])
def test_classifier(name, tmp_path):
    theirs, (ours_in, theirs_in) = beit(name), pixels()
    labels = np.asarray([1, 4, 0])
    model, weights = ours_of(theirs, tmp_path / "weights")
    assert weights.num_classes == 5
    result = theirs(theirs_in, labels=torch.from_numpy(labels))
    result.loss.backward()
    graph, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graph, params)(jnp.asarray(ours_in))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert relative(logits, result.logits.detach().numpy()) < tolerances.FORWARD
    assert relative(value, result.loss.item()) < tolerances.FORWARD
    check_gradients(theirs, flat_params(gradients), tmp_path / "gradients")


@pytest.mark.parametrize("name", [name for name in KINDS if "BeitModel" in name])
def test_encoder_alone(name, tmp_path):
    """Tokens of every patch, and the vector that they are pooled to."""
    theirs, (ours_in, theirs_in) = beit(name), pixels()
    model, _ = ours_of(theirs, tmp_path)
    with torch.no_grad():
        expected = theirs(theirs_in)
    found = nnx.jit(lambda model, x: (model.features(x), model(x)))(model, jnp.asarray(ours_in))
    assert relative(found[0], expected.last_hidden_state.numpy()) < tolerances.FORWARD
    assert relative(found[1], expected.pooler_output.numpy()) < tolerances.FORWARD


# name: (pre-training, fine-tuning with 1,000 classes), microsoft/unilm's models
COUNTS = {"b16": (91_965_776, 86_530_984), "l16": (311_534_016, 304_430_568)}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def count(name, classes=None, size=224):
    """Parameters by the recipe: of pre-training, or fine-tuned to so many classes."""
    config = configuration.load(f"beit.py:{name}")
    if classes:
        configuration.choose(config, "classify")
        config.model.update({"relative_positions": "block", "norm_after_pool": True})
    config.pp.crop = size
    return count_params(nnx.state(jax.eval_shape(lambda: build(config, classes)), nnx.Param))


def test_sizes_in_the_catalogue():
    for name, (place, megabytes, holds, _) in BEIT.items():
        classes = None if "codes" in holds else 21_841 if "22k" in holds else 1000
        size = int(place.split("-")[2])
        assert megabytes == round(4 * count(name[:3], classes, size) / 2**20), name


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_published_count(name):
    """Of the recipe and, made of shapes alone, of transformers' models."""
    assert (count(name), count(name, 1000)) == COUNTS[name]
    sizes = LARGE if name == "l16" else {}
    with torch.device("meta"):
        theirs = [
            getattr(transformers, kind)(transformers.BeitConfig(**KINDS[kind], **sizes, num_labels=1000))
            for kind in ("BeitForMaskedImageModeling", "BeitForImageClassification")
        ]
    assert tuple(model.num_parameters() for model in theirs) == COUNTS[name]
