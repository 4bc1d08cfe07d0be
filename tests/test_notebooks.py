"""The notebooks: clean in git, on public names alone, one click away from the README, and running from top to bottom."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vit_jax
from vit_jax.commands.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/vit-jax/vit_jax/blob/main/"
SECONDS = 240  # from top to bottom, on the two cores of CI


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    return json.loads(request.param.read_text())["cells"]


def code_of(cells):
    """Python of the code cells: a cell of another language is left out, a line for the shell or of magic is blank."""
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    python = [source for source in sources if not source.startswith("%%")]
    return "\n".join(re.sub(r"^(\s*)%.*$", r"\1pass", source, flags=re.MULTILINE) for source in python)


def test_git_holds_no_outputs_and_every_cell_has_a_name(cells):
    assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    names = [cell["id"] for cell in cells]
    assert len(set(names)) == len(names)


def test_only_public_names_are_used(cells):
    """A notebook shows what a user may rely on: `vit_jax.NAME` of its list, and commands that there are."""
    tree = ast.parse(code_of(cells))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vit_jax"
    }
    assert used
    assert used <= {*vit_jax.__all__, "__version__"}
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "vit_jax" in imported
    assert not [name for name in imported if name.startswith(("vit_jax.", "configs"))]
    words = "\n".join("".join(cell["source"]) for cell in cells)
    assert set(re.findall(r"\bvit-jax ([a-z]+)", words)) <= set(COMMANDS)


def test_every_notebook_has_its_badge_and_every_badge_its_notebook():
    badges = re.findall(rf"{re.escape(COLAB)}([^)\s]+)", (ROOT / "README.md").read_text())
    assert sorted(badges) == sorted(path.relative_to(ROOT).as_posix() for path in NOTEBOOKS)


def test_links_between_notebooks_lead_somewhere(cells):
    words = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for name in re.findall(r"\]\((\w+\.ipynb)\)", words):
        assert (ROOT / "notebooks" / name).exists(), name


RUN = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path):
    """As on a machine that never saw the library's files: an empty folder, an empty home, no cache of programs."""
    pytest.importorskip("nbclient")
    ours = (
        "XLA_FLAGS",
        "JAX_COMPILATION_CACHE_DIR",
        "MPLBACKEND",
        "JAX_NUM_CPU_DEVICES",
    )  # of the tests, not of a user
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    home, place = tmp_path / "home", tmp_path / "place"
    home.mkdir()
    place.mkdir()
    environment |= {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH")))),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"])),  # where `vit-jax` is
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-5000:]
