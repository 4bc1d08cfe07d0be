"""Zip files of arrays (.npz, torch.save's) of which nothing is believed: every size is bounded before it is used.

A member's checksum (CRC-32) is compared at the end of reading it, so a flipped bit does not pass.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from vit_jax.contracts import UserError

DIRECTORY = 2**21  # bytes: room for some 20,000 members; the largest files of weights have a tenth of it
# Compressed weights are hardly smaller than plain ones. A file may promise this many times its own bytes, or SMALL.
INFLATION, SMALL = 20, 2**24
CHUNK = 2**20


class _Cautious(io.FileIO):
    """A file that gives at most `most` bytes at once, so that a directory of lying length is not read."""

    most = DIRECTORY

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > self.most:
            here = self.tell()
            size = min(self.seek(0, io.SEEK_END) - here, self.most + 1)
            self.seek(here)
        if size > self.most:
            raise UserError(f"Expected a zip file of arrays, {self.name} has a directory beyond {self.most:,} bytes.")
        return super().read(size)


class Members:
    """The members of a zip file, by name."""

    def __init__(self, path: Path):
        self.path = path
        self.file = _Cautious(path)
        self.archive = zipfile.ZipFile(self.file)  # reads the directory
        self.file.most = 2**62
        found = self.archive.infolist()
        self.infos = {info.filename: info for info in found}
        if len(self.infos) != len(found):
            raise UserError(f"Expected members of different names in {path}, some occur twice: fetch it again.")
        self.total, size = sum(info.file_size for info in found), path.stat().st_size
        if self.total > max(SMALL, INFLATION * size):
            raise UserError(
                f"Expected weights in {path}, its {size:,} bytes promise {self.total:,}, more than {INFLATION} times as "
                "many: if you trust it, unpack it and write it uncompressed."
            )

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self.infos[name].file_size

    def start(self, name: str, count: int) -> bytes:
        """The first bytes of a member."""
        with self.archive.open(self.infos[name]) as stream:
            return stream.read(count)

    def read(self, name: str) -> np.ndarray:
        """All bytes of a member, its checksum compared."""
        content, done = bytearray(self.size(name)), 0
        with self.archive.open(self.infos[name]) as stream:
            while got := stream.readinto(memoryview(content)[done : done + CHUNK]):  # type: ignore[attr-defined]
                done += got
        if done != len(content):
            raise ValueError(f"{name} has {done:,} bytes of {len(content):,}")
        return np.frombuffer(content, np.uint8)
