"""Published names and addresses to local files: fetched once into the cache, whole or not at all.

Nothing of an address becomes a path: a file lies in a folder named by the address's hash, under a name of plain letters.
`downloads` writes it beside its place and renames it when its length (and sha256, where known) is right. The length is noted,
so a file that was cut off since then is fetched again.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path

from vit_jax.contracts import UserError, first_line
from vit_jax.conversion import downloads
from vit_jax.conversion.catalogue import PUBLISHED
from vit_jax.conversion.downloads import EXTRA
from vit_jax.conversion.hub import from_hub


def fetch(path: str | Path) -> Path:
    """A local path for `path`: itself, or a name that `vit-jax models` lists, `https://...`, `gs://...`, `hf:owner/name`.

    Raises:
      UserError: nothing there, a transfer that failed, or the library that fetches it is not installed.
    """
    text = str(path)
    local = Path(os.path.expanduser(text))
    if os.path.exists(local):
        if not local.is_file() and not local.is_dir():
            raise UserError(f"Expected a file or folder of weights, {local} is a pipe or a device: give a file.")
        return local
    digits = ""
    published = {entry.name: entry for entry in PUBLISHED}
    if text in published:
        text, digits = published[text].path, published[text].sha256
    if text.startswith("hf:"):
        return from_hub(text, _cache() / "hub")
    if text.startswith("file://"):
        return fetch(urllib.request.url2pathname(urllib.parse.urlsplit(text).path))
    if "://" in text:
        return cached(text, digits or next((entry.sha256 for entry in PUBLISHED if entry.path == text), ""))
    near = difflib.get_close_matches(text, published, n=1)
    raise UserError(
        f"Expected a workdir with checkpoints, a file of weights or a name of `vit-jax models`, {text[:200]!r} does not "
        f"exist{f' (did you mean {near[0]}?)' if near else ''}: fix the path."
    )


def cached(address: str, digits: str = "") -> Path:
    """The file of an address in the cache, fetched unless it is there and whole. `digits`: first ones of its sha256."""
    shown = shown_address(address)
    try:
        secret = "@" in urllib.parse.urlsplit(address).netloc
    except ValueError as error:
        raise UserError(f"Expected an address, got {shown} ({error}).") from error
    if secret:
        raise UserError(f"Expected an address without user and password, got one to {shown}: fetch it by hand.")
    folder = _cache() / "weights" / hashlib.sha256(address.encode(errors="replace")).hexdigest()[:16]
    local = folder / plain_name(address)
    if downloads.is_whole(local):
        return local
    try:
        folder.mkdir(parents=True, exist_ok=True)
        downloads.download(address, local, shown, digits)
    except ImportError as error:
        raise UserError(f"Expected the libraries that fetch {shown} ({first_line(error)}): {EXTRA}.") from error
    except Exception as error:  # each store's library raises its own kinds
        raise UserError(
            f"Expected to fetch {shown}, it failed ({_reason(error)}): try again, or fetch it by hand and give its path."
        ) from error
    return local


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_jax"


def plain_name(address: str) -> str:
    """The last part of an address as a file name that is nothing else."""
    last = urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1]
    stem, dot, suffix = re.sub(r"[^A-Za-z0-9._+@-]", "_", last).lstrip(".").rpartition(".")
    return f"{stem[:100]}{dot}{suffix[:20]}" if stem else f"{suffix[:100]}" or "weights"


def shown_address(address: str) -> str:
    """Without password and query, for messages."""
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{re.sub(r'[^/]*@', '', rest.partition('?')[0], count=1)}"[:300]


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return str(error) if "bytes" in str(error) else f"nothing came for {downloads.SILENCE:.0f} s"
    return first_line(error)
