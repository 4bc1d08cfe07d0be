"""Tensors out of a `.pth` without PyTorch and without executing anything in it.

A pickle is a program that names functions and calls them. Here a name is looked up in the short table below, which only
holds what builds tensors and containers; names of harmless bookkeeping (`argparse.Namespace`, optimiser states) become
inert placeholders; any other name is refused. Nothing is ever imported by name. Formats: torch.save's zip archive (since
PyTorch 1.6) and the older stream of pickles.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.contracts import UserError

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "BFloat16Storage": ml_dtypes.bfloat16,
}  # fmt: skip
# Modules whose objects hold bookkeeping only; their names become placeholders, their code is never looked at.
INERT = ("argparse", "numpy", "torch", "pathlib", "collections", "omegaconf", "yacs", "timm", "typing", "_codecs")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Placeholder:
    """Stands for an object that is not a tensor; takes any construction and any state, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Placeholder:
        return Placeholder()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class Storage:
    """A run of numbers of the file, read when a tensor asks for it."""

    def __init__(self, dtype: Any, read: Callable[[], bytes]):
        self.dtype, self.read = np.dtype(dtype), read


class LazyTensor:
    """Where a tensor's numbers lie."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        flat = np.frombuffer(self.storage.read(), self.storage.dtype)[self.offset :]
        last = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if min(self.stride, default=0) < 0 or (0 not in self.size and last >= flat.size):
            raise UserError("Expected a whole .pth file, a tensor in it reaches past its storage: fetch it again.")
        steps = tuple(step * flat.itemsize for step in self.stride)
        return np.lib.stride_tricks.as_strided(flat, self.size, steps, writeable=False)


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *rest: Any) -> LazyTensor:
    return LazyTensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


BUILDERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
}


class Reader(pickle.Unpickler):
    """An unpickler that can build tensors and containers and nothing else."""

    def __init__(self, file: io.BufferedIOBase, storage: Callable[[tuple], Storage]):
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in BUILDERS:
            return BUILDERS[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module.split(".")[0] in INERT:
            return type(name, (Placeholder,), {})
        raise UserError(
            f"Expected a .pth with tensors, this one asks for {module}.{name}: refused, nothing of it was executed. "
            "Save the plain state dict again, or as safetensors."
        )

    def persistent_load(self, reference: Any) -> Storage:
        return self.storage(reference)


def read_pickled(path: Path) -> PickledTensors:
    """The tensors of a `.pth`, `.pt` or `.bin` by name; the state dict under "model" or "state_dict" where there is one.

    Raises:
      UserError: a broken file, one without tensors, or one that asks for anything but tensors.
    """
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path)
    except (pickle.UnpicklingError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"Expected a .pth of torch.save, {path} cannot be read ({error}): fetch it again.") from error
    wrapped = isinstance(content, dict) and any(key in content for key in ("model", "state_dict"))
    if wrapped:
        content = content.get("model", content.get("state_dict"))
    tensors = {name: value for name, value in content.items() if isinstance(value, LazyTensor)} if content else {}
    if not tensors:
        raise UserError(f"Expected tensors by name in {path}, found none.")
    return PickledTensors(tensors, wrapped)


class PickledTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for. `wrapped`: they lay under "model" or "state_dict"."""

    def __init__(self, tensors: dict[str, LazyTensor], wrapped: bool):
        self.tensors, self.wrapped = tensors, wrapped

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name].array()

    def __iter__(self) -> Any:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _read_zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)
    index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
    if index is None:
        raise UserError(f"Expected an archive of torch.save, {path} is another kind of zip file.")
    folder = index.removesuffix("data.pkl")

    def storage(reference: tuple) -> Storage:
        _, dtype, key, *_ = reference
        return Storage(dtype, lambda: archive.read(f"{folder}data/{key}"))

    return Reader(io.BytesIO(archive.read(index)), storage).load()


def _read_stream(path: Path) -> Any:
    """PyTorch before 1.6: magic number, version, system, the object, the storages' keys, the storages."""
    storages: dict[str, Storage] = {}

    def storage(reference: tuple) -> Storage:
        _, dtype, key, _, _, *view = reference
        if view and view[0] is not None:
            raise UserError(f"Expected plain storages in {path}, found a view: save it again with a newer PyTorch.")
        return storages.setdefault(key, Storage(dtype, bytes))

    with path.open("rb") as file:
        if Reader(file, storage).load() != LEGACY_MAGIC:
            raise UserError(f"Expected a file of torch.save, {path} is none.")
        for _ in range(2):
            Reader(file, storage).load()
        content = Reader(file, storage).load()
        for key in Reader(file, storage).load():
            numbers = int.from_bytes(file.read(8), "little")
            place, length = file.tell(), numbers * storages[key].dtype.itemsize
            storages[key].read = functools.partial(_bytes_of, path, place, length)
            file.seek(length, 1)
    return content


def _bytes_of(path: Path, place: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(place)
        return file.read(length)
