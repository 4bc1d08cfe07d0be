"""One file from one address: continued where it stopped, never a mixture of two versions, in its place when it is whole.

What has come lies beside the file's place, with what the server calls this version of it (a strong ETag, a date, a
generation). A later start asks for the rest of that version and takes nothing else as its rest; where a server names no
version or knows no ranges, it starts anew. One process at a time fetches a file, the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vit_jax.contracts import first_line
from vit_jax.locks import alone
from vit_jax.progress import Progress, megabytes

PUBLIC_BUCKETS = "https://storage.googleapis.com/"  # gs://bucket/path without an account
EXTRA = "pip install 'vit_jax[remote]'"
SILENCE = 30.0  # seconds without a byte after which a server is given up
SLOWEST, PATIENCE = 1024, 60.0  # bytes a second, looked at from this many seconds on
CHUNK = 2**18
TRIES = 5  # of a transfer that breaks off, as long as each brings something
WEB_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", re.IGNORECASE)


class Wrong(OSError):
    """What has come is not the file, and no beginning of it."""


class Remote(NamedTuple):
    """An answer: the bytes of a file from `start` on."""

    stream: Any
    start: int
    total: int | None  # length of the whole file
    version: str  # "" where the server names none
    now: Callable[[], str] | None = None  # the version by now, of a file that is read in several requests


class Part:
    """What has come of a file, and of which version it is."""

    def __init__(self, local: Path):
        self.path, self.note = (local.with_name(f".{local.name}.{suffix}") for suffix in ("part", "version"))
        self.version, self.total = "", None
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.version, self.total = json.loads(self.note.read_text())

    @property
    def size(self) -> int:
        """Bytes that can be gone on from."""
        return self.path.stat().st_size if self.version and self.path.exists() else 0

    def begin(self, version: str, total: int | None) -> None:
        """Empty, then named: bytes of two versions are never under one name."""
        self.path.write_bytes(b"")
        new = self.note.with_name(f"{self.note.name}.new")
        new.write_text(json.dumps([version, total]))
        new.replace(self.note)
        self.version, self.total = version, total

    def remove(self) -> None:
        self.version, self.total = "", None
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)


def is_whole(local: Path) -> bool:
    """Whether a file is there, of the length that was noted when it was whole."""
    noted = _length(local)
    return local.is_file() and noted.is_file() and noted.read_text() == str(local.stat().st_size)


def _length(local: Path) -> Path:
    return local.with_name(f".{local.name}.length")


def download(address: str, local: Path, shown: str, digits: str) -> None:
    """Fetch `address` to `local`, unless another process has by the time it is our turn.

    Args:
      shown: the address for messages.
      digits: the first ones of its sha256, where they are known.

    Raises:
      OSError, and what the library of a store raises: it did not come. What has come of it is kept for the next start.
      Wrong: something else came. Nothing is kept.
    """
    with alone(local.parent, wait=True):
        if is_whole(local):
            return
        part = Part(local)
        try:
            _fetch(address, part, shown)
            _check(part, digits)
            os.replace(part.path, local)
            _length(local).write_text(str(local.stat().st_size))
        except Wrong:
            part.remove()
            raise
        finally:
            if not part.size:
                part.remove()


def _fetch(address: str, part: Part, shown: str) -> None:
    """Again where a transfer breaks off after it has brought something that can be gone on from."""
    for last in (*[False] * (TRIES - 1), True):
        before = part.size
        try:
            return _go_on(address, part, shown)
        except Exception as error:  # each store's library raises its own kinds
            if last or isinstance(error, TimeoutError | Wrong) or part.size <= before:
                raise


def _go_on(address: str, part: Part, shown: str) -> None:
    if part.size and part.size == part.total:
        return  # killed before it was renamed
    remote = opened(address, part.size, part.version)
    if remote.start and (remote.start, remote.version) != (part.size, part.version):
        remote.stream.close()
        remote = opened(address, 0, "")
    with remote.stream:
        if not remote.start:
            part.begin(remote.version, remote.total)
        with (
            part.path.open("ab") as file,
            Progress(f"fetching {shown}", remote.total, megabytes, remote.start) as progress,
        ):
            _copy(remote, file, progress)
            os.fsync(file.fileno())
    if remote.now is not None and remote.now() != remote.version:
        raise Wrong("it changed while it was read")
    size = part.path.stat().st_size
    if remote.total is not None and size < remote.total:
        raise OSError(f"{size:,} bytes came of {remote.total:,}")


def _copy(remote: Remote, file: Any, progress: Progress) -> None:
    """The first bytes tell a web page from weights."""
    done, began = 0, time.monotonic()
    read = getattr(remote.stream, "read1", remote.stream.read)  # what is there, without waiting for a whole chunk
    while chunk := read(CHUNK):
        if not remote.start and not done and WEB_PAGE.match(chunk):
            raise Wrong("a web page came instead of weights")
        file.write(chunk)
        done += len(chunk)
        progress.show(remote.start + done)
        seconds = time.monotonic() - began
        if seconds > PATIENCE and done < SLOWEST * seconds:
            raise TimeoutError(f"only {done:,} bytes came in {seconds:.0f} s")


def _check(part: Part, digits: str) -> None:
    size = part.path.stat().st_size
    if size == 0 or (part.total is not None and size != part.total):
        raise Wrong(f"{size:,} bytes came of {part.total or 'some'}")
    if digits:
        with part.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(digits):
            raise Wrong(f"its sha256 begins with {found[: len(digits)]}, {digits} was published")


def opened(address: str, start: int, version: str) -> Remote:
    """The bytes of an address, from `start` on if they are of `version` still, else from its beginning.

    Web addresses and public buckets by the standard library, other stores by fsspec.
    """
    if address.startswith("gs://"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            address = PUBLIC_BUCKETS + urllib.parse.quote(address.removeprefix("gs://"))
    if not address.startswith(("https://", "http://")):
        return _from_store(address, start, version)
    return _from_web(address, start, version)


def _from_store(address: str, start: int, version: str) -> Remote:
    import fsspec

    store, path = fsspec.core.url_to_fs(address)

    def seen() -> tuple[int | None, str]:
        store.invalidate_cache()
        info = store.info(path)
        return info.get("size"), str(info.get("generation") or info.get("etag") or info.get("ETag") or "")

    try:
        total, found = seen()
        stream = store.open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError("there is no file of this name, or no such bucket: check both") from error
    except Exception as error:
        if str(getattr(error, "code", "")) in ("401", "403"):
            raise PermissionError(
                f"this account may not read it ({error.code}): "  # type: ignore[attr-defined]
                "`gcloud auth application-default login` with one that may"
            ) from error
        raise
    start = start if version and found == version else 0
    stream.seek(start)
    return Remote(stream, start, total, found, lambda: seen()[1])


def _from_web(address: str, start: int, version: str) -> Remote:
    headers = {"Range": f"bytes={start}-", "If-Range": version} if start else {}
    try:
        answer = _opener().open(urllib.request.Request(address, headers=headers), timeout=SILENCE)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        if error.code == 416 and start:  # it is shorter by now
            return _from_web(address, 0, "")
        raise _refused(error, address) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, socket.gaierror):
            host = urllib.parse.urlsplit(address).hostname
            raise OSError(f"no network, or no server {host}: {error.reason.strerror}") from error
        raise error.reason if isinstance(error.reason, Exception) else OSError(str(error.reason)) from error
    except http.client.HTTPException as error:
        raise OSError(first_line(error)) from error
    found = answer.headers
    tag = found.get("ETag", "")
    named = tag if tag and not tag.startswith("W/") else found.get("Last-Modified", "")
    if answer.status == 206:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", found.get("Content-Range", "").strip())
        begin, total = (int(given[1]), int(given[2])) if given else (-1, None)
        return Remote(answer, begin, total, named)
    length = found.get("Content-Length")
    return Remote(answer, 0, int(length) if length and length.isdigit() else None, named)


def _refused(error: urllib.error.HTTPError, address: str) -> OSError:
    said = first_line(error)
    if error.code == 404:
        return FileNotFoundError(f"{said}: there is no file of this name, check the address")
    if error.code in (401, 403):
        private = (
            f"a private bucket needs gcsfs, {EXTRA}" if address.startswith(PUBLIC_BUCKETS) else "it asks who you are"
        )
        return PermissionError(f"{said}: {private}")
    return OSError(said)


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Redirects stay on the web, and encrypted where they began so."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https",) if req.type == "https" else ("https", "http")
        if (target := urllib.parse.urlsplit(newurl)).scheme not in allowed:
            where = f"{target.scheme}://{target.hostname or ''}{target.path}"
            raise urllib.error.HTTPError(req.full_url, code, f"redirected to {where}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler, _WebOnly,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener
