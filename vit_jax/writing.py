"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vit_jax.contracts import UserError


@contextlib.contextmanager
def written_whole(out: Path, argument: str = "--out") -> Iterator[IO[bytes]]:
    """A file that is tried at once, and takes its name (also an older file's) when it is whole."""
    part = out.with_name(out.name + ".part")
    try:
        if out.is_dir():
            raise IsADirectoryError(None, "a folder of that name is there")
        with part.open("wb") as file:
            yield file
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"Expected to write {out}, it failed ({error.strerror or error}): change {argument}."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
