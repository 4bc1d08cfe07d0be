"""Files of tensors by name, opened lazily, and written: .npz, .safetensors, .pth, Hugging Face folders."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # NumPy learns bfloat16 by it, which safetensors then returns
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vit_jax.contracts import UserError
from vit_jax.conversion.pickles import PickledTensors, read_pickled

PICKLED = (".pth", ".pt", ".bin", ".th")
HF_FILES = ("*.json", "*.safetensors", "*.bin")


class Archive(NamedTuple):
    """An opened file or folder."""

    tensors: Mapping[str, np.ndarray]
    settings: dict[str, Any]  # config.json beside the tensors, where there is one
    preprocessing: dict[str, Any]  # preprocessor_config.json
    wrapped: bool  # a .pth with its state dict under "model", as MAE and DeiT write


class SafeTensors(Mapping[str, np.ndarray]):
    """The tensors of one or several `.safetensors`, mapped into memory."""

    def __init__(self, paths: list[Path]):
        self.files = [safe_open(path, "numpy") for path in paths]
        self.places = {name: file for file in self.files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> np.ndarray:
        return self.places[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def fetch(path: str | Path) -> Path:
    """A local path for `path`, which may also be `https://...`, `gs://...` or `hf:owner/name` (untested online).

    Raises:
      UserError: nothing there, or the library that fetches it is not installed.
    """
    text = str(path)
    if text.startswith("hf:"):
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise UserError(
                f"Expected huggingface_hub to fetch {text}, it is not installed: pip install it."
            ) from error
        return Path(snapshot_download(text.removeprefix("hf:"), allow_patterns=list(HF_FILES)))
    if "://" in text:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_jax" / "weights"
        local = cache / text.replace("://", "/")
        if not local.exists():
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(local.name + ".part")
            try:
                with _opened(text) as remote, part.open("wb") as file:
                    shutil.copyfileobj(remote, file)
            except Exception as error:  # each store's library raises its own kinds
                raise UserError(f"Expected to fetch {text}, it failed ({error}): fetch it by hand.") from error
            part.rename(local)
        return local
    local = Path(text).expanduser()
    if not local.exists():
        raise UserError(
            f"Expected a workdir with checkpoints, or a file of weights, {local} does not exist: fix the path."
        )
    return local


def _opened(address: str) -> Any:
    """A stream of bytes: web addresses by the standard library, buckets by etils."""
    if address.startswith(("https://", "http://", "file://")):
        return urllib.request.urlopen(address)
    from etils import epath

    return epath.Path(address).open("rb")


def open_archive(path: Path) -> Archive:
    """Open a file of weights, or a folder with `config.json` and weights.

    Raises:
      UserError: an unknown kind of file, or a broken one.
    """
    if path.is_dir():
        return _open_folder(path)
    beside = {"settings": _json(path.parent / "config.json"), "preprocessing": {}}
    try:
        if path.suffix == ".npz":
            return Archive(np.load(path, allow_pickle=False), {}, {}, False)
        if path.suffix == ".safetensors":
            return Archive(SafeTensors([path]), wrapped=False, **beside)
        if path.suffix in PICKLED:
            tensors = read_pickled(path)
            return Archive(tensors, wrapped=isinstance(tensors, PickledTensors) and tensors.wrapped, **beside)
    except (OSError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"Expected a file of weights, {path} cannot be read ({error}): fetch it again.") from error
    raise UserError(f"Expected .npz, .safetensors or {'/'.join(PICKLED)}, got {path.name}.")


def _open_folder(folder: Path) -> Archive:
    settings, preprocessing = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    if index := _json(folder / "model.safetensors.index.json"):
        parts = sorted({folder / name for name in index.get("weight_map", {}).values()})
    else:
        parts = sorted(folder.glob("*.safetensors"))
    if parts:
        absent = [part.name for part in parts if not part.exists()]
        if absent:
            raise UserError(f"Expected all parts of the weights in {folder}, missing: {', '.join(absent)}.")
        return Archive(SafeTensors(parts), settings, preprocessing, False)
    pickled = sorted(folder.glob("*.bin"))
    if pickled:
        return Archive(read_pickled(pickled[0]), settings, preprocessing, False)
    raise UserError(f"Expected *.safetensors or *.bin in {folder}, found none.")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"Expected JSON in {path}, it cannot be read ({error}).") from error
    return content if isinstance(content, dict) else {}


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
