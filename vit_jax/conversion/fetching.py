"""Published names and addresses to local files: fetched once into the cache, whole or not at all.

Nothing of an address becomes a path: a file lies in a folder named by the address's hash, under a name of plain letters.
It is written beside its place and renamed when its length (and sha256, where known) is right. The length is noted, so a file
that was cut off since then is fetched again.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from vit_jax.contracts import UserError, first_line
from vit_jax.conversion.catalogue import PUBLISHED

HF_FILES = ("*.json", "*.safetensors", "*.bin")
PUBLIC_BUCKETS = "https://storage.googleapis.com/"  # gs://bucket/path without an account
SILENCE = 30.0  # seconds without a byte after which a server is given up
SLOWEST, PATIENCE = 1024, 60.0  # bytes a second, looked at from this many seconds on
CHUNK = 2**18
WEB_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", re.IGNORECASE)
EXTRA = "pip install 'vit_jax[remote]'"


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
        return _from_hub(text)
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
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vit_jax" / "weights"
    folder = home / hashlib.sha256(address.encode(errors="replace")).hexdigest()[:16]
    local, noted = folder / plain_name(address), folder / "length"
    if local.is_file() and noted.is_file() and noted.read_text() == str(local.stat().st_size):
        return local
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _download(address, local, digits)
        noted.write_text(str(local.stat().st_size))
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"Expected the libraries that fetch {shown} ({first_line(error)}): {EXTRA}.") from error
    except Exception as error:  # each store's library raises its own kinds
        raise UserError(
            f"Expected to fetch {shown}, it failed ({_reason(error)}): try again, or fetch it by hand and give its path."
        ) from error
    return local


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
        return f"nothing came for {SILENCE:.0f} s"
    return first_line(error)


def _download(address: str, local: Path, digits: str) -> None:
    """Into a file of its own beside `local`, which takes its place when it is whole."""
    handle, name = tempfile.mkstemp(prefix=f"{local.name}.", suffix=".part", dir=local.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, _opened(address) as remote:
            length = getattr(remote, "headers", {}).get("Content-Length")
            expected = int(length) if length and length.isdigit() else None
            found = _copied(remote, file, shown_address(address), expected)
        size = part.stat().st_size
        if size == 0 or (expected is not None and size != expected):
            raise OSError(f"{size:,} bytes came of {expected or 'some'}")
        if not found.startswith(digits):
            raise OSError(f"its sha256 begins with {found[: len(digits)]}, {digits} was published")
        os.replace(part, local)
    finally:
        part.unlink(missing_ok=True)


def _copied(remote: Any, file: Any, shown: str, expected: int | None) -> str:
    """sha256 of what was copied. The first bytes tell a web page from weights."""
    digest, done, began = hashlib.sha256(), 0, time.monotonic()
    with Progress(shown, expected) as progress:
        read = getattr(remote, "read1", remote.read)  # what is there, without waiting for a whole chunk
        while chunk := read(CHUNK):
            if not done and WEB_PAGE.match(chunk):
                raise OSError("a web page came instead of weights")
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress.show(done)
            seconds = time.monotonic() - began
            if seconds > PATIENCE and done < SLOWEST * seconds:
                raise OSError(f"only {done:,} bytes came in {seconds:.0f} s")
    return digest.hexdigest()


class Progress:
    """One line on stderr: counting on a terminal, once elsewhere."""

    def __init__(self, shown: str, expected: int | None):
        self.total = f" of {expected / 2**20:,.0f} MB" if expected else ""
        self.shown, self.terminal, self.last = shown, sys.stderr.isatty(), 0.0
        if not self.terminal:
            print(f"fetching {shown}{f' ({expected / 2**20:,.0f} MB)' if expected else ''} ...", file=sys.stderr)

    def show(self, done: int) -> None:
        if self.terminal and time.monotonic() - self.last > 0.2:
            self.last = time.monotonic()
            print(f"\rfetching {self.shown}: {done / 2**20:,.0f}{self.total}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: Any) -> None:
        if self.terminal:
            print(file=sys.stderr)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirects stay on the web, and encrypted where they began so."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if req.type == "https" else ("https", "http")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            raise urllib.error.HTTPError(req.full_url, code, f"redirected to {shown_address(newurl)}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opened(address: str) -> Any:
    """A stream of bytes: web addresses and public buckets by the standard library, other stores by fsspec."""
    if address.startswith("gs://"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            address = PUBLIC_BUCKETS + urllib.parse.quote(address.removeprefix("gs://"))
    if not address.startswith(("https://", "http://")):
        import fsspec

        return fsspec.open(address, "rb").open()
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _WebOnly,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    try:
        return opener.open(address, timeout=SILENCE)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        private = error.code in (401, 403) and address.startswith(PUBLIC_BUCKETS)
        hint = f"; a private bucket needs gcsfs: {EXTRA}" if private else ""
        raise OSError(f"{first_line(error)}{hint}") from error
    except urllib.error.URLError as error:
        raise error.reason if isinstance(error.reason, Exception) else OSError(str(error.reason)) from error
    except http.client.HTTPException as error:
        raise OSError(first_line(error)) from error


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"Expected huggingface_hub to fetch {name}, it is not installed: {EXTRA}.") from error
    repository = name.removeprefix("hf:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"Expected hf:owner/name, got {name[:200]!r}.")
    try:
        return Path(snapshot_download(repository, allow_patterns=list(HF_FILES)))
    except Exception as error:  # the hub's library raises kinds of its own, and those of its transports
        raise UserError(
            f"Expected to fetch {name}, it failed ({first_line(error)}): try again, or fetch it by hand and give its path."
        ) from error
