"""Arrays out of a `.npz`: headers first, compared with the sizes of the members, numbers when they are asked for."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import ml_dtypes
import numpy as np

from vit_jax.contracts import UserError
from vit_jax.conversion.tensors import Tensor, reading
from vit_jax.conversion.zips import Members

MAGIC, LONGEST_HEADER = b"\x93NUMPY", 10_000
# As NumPy writes it (and Python 2's wrote it, with 3L for 3). Only plain numbers: no objects, no records, no text.
HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[biufcV]\d{1,2})', 'fortran_order': (False|True), 'shape': \(([\d, L]*)\), \}\s*"
)


def read_npz(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name.

    Raises:
      UserError: a broken file, one that holds other things than arrays of numbers, or one larger than it says.
    """
    members = Members(path)
    tensors = {name.removesuffix(".npy"): _described(members, name) for name in members.infos}
    if not tensors:
        raise UserError(f"Expected arrays in {path}, found none.")
    return tensors


def _described(members: Members, name: str) -> Tensor:
    start = members.start(name, 12 + LONGEST_HEADER)
    begin = (
        10 if start[6:7] == b"\x01" else 12
    )  # version 1 counts the header's bytes with two bytes, later ones with four
    length = int.from_bytes(start[8:begin], "little")
    header = HEADER.fullmatch(start[begin : begin + length])
    if not start.startswith(MAGIC) or header is None:
        raise UserError(f"Expected arrays of numbers in {members.path}, {name} is something else: fetch it again.")
    kind, fortran, numbers = header.groups()
    # NumPy knows no bfloat16: files of it (big_vision's) say two bytes of no type.
    dtype = np.dtype(ml_dtypes.bfloat16) if kind == b"|V2" else np.dtype(kind.decode())
    shape = tuple(int(number.strip(b" L")) for number in numbers.split(b",") if number.strip())
    tensor = Tensor(
        shape, dtype, functools.partial(_read, members, name, begin + length, dtype, shape, fortran == b"True")
    )
    if begin + length + tensor.nbytes != members.size(name):
        raise UserError(
            f"Expected {tensor.nbytes:,} bytes of {name} of shape {shape} in {members.path}, got "
            f"{members.size(name) - begin - length:,}: fetch it again."
        )
    return tensor


def _read(
    members: Members, name: str, begin: int, dtype: np.dtype, shape: tuple[int, ...], fortran: bool
) -> np.ndarray:
    with reading(members.path):
        numbers = members.read(name)[begin:].view(dtype)
        return numbers.reshape(shape, order="F" if fortran else "C")
