"""What means nothing is refused in one sentence, before anything is written: tests/wrong_words.py, one by one."""

import contextlib
import inspect
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import wrong_words
from tests.conftest import shrink_section
from vit_jax import command_line, configuration, train
from vit_jax.commands import cli
from vit_jax.contracts import UserError

REVIEWED = Path(__file__).parent / "reviewed" / "wrong_words.txt"
SETS = "from configs import common\ndef get_config():\n    config = common.get_config()\n    config.{}\n    return config\n"
BAD_FILES = {
    "raises.py": "def get_config():\n    return 1 / 0\n",
    "syntax.py": "def get_config(:\n",
    "returns.py": "def get_config():\n    return 3\n",
    "nothing.py": "x = 3\n",
    "imports.py": "import no_such_package\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "argument.py": "def get_config():\n    from configs import common\n    return common.get_config()\n",
    "field.py": SETS.format("bach = 3"),
    "type.py": SETS.format("batch = 'x'"),
    "value.py": SETS.format("batch = -1"),
    "missing.py": "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'batch': 3})\n",
    "binary.py": "\0\x01\x02",
}


class Accepted(Exception):
    """Nothing stopped a run before its first step."""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The places that the lines speak of, by name."""
    root = tmp_path_factory.mktemp("wrong")
    for stage in ("scratch", "pretrain", "pretrain,tokenizer"):
        config = configuration.load(f"digits.py:{stage}")
        config.model.hidden_size = 16
        config.model.transformer.update({"num_layers": 2, "num_heads": 2, "mlp_dim": 32})
        shrink_section(config)
        config.update({"total_steps": 1, "warmup_steps": 0, "batch": 16})
        train.run(config, root / stage)
    rng = np.random.default_rng(0)
    for name in ("ant", "cat"):
        (root / "folder" / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
            picture.save(root / "folder" / name / f"{number}.png")
    for name in ("empty", "bad"):
        (root / name).mkdir()
    for name, text in BAD_FILES.items():
        (root / "bad" / name).write_text(text)
    (root / "file").write_text("hello")
    found = {name: root / name for name in ("folder", "empty", "bad", "file", "new")}
    found |= {"run": root / "scratch", "mae": root / "pretrain", "tokenizer": root / "pretrain,tokenizer"}
    return found | {"picture": root / "folder" / "ant" / "0.png"}


def outcome(line, places):
    """(exit status or what was raised, what was printed on stderr) of a command line, run up to its first step."""
    words = [word.format(**places) for word in shlex.split(line.replace("{}", "{{}}"))]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = cli.main(words)
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            return type(error).__name__, errors.getvalue()
    return status, errors.getvalue()


def anonymous(text, places):
    """The sentence without this machine's paths, as every supported Python's argparse writes it."""
    root = str(places["folder"].parent)
    for name in ("tokenizer", "run", "mae", "picture"):
        text = text.replace(str(places[name]), f"{{{name}}}")
    text = re.sub(rf"{re.escape(root)}/(\w+)", r"{\1}", text)
    text = re.sub(r"\(choose from [^)]*\)", lambda match: match[0].replace("'", ""), text)
    return text.replace(str(configuration.recipes_root()), "{recipes}").strip()


def test_every_wrong_word_is_one_sentence(places, monkeypatch, request):
    def accepted(*args, **kwargs):
        raise Accepted

    monkeypatch.setattr(train, "loop", accepted)
    assert len(wrong_words.LINES) > 300
    assert len(set(wrong_words.LINES)) == len(wrong_words.LINES)
    rows, bad = [], []
    for line in wrong_words.LINES:
        status, said = outcome(line, places)
        sentence = anonymous(said, places)
        if status != 2 or sentence.count("\n") or not sentence.startswith("error: ") or "Traceback" in said:
            bad.append(f"{line} -> {status}: {sentence[-500:]}")
        if places["new"].exists():
            bad.append(f"{line} -> wrote something")
            shutil.rmtree(places["new"])
        rows.append(f"{line}\n    {sentence}\n")
    assert not bad, f"{len(bad)} of {len(wrong_words.LINES)}:\n" + "\n".join(bad)
    compare("".join(rows), request)


def compare(text, request):
    """With the reviewed sentences; `--refresh-reviewed` writes them anew."""
    if request.config.getoption("--refresh-reviewed"):
        REVIEWED.write_text(text)
    assert text.splitlines() == REVIEWED.read_text().splitlines()


@pytest.mark.parametrize("setting", wrong_words.ODD)
def test_odd_values_get_a_line(setting):
    config = command_line.configured("digits.py:scratch", [command_line.assignment(setting)]).config
    (line,) = configuration.odd(config)
    assert line.startswith(f"config.{setting.partition('=')[0]} is ")
    assert "possible, but seldom meant" in line


def test_ordinary_recipes_are_not_odd():
    for spec in ("common.py", "digits.py:finetune", "mae.py:h14", "mae_linprobe.py:b16", "vit.py:l16,cifar10"):
        assert configuration.odd(configuration.load(spec)) == []


def unchecked(function):
    """As users have it: without the shape checker of the tests, which would refuse wrong types before the function does."""
    return inspect.unwrap(function)


@pytest.mark.parametrize("given", wrong_words.CREATE, ids=str)
def test_create_refuses_in_a_sentence(given):
    with pytest.raises(UserError) as error:
        unchecked(vit_jax.create)(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", wrong_words.LOAD, ids=str)
def test_load_refuses_in_a_sentence(given, places):
    with pytest.raises(UserError) as error:
        unchecked(vit_jax.load)(**given | {"path": given["path"].format(**places)})
    assert "\n" not in str(error.value)


def test_every_field_holds_its_default_and_says_what_it_is():
    for name, field in configuration.all_fields().items():
        assert field.kind.holds(field.default), name
        assert field.kind.usual(field.default), name
        assert field.meaning, name
        assert field.kind.words, name
        assert not field.kind.holds(object()), name
        assert not field.kind.holds(float("nan")), name


def test_words_of_the_table_are_the_words_of_the_code():
    from vit_jax.data.transforms import FILTERS, TRAIN_CROPS
    from vit_jax.methods import patch_prediction
    from vit_jax.models.layers import ACTIVATIONS, INITS, MULTIPLE_OF_TOKENS
    from vit_jax.models.vit import CLASSIFIERS, POSITIONS
    from vit_jax.ops.losses import LOSSES
    from vit_jax.ops.masks import SCORES
    from vit_jax.training.schedules import SHAPES

    tables = {
        "pp.interpolation": FILTERS, "pp.train_crop": TRAIN_CROPS, "model.activation": ACTIVATIONS,
        "attention": MULTIPLE_OF_TOKENS, "model.classifier": CLASSIFIERS, "model.positions": POSITIONS, "loss": LOSSES,
        "mae.mask": SCORES, "model.init": INITS, "patch_prediction.target": [*patch_prediction.CELLS, "pixels"],
        "decay_type": [*SHAPES, "step"],
    }  # fmt: skip
    for field, words in tables.items():
        kind = configuration.all_fields()[field].kind
        assert all(kind.holds(word) for word in words), field
        assert kind.words.count("'") == 2 * len(words), field
