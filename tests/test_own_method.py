"""A user's own method, from outside the package: docs/adding_a_method.md as it stands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_jax import UserError, configuration, methods

PAGE = Path(__file__).parent.parent / "docs" / "adding_a_method.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the page's two files and a picture."""
    folder = tmp_path_factory.mktemp("own")
    method, recipe = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_methods").mkdir()
    (folder / "my_methods" / "denoising.py").write_text(method)
    (folder / "denoise_digits.py").write_text(recipe)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / "digit.png")
    return folder


def run(place, words, expect=0):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.commands.cli", *words],
        cwd=place, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": f".{os.pathsep}{PAGE.parent.parent}", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )  # fmt: skip
    assert done.returncode == expect, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_page_runs_as_written(place):
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [shlex.split(line)[1:] for line in commands.splitlines() if line.startswith("vit-jax")]
    assert [line[0] for line in lines] == ["train", "eval", "reconstruct", "figures", "plan", "train"]
    said = [run(place, line) for line in lines]
    assert "loss" in said[1]
    assert "baseline" in said[1]
    assert "noise was added" in said[2]
    assert (place / "denoised.png").is_file()
    assert (place / "runs" / "denoise" / "figures" / "reconstructions.png").is_file()
    assert "positions.png" in said[3]
    assert "fits" in said[4]
    assert "taken over" in said[5]
    assert "predict" in re.search(r"of the source not used: (.*)", said[5])[1]
    again = run(place, [*lines[0][:-1], "--config.total_steps=100"])
    assert "continuing at step 100" in again
    assert "Expected" in run(place, [*lines[0][:-2], "--config.denoising.noise=-1"], expect=2)
    assert "did you mean" in run(place, [*lines[0][:-2], "--config.denoising.nois=1"], expect=2)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("mea", r"of classify, .*got 'mea'; did you mean mae\?"),
        ("no_such_package:METHOD", r"cannot be imported \(No module named 'no_such_package'\)"),
        ("vit_jax.methods.mae:METHODS", "cannot be imported"),
        ("vit_jax.methods.mae:build", "it is function"),
    ],
)
def test_what_names_no_method_is_a_sentence(objective, said):
    config = configuration.default_fields()
    config.objective = objective
    with pytest.raises(UserError, match=said):
        methods.method_of(config)
    with pytest.raises(UserError, match=said):
        configuration.check(config)
