"""Where the files in a tar lie, so that each can be read by itself; nothing is ever unpacked.

Python's tarfile takes a damaged header for the end of the archive. Here an archive ends with a block of zeros or is damaged.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vit_jax.contracts import UserError, first_line

BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A regular file within a tar: its bytes are those of the tar from `offset` on."""

    name: str  # without folders
    offset: int
    size: int


def members(
    handle: int, path: Path, start: int, end: int, show: Callable[[int], None] = lambda place: None
) -> Iterator[Member]:
    """The files of the tar that lies in `path` from byte `start` to `end`, of which the headers alone are read.

    Raises:
      UserError: no tar, a damaged one, or one that was cut off.
    """
    place = start
    while True:
        block = os.pread(handle, BLOCK, place)
        if len(block) < BLOCK or place + BLOCK > end:
            raise _damaged(path, f"it ends at byte {place:,}, in the middle")
        if block.count(0) == BLOCK:
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _damaged(path, f"{first_line(error)} at byte {place:,}") from error
        after = place + BLOCK + -(-header.size // BLOCK) * BLOCK
        if header.size < 0 or after > end:
            raise _damaged(path, f"{header.name[:80]} at byte {place:,} goes on beyond its end")
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE):
            raise UserError(f"Expected short names in {path}, got {header.name[:80]}: give the original file.")
        name = header.name.rpartition("/")[2]
        if header.isreg() and not name.startswith("."):
            yield Member(name, place + BLOCK, header.size)
        place = after
        show(place)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"Expected a whole tar, {path} is none ({why}): download it again.")
