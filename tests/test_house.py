"""The rooms keep to their doors (ARCHITECTURE.md), and importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import vit_jax

PACKAGE = Path(vit_jax.__file__).parent
FRAMEWORKS = {"jax", "flax", "optax", "torch", "tensorflow", "transformers"}
# room: (rooms of vit_jax it may import from, frameworks it must not import)
HOUSE = {
    "contracts": (set(), {"jax", "flax", "optax"}),
    "derived": ({"contracts"}, {"jax", "flax", "optax"}),
    "places": ({"contracts"}, FRAMEWORKS | {"numpy"}),
    "sharding": (set(), {"flax", "optax"}),
    "ops": ({"contracts"}, {"flax", "optax"}),
    "locks": (set(), FRAMEWORKS | {"numpy"}),
    "progress": (set(), FRAMEWORKS | {"numpy"}),
    "data": ({"contracts", "derived", "locks", "progress"}, {"jax", "flax", "optax"}),
    "models": ({"contracts", "sharding", "ops"}, {"optax"}),
    "methods": ({"contracts", "derived", "sharding", "ops", "models"}, {"optax"}),
    "conversion": ({"contracts", "derived", "locks", "progress", "sharding", "ops", "models", "methods"}, {"optax"}),
    "evaluation": ({"contracts", "sharding", "ops", "models"}, {"optax"}),
    "loggers": ({"contracts"}, FRAMEWORKS | {"numpy"}),
    "training": (
        {"contracts", "derived", "sharding", "places", "processes", "loggers", "ops", "models", "methods"},
        set(),
    ),
    "planning": ({"contracts", "derived", "sharding", "devices", "ops", "models", "methods", "training"}, {"optax"}),
    "signals": (set(), FRAMEWORKS | {"numpy"}),
    "watchdog": (set(), FRAMEWORKS | {"numpy"}),
    "processes": ({"contracts", "places", "signals"}, {"flax", "optax"}),
    "workdir_lock": ({"contracts", "places", "processes"}, {"flax", "optax"}),
    "bucket_lock": ({"contracts", "places", "workdir_lock"}, FRAMEWORKS | {"numpy"}),
    "workdirs": ({"contracts", "configuration", "data"}, {"flax", "optax"}),
    "starts": ({"contracts", "places"}, {"flax", "optax"}),
    "writing": ({"contracts"}, FRAMEWORKS),
    "reporting": (
        {
            "contracts",
            "configuration",
            "command_line",
            "starts",
            "places",
            "workdir_lock",
            "workdirs",
            "writing",
            "devices",
            "frozen",
            "api",
            "judging",
            "data",
            "evaluation",
            "methods",
            "planning",
            "training",
            "visualisation",
            "__version__",
        },
        {"optax"},
    ),
    "visualisation": ({"contracts", "ops"}, {"flax", "optax"}),
}
LAST = {"commands", "visualisation", "planning", "reporting", "main", "api"}  # what the loop and the parts never import


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (
                [f"vit_jax.{alias.name}" for alias in node.names] if node.module == "vit_jax" else [node.module]
            )


def files(room):
    return sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]


def test_rooms_import_downwards_only():
    for room, (allowed, forbidden) in HOUSE.items():
        assert files(room)
        for path in files(room):
            for name in imports(path):
                top, _, rest = name.partition(".")
                assert top not in forbidden | {"tensorflow", "transformers", "timm"}, f"{path} imports {name}"
                # Only the function that writes a .pth may ask for PyTorch.
                assert top != "torch" or path.name == "files.py", f"{path} imports {name}"
                if top == "vit_jax":
                    assert rest.split(".")[0] in allowed | {room}, f"{path} imports {name}"


def test_the_loop_knows_no_command_and_no_figure():
    files = [PACKAGE / name for name in ("train.py", "preparing.py", "run.py")]
    found = {name.split(".")[1] for path in files for name in imports(path) if name.startswith("vit_jax.")}
    assert found
    assert not found & LAST


def test_recipes_import_nothing_that_runs():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & (FRAMEWORKS | {"vit_jax", "numpy"}), path


def test_no_file_is_a_drawer_or_a_wall():
    for path in PACKAGE.rglob("*.py"):
        assert (
            path.stem not in {"utils", "util", "common", "misc", "helpers", "base", "core"} or "recipes" in path.parts
        )
        assert len(path.read_text().splitlines()) <= 350, path


def test_importing_costs_nothing_and_brings_no_torch_or_tensorflow():
    script = (
        "import sys, vit_jax; assert 'jax' not in sys.modules, 'jax'; import vit_jax.train, vit_jax.api;"
        "bad = {'torch', 'tensorflow', 'transformers'} & set(sys.modules); assert not bad, bad;"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_writing_metrics_brings_no_torch(tmp_path):
    """tensorboardX imports it where it is installed: seconds at every start."""
    script = (
        "import sys; from vit_jax.training.tracker import Tracker;"
        "tracker = Tracker(sys.argv[1], step=0, total_steps=1); tracker.record('train', 1, {'loss': 1.0}); tracker.close();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert any(tmp_path.glob("tensorboard/events*"))
