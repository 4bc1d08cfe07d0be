"""Where a run's files lie: on a disk, or in a bucket (`gs://`, `s3://`), which etils' epath treats like one.

Checkpoints go straight into a bucket, as TensorStore writes them. Everything else that a run leaves is small and grows line
by line, which no bucket knows: it is written on a local disk and copied whenever a checkpoint is begun, and at the end.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from vit_jax.contracts import UserError, first_line

# What brings a kind of bucket: the library that epath asks, and the extra that installs it.
LIBRARIES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>.*)", re.DOTALL)
UNFINISHED = (".tmp", ".part")  # endings of files that take their place by a rename
Where = str | os.PathLike  # type: ignore[type-arg]  # as users write it


def place(where: Where) -> epath.Path:
    """An absolute path, or an address in a bucket. Nothing is asked of any disk or server.

    Raises:
      UserError: an address of another kind, one without a bucket, or the library that reaches it is not installed.
    """
    text = os.fspath(where)
    address = ADDRESS.fullmatch(text)  # of one slash where pathlib has read the address
    if address is None or text.startswith("file://"):
        return epath.Path(text.removeprefix("file://")).expanduser().absolute()
    scheme, rest = address["scheme"].lower(), address["rest"].strip("/")
    if scheme not in LIBRARIES:
        kinds = " or ".join(f"{kind}://" for kind in LIBRARIES)
        raise UserError(f"Expected a folder, or an address that begins with {kinds}, got {text[:200]!r}: fix it.")
    if not rest:
        raise UserError(f"Expected {scheme}://bucket/folder, got {text!r}: name the bucket.")
    library, extra = LIBRARIES[scheme]
    if not importlib.util.find_spec(library):
        raise UserError(
            f'Expected the package {library}, which reaches {scheme}://, it is not installed: pip install "vit_jax[{extra}]".'
        )
    return epath.Path(f"{scheme}://{rest}")


def scheme_of(where: Where) -> str | None:
    """`gs`, `https` and the like; None of a path."""
    address = ADDRESS.fullmatch(os.fspath(where))
    return address["scheme"].lower() if address else None


def in_bucket(where: Where) -> bool:
    """Whether `where`, as `place` gives it, is an address."""
    return "://" in os.fspath(where)


def filesystem(where: epath.Path) -> Any:
    """fsspec's view of a bucket, which knows what epath has no word for. Listings are never remembered: other processes
    write."""
    import fsspec

    for name in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return epath.backend.fsspec_backend.fs(where)


def put(where: epath.Path, data: bytes, *, only_new: bool = False) -> None:
    """Write an object of a bucket in one request.

    Raises:
      FileExistsError: it is there already, and `only_new`.
    """
    filesystem(where).pipe_file(os.fspath(where), data, mode="create" if only_new else "overwrite")


@contextlib.contextmanager
def reached(where: Where) -> Iterator[None]:
    """Whatever goes wrong between here and a bucket is one sentence; on a disk errors stay what they are.

    Raises:
      UserError: no such bucket, no permission, no network.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # each store's library raises kinds of its own, and those of its transports
        if not in_bucket(where):
            raise
        why = "there is none" if isinstance(error, FileNotFoundError) else first_line(error)[:200]
        raise UserError(
            f"Expected to reach {where}, it failed ({why}): check the bucket's name, the network and "
            "your credentials (for Google: gcloud auth application-default login)."
        ) from error


def contact(where: epath.Path) -> None:
    """Find out whether a bucket answers at all, before its silence is taken for emptiness. Raises as `reached`."""
    if in_bucket(where):
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for each try of what it then raises
        with reached(where), contextlib.suppress(FileNotFoundError):
            filesystem(where).ls(os.fspath(where))


class Mirror:
    """The files of a run beside its checkpoints: `local` is where they are written, and `push` copies what has changed.

    On a disk `local` is the workdir itself, and nothing is copied.
    """

    def __init__(self, workdir: epath.Path):
        self.workdir, self.remote = workdir, in_bucket(workdir)
        self.local = Path(os.fspath(workdir))
        self._copied: dict[str, tuple[int, int]] = {}
        if self.remote:
            filesystem(workdir)  # before anything lists the bucket
            self.local = Path(tempfile.mkdtemp(prefix="vit_jax-")) / workdir.name
            self.local.mkdir()

    def pull(self) -> None:
        """Fetch what an earlier start, perhaps on another machine, left at the workdir's top: metrics go on."""
        if not self.remote:
            return
        with reached(self.workdir):
            for path in self.workdir.iterdir() if self.workdir.is_dir() else ():
                if not path.name.startswith(".") and not path.is_dir():
                    (self.local / path.name).write_bytes(path.read_bytes())
        self._copied = self._there()

    def push(self) -> None:
        """Copy what is new or has changed. Raises as `reached`."""
        if not self.remote:
            return
        with reached(self.workdir):
            for name, version in self._there().items():
                if self._copied.get(name) != version:
                    put(self.workdir / name, (self.local / name).read_bytes())
                    self._copied[name] = version

    def close(self) -> None:
        """Remove the local copy."""
        if self.remote:
            shutil.rmtree(self.local.parent, ignore_errors=True)

    def _there(self) -> dict[str, tuple[int, int]]:
        """(time, size) of every file, by its path in the workdir."""
        found = {}
        for path in sorted(self.local.rglob("*")):
            if path.is_file() and path.suffix not in UNFINISHED:
                stat = path.stat()
                found[path.relative_to(self.local).as_posix()] = (stat.st_mtime_ns, stat.st_size)
        return found
