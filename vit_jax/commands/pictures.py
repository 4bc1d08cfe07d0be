"""The pictures of a command line, files and folders, batch by batch; what cannot be read is left out and named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vit_jax.api import Trained
from vit_jax.contracts import UserError
from vit_jax.data.decoding import UnreadablePicture, printable
from vit_jax.data.folders import check_file, pictures_below
from vit_jax.data.given import readable, records_of
from vit_jax.data.transforms import Preprocess


class Pictures:
    """Files given one by one, which must be readable, and all in the folders given, of which some may not be."""

    def __init__(self, given: list[str]):
        """Looks at what is there; `UserError` where a file is none or a folder has no pictures."""
        self.left_out: list[str] = []
        self.paths: list[tuple[Path, bool]] = []  # (path, given itself)
        for place in map(Path, given):
            if place.is_dir():
                found = pictures_below(place)
                if not found:
                    raise UserError(f"Expected pictures in {place}, found none: give a folder of pictures.")
                self.paths += [(path, False) for path in found]
            else:
                with readable(place):
                    check_file(place)
                self.paths.append((place, True))

    def batches(self, trained: Trained, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Printable names, and as many pictures preprocessed: uint8 "b H W c" of `size`, the last one of the rest."""
        evaluate = Preprocess.from_config(trained.config["pp"]).evaluate
        names: list[str] = []
        images: list[np.ndarray] = []
        for path, itself in self.paths:
            try:
                images.append(evaluate(records_of(path)[0]).image)
            except UnreadablePicture as error:
                if itself:
                    raise UserError(f"Expected pictures, this one cannot be read: {error}.") from error
                self.left_out.append(str(error))
                continue
            except UserError as error:  # the file has gone meanwhile
                if itself:
                    raise
                self.left_out.append(str(error))
                continue
            names.append(printable(str(path)))
            if len(names) == size:
                yield names, np.stack(images)
                names, images = [], []
        if names:
            yield names, np.stack(images)

    def say_left_out(self) -> None:
        """Which pictures were left out, at the end; `UserError` where it was all of them."""
        if len(self.left_out) == len(self.paths):
            raise UserError(f"Expected a readable picture, none of {len(self.paths)} is: {self.left_out[0]}.")
        for what in self.left_out:
            print(f"left out, unreadable: {what}", file=sys.stderr)
