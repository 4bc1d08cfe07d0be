"""Repositories of a Hugging Face hub: `hf:owner/name`, `hf:owner/name@revision`, and single files of either.

huggingface_hub fetches them into its own cache, goes on where a start before it was stopped and lets one process at a time
write a file. It compares lengths; that the bytes of large files are those that their sha256 names is compared here, once.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from vit_jax.contracts import UserError, first_line
from vit_jax.conversion.downloads import EXTRA

FILES = ("*.json", "*.safetensors", "*.bin")
ADDRESS = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+))?")
SHA256 = re.compile(r"[0-9a-f]{64}")


def from_hub(address: str, checked: Path) -> Path:
    """The folder of a repository in the hub's cache, or the file that `address` names in it.

    Args:
      checked: a folder that remembers which files were compared with their sha256.

    Raises:
      UserError: no such address, nothing there, no permission, no network, or bytes that are not what they should be.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"Expected huggingface_hub to fetch {address}, it is not installed: {EXTRA}.") from error
    parts = ADDRESS.fullmatch(address)
    if not parts or ".." in address:
        raise UserError(
            f"Expected hf:owner/name, hf:owner/name@revision or hf:owner/name/file.safetensors, got {address[:200]!r}."
        )
    repository, revision, file = parts["repository"], parts["revision"], parts["file"]
    try:
        if file:
            found = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
        else:
            found = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's library raises kinds of its own, and those of its transports
        raise UserError(f"Expected to fetch {address}, it failed ({_reason(error, repository)}).") from error
    for path in [found] if file else sorted(found.rglob("*")):
        if path.is_file():
            _check_sha256(path, address, checked)
    return found


def _reason(error: Exception, repository: str) -> str:
    """What is wrong, and what to do about it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    where = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{repository}"
    if "GatedRepoError" in kinds:
        return (
            f"{where} is for those alone who accept its terms: accept them there, then `hf auth login` or set HF_TOKEN"
        )
    if "RepositoryNotFoundError" in kinds:
        return f"there is no {where}, or it is private: check owner and name, or `hf auth login` or set HF_TOKEN"
    if "RevisionNotFoundError" in kinds:
        return f"{where} has no such revision: check what stands behind @"
    if "RemoteEntryNotFoundError" in kinds:
        return f"{where} has no such file: check its name"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
        why = (
            "HF_HUB_OFFLINE forbids to ask the hub"
            if offline
            else f"{where} gave none ({first_line(error.__cause__ or error)})"
        )
        return f"it is not in the cache, and {why}: try again with a network, or fetch it by hand and give its path"
    return f"{first_line(error)}: try again, or fetch it by hand and give its path"


def _check_sha256(path: Path, address: str, checked: Path) -> None:
    """Of a file that the hub's cache keeps under its sha256; others are small and have none."""
    kept = path.resolve()
    note = checked / kept.name
    if not SHA256.fullmatch(kept.name) or (note.exists() and note.read_text() == str(kept.stat().st_size)):
        return
    with kept.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != kept.name:
        kept.unlink()
        path.unlink(missing_ok=True)
        raise UserError(
            f"Expected {path.name} of {address} with the sha256 {kept.name[:16]}..., it has {found[:16]}...: it was damaged "
            "and is removed, try again."
        )
    checked.mkdir(parents=True, exist_ok=True)
    note.write_text(str(kept.stat().st_size))
