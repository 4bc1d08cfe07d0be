"""Files of tensors by name, opened lazily, and written: .npz, .safetensors, .pth, Hugging Face folders."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # NumPy learns bfloat16 by it, which safetensors then returns
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_jax.contracts import UserError
from vit_jax.conversion.npz import read_npz
from vit_jax.conversion.pickles import read_pickled
from vit_jax.conversion.tensors import Tensor, reading
from vit_jax.conversion.told import NOTHING_TOLD, Told, read_told

PICKLED = (".pth", ".pt", ".bin", ".th")
MODULES = ("encoder.pkl", "decoder.pkl")  # DALL-E's tokenizer: two modules in one folder
LONGEST_HEADER = 2**22  # bytes of a .safetensors: some 30,000 tensors
# Types by their names in .safetensors; one that is not here is named as unknown only if a model needs it.
SAFE_TYPES: dict[str, Any] = {
    "F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64, "U8": np.uint8, "C64": np.complex64,
}  # fmt: skip


class Archive(NamedTuple):
    """An opened file or folder."""

    tensors: Mapping[str, Tensor]
    settings: Told  # config.json beside the tensors, where there is one
    preprocessing: Told  # preprocessor_config.json
    wrapped: bool  # a .pth with its state dict under "model", as MAE and DeiT write


def open_archive(path: Path) -> Archive:
    """Open a file of weights, or a folder with `config.json` and weights. Only names, types and shapes are read.

    Raises:
      UserError: an unknown kind of file, or a broken one.
    """
    if path.is_dir():
        return _open_folder(path)
    if path.suffix not in (".npz", ".safetensors", ".pkl", *PICKLED):
        raise UserError(f"Expected .npz, .safetensors or {'/'.join(PICKLED)}, got {path.name}.")
    with reading(path):
        if path.suffix == ".npz":
            return Archive(read_npz(path), NOTHING_TOLD, NOTHING_TOLD, False)
        settings = read_told(path.parent / "config.json")
        if path.suffix == ".safetensors":
            return Archive(read_safetensors([path]), settings, NOTHING_TOLD, False)
        tensors = read_pickled(path)
        return Archive(tensors, settings, NOTHING_TOLD, tensors.wrapped)


def _open_folder(folder: Path) -> Archive:
    if all((folder / name).is_file() for name in MODULES):
        halves = {name.removesuffix(".pkl"): read_pickled(folder / name) for name in MODULES}
        both = {f"{half}.{name}": tensor for half, found in halves.items() for name, tensor in found.items()}
        return Archive(both, NOTHING_TOLD, NOTHING_TOLD, False)
    settings, preprocessing = read_told(folder / "config.json"), read_told(folder / "preprocessor_config.json")
    parts = sorted(folder.glob("*.safetensors"))
    if index := read_told(folder / "model.safetensors.index.json").section("weight_map"):
        names = sorted({index.word(tensor) for tensor in index})
        # A name is looked up among the folder's own files: one with slashes is not there.
        absent = [name for name in names if name not in {part.name for part in parts}]
        if absent:
            raise UserError(f"Expected all parts of the weights in {folder}, missing: {', '.join(absent[:8])}.")
        parts = [folder / name for name in names]
    if parts:
        with reading(folder):
            return Archive(read_safetensors(parts), settings, preprocessing, False)
    pickled = sorted(folder.glob("*.bin"))
    if pickled:
        return Archive(read_pickled(pickled[0]), settings, preprocessing, False)
    raise UserError(f"Expected *.safetensors or *.bin in {folder}, found none.")


def read_safetensors(paths: list[Path]) -> dict[str, Tensor]:
    """The tensors of one or several `.safetensors`, mapped into memory. Their library compares all sizes."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"{path.name} claims a header of {length:,} bytes")
        file = safe_open(path, "numpy")
        for name in file.keys():  # noqa: SIM118
            if name in tensors:
                raise UserError(f"Expected every tensor once in {path.parent}, {name} is in two parts.")
            said = file.get_slice(name)
            dtype = np.dtype(SAFE_TYPES.get(said.get_dtype(), np.void))
            tensors[name] = Tensor(tuple(said.get_shape()), dtype, functools.partial(_get, path, file, name))
    return tensors


def _get(path: Path, file: Any, name: str) -> np.ndarray:
    with reading(path):
        return file.get_tensor(name)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], *, wrapped: bool = False) -> None:
    """Write by the suffix of `path`. `wrapped`: a `.pth` gets its tensors under "model".

    Raises:
      UserError: an unknown suffix, `.pth` without PyTorch, or a place that cannot be written.
    """
    part = path.with_name(f".{path.name}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            # One by one into the archive: no second copy of the model in memory.
            np.savez(part, **tensors)  # type: ignore[arg-type]
        elif path.suffix == ".safetensors":
            save_file(tensors, part, metadata={"format": "pt"})  # transformers asks for it
        elif path.suffix in PICKLED:
            _write_pickled(part, tensors, wrapped)
        else:
            raise UserError(f"Expected a destination of .npz, .safetensors or .pth, got {path.name}.")
        part.rename(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"Expected to write {path}, it failed ({error}): free space or give another path.") from error


def _write_pickled(path: Path, tensors: dict[str, np.ndarray], wrapped: bool) -> None:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            "Expected PyTorch to write a .pth, it is not installed: pip install 'vit_jax[torch]', or write "
            ".safetensors, which PyTorch reads too."
        ) from error
    state = {}
    for name, tensor in tensors.items():
        # torch takes no bfloat16 from NumPy: by way of float32, which holds every bfloat16 exactly.
        value = torch.from_numpy(np.require(tensor.astype(np.float32, copy=False), requirements=["C", "W"]))
        state[name] = value.to(torch.bfloat16) if tensor.dtype == ml_dtypes.bfloat16 else value
    torch.save({"model": state} if wrapped else state, path)
