"""The pages are whole: every command, recipe and method stands in its table, every link leads somewhere."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax.commands.cli import COMMANDS
from vit_jax.methods import METHODS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def test_links_of_pages_lead_to_files():
    found = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                found += 1
    assert found > 30


def test_every_command_has_a_line():
    table = (DOCS / "commands.md").read_text()
    assert {name for name in COMMANDS if f"`vit-jax {name}" not in table} == set()


def test_every_recipe_and_method_has_a_line():
    recipes, methods = (DOCS / "recipes.md").read_text(), (DOCS / "pretraining.md").read_text()
    files = {path.name for path in (ROOT / "configs").glob("*.py")} - {
        "__init__.py",
        "common.py",
        "kinds.py",
        "models.py",
    }
    assert files
    assert {name for name in files if f"`{name}:" not in recipes} == set()
    assert {name for name in set(METHODS) - {"classify"} if name not in methods} == set()


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    assert {path.name for path in DOCS.glob("*.md") if f": {path.name}\n" not in site} == set()


def test_python_on_pages_is_python_and_commands_exist():
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            ast.parse(code)
        for name in re.findall(r"^(?:\$ )?vit-jax (\w+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: vit-jax {name}"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed: `make docs` brings it")
def test_the_site_asks_nothing_of_a_network_and_a_broken_link_fails(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(words, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert [address for address in fetched if "vit-jax/vit_jax" not in address] == [], page
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\n")
    said = subprocess.run([*words[:-1], "other"], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert said.returncode
    assert "nowhere.md" in said.stderr
