"""Tensors out of a `.pth` without PyTorch and without executing anything in it.

Formats: torch.save's zip archive (since PyTorch 1.6) and the older stream of pickles. Both note a tensor as a view (offset,
size, stride) of a storage, whose numbers lie apart; nothing of them is read before the view was found to lie inside.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.contracts import UserError
from vit_jax.conversion.machine import UNKNOWN, Instance, Machine, Name, fill
from vit_jax.conversion.tensors import Tensor, reading
from vit_jax.conversion.zips import Members

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "LongStorage": np.int64,
    "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "BFloat16Storage": ml_dtypes.bfloat16, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MOST_AXES = 32
LONGEST_PREFIX = 200  # of a module's place within modules


@dataclasses.dataclass
class Storage:
    """A run of numbers of the file; kept where several tensors are views of it."""

    dtype: np.dtype
    numbers: int
    read: Callable[[], np.ndarray]
    tensors: int = 0
    _kept: np.ndarray | None = None

    def flat(self) -> np.ndarray:
        if self._kept is not None:
            return self._kept
        found = self.read()
        if self.tensors > 1:
            self._kept = found
        return found


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Any:
    if storage is UNKNOWN:
        return UNKNOWN
    if len(size) != len(stride) or len(size) > MOST_AXES or not all(type(n) is int for n in (offset, *size, *stride)):
        raise ValueError("a tensor of no shape")
    tensor = Tensor(size, storage.dtype, functools.partial(_view, storage, offset, size, stride))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    outside = 0 not in size and last >= storage.numbers
    if min((offset, *size, *stride)) < 0 or outside or tensor.nbytes > storage.numbers * storage.dtype.itemsize:
        raise UserError("Expected a whole .pth file, a tensor in it reaches past its storage: fetch it again.")
    storage.tensors += 1
    return tensor


def _view(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    flat = storage.flat()
    steps = tuple(step * flat.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(flat[offset:], size, steps, writeable=False)


def _pairs(pairs: Any = ()) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        fill(found, [name, value])
    return found


BUILDERS: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda data, *rest: data,
    Name("collections", "OrderedDict"): _pairs,
    Name("torch", "Size"): lambda size: size if isinstance(size, tuple) else UNKNOWN,
}


def _reference(reference: Any) -> tuple[np.dtype | None, str, int, list[Any]]:
    """(type, None if unknown; key; numbers; rest) of the note that stands for a storage."""
    kind, dtype, key, _, numbers, *view = reference
    if kind != "storage" or not isinstance(dtype, Name) or not isinstance(key, str) or type(numbers) is not int:
        raise ValueError("a storage of no known kind")
    return np.dtype(STORAGES[dtype.name]) if dtype.name in STORAGES else None, key, numbers, view


class PickledTensors(Mapping[str, Tensor]):
    """Tensors by name. `wrapped`: they lay under "model" or "state_dict"."""

    def __init__(self, tensors: dict[str, Tensor], wrapped: bool):
        self.tensors, self.wrapped = tensors, wrapped

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def read_pickled(path: Path) -> PickledTensors:
    """The tensors of a `.pth`, `.bin`, `.pkl` by name; the state dict under "model" or "state_dict" where there is one.

    A whole module that was saved gives its tensors, too: its classes are neither needed nor looked at.

    Raises:
      UserError: a broken file, one without tensors, or one that asks for anything but tensors.
    """
    with reading(path):
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content, held = _read_zip(path) if zipped else _read_stream(path)
        if isinstance(content, Instance):
            content = _state_dict(content)
        wrapped = isinstance(content, dict) and any(key in content for key in ("model", "state_dict"))
        if wrapped:
            content = content.get("model", content.get("state_dict"))
        named = content.items() if isinstance(content, dict) else ()
        tensors = {name: value for name, value in named if isinstance(value, Tensor)}
        if not tensors:
            raise UserError(f"Expected tensors by name in {path}, found none.")
        # Views of one storage may say more than there is; twice leaves room for weights that are used in two places.
        if sum(tensor.nbytes for tensor in tensors.values()) > 2 * held:
            raise UserError(f"Expected tensors of {held:,} bytes in {path}, they claim more: fetch it again.")
        return PickledTensors(tensors, wrapped)


def _state_dict(module: Instance) -> dict[str, Tensor]:
    """What PyTorch's `state_dict()` would say of a module. One that is there twice is entered once, so circles end."""
    found: dict[str, Tensor] = {}
    entered, waiting = {id(module)}, [(module, "")]
    while waiting:
        module, prefix = waiting.pop()
        if len(prefix) > LONGEST_PREFIX:
            raise ValueError("modules within modules without an end")
        for kind in ("_parameters", "_buffers", "_modules"):
            inside = module.state.get(kind)
            for name, value in inside.items() if isinstance(inside, dict) else ():
                if isinstance(value, Tensor):
                    found[prefix + name] = value
                elif isinstance(value, Instance) and id(value) not in entered:
                    entered.add(id(value))
                    waiting.append((value, f"{prefix}{name}."))
    return found


def _read_zip(path: Path) -> tuple[Any, int]:
    """(what was saved, bytes of the archive's members)."""
    members = Members(path)
    index = next((name for name in members.infos if name.endswith("/data.pkl")), None)
    if index is None:
        raise UserError(f"Expected an archive of torch.save, {path} is another kind of zip file.")
    folder = index.removesuffix("data.pkl")
    storages: dict[tuple[str, np.dtype], Storage] = {}

    def storage(reference: Any) -> Any:
        dtype, key, _, _ = _reference(reference)
        if dtype is None:
            return UNKNOWN
        member = f"{folder}data/{key}"
        numbers = members.size(member) // dtype.itemsize
        return storages.setdefault(
            (key, dtype), Storage(dtype, numbers, functools.partial(read, member, dtype, numbers))
        )

    def read(member: str, dtype: np.dtype, numbers: int) -> np.ndarray:
        with reading(path):
            return members.read(member)[: numbers * dtype.itemsize].view(dtype)

    return Machine(BUILDERS, storage).run(io.BytesIO(members.read(index).tobytes())), members.total


def _read_stream(path: Path) -> tuple[Any, int]:
    """PyTorch before 1.6: magic number, version, system, the object, the storages' keys, the storages."""
    storages: dict[str, Storage] = {}

    def storage(reference: Any) -> Any:
        if isinstance(reference, tuple) and reference[:1] == ("module",):
            return UNKNOWN  # a class, with its source for people to read
        dtype, key, numbers, view = _reference(reference)
        if dtype is None:
            raise ValueError("a storage of no known kind")
        if view and view[0] is not None:
            raise UserError(f"Expected plain storages in {path}, found a view: save it again with a newer PyTorch.")
        found = storages.setdefault(key, Storage(dtype, numbers, lambda: np.empty(0, dtype)))
        if (found.dtype, found.numbers) != (dtype, numbers):
            raise ValueError("two storages of one name")
        return found

    machine = Machine(BUILDERS, storage)
    # A mapped file gives what it has, however much a length in it asks for.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        size = len(mapped)
        if machine.run(mapped) != LEGACY_MAGIC:
            raise UserError(f"Expected a file of torch.save, {path} is none.")
        for _ in range(2):
            machine.run(mapped)
        content = machine.run(mapped)
        for key in machine.run(mapped):
            found = storages[key]
            numbers, place = int.from_bytes(mapped.read(8), "little"), mapped.tell()
            length = numbers * found.dtype.itemsize
            if numbers != found.numbers or place + length > size:
                raise EOFError("the storages are cut off")
            found.read = functools.partial(_read_storage, path, place, found.dtype, numbers)
            mapped.seek(place + length)
    return content, size


def _read_storage(path: Path, place: int, dtype: np.dtype, numbers: int) -> np.ndarray:
    with reading(path):
        found = np.fromfile(path, np.uint8, numbers * dtype.itemsize, offset=place).view(dtype)
        if len(found) != numbers:
            raise EOFError("the storages are cut off")
        return found
