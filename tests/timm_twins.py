"""timm itself, imported without torchvision (which it needs for pictures, never for models)."""

import importlib.machinery
import importlib.util
import sys
import types
from unittest import mock

PARTS = (
    "transforms", "transforms.functional", "datasets", "ops", "ops.misc", "models", "models.feature_extraction",
    "models.resnet", "io", "utils",
)  # fmt: skip


class Absent(types.ModuleType):
    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)


def load_timm():
    """The library, or None where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    if "torchvision" not in sys.modules:
        for name in ("torchvision", *(f"torchvision.{part}" for part in PARTS)):
            module = Absent(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module
        sys.modules["torchvision.datasets"].ImageFolder = object
    import timm

    return timm
