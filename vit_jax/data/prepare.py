"""A folder of pictures -> a TFDS data set in ArrayRecord files, without TensorFlow.

The encoded bytes go in as they are; any program that reads TFDS can read the result.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.contracts import Record, UserError
from vit_jax.data.decoding import UnreadablePicture, decode, open_picture, printable
from vit_jax.data.folders import folder_records

MAX_UNREADABLE = 0.01
KEPT_FORMATS = ("JPEG", "PNG")  # what TFDS's image feature can hold; others are written as PNG


def prepare(
    folder: str | Path, out: str | Path, *, seed: int = 0, metadata: dict[str, int] | None = None
) -> dict[str, Any]:
    """Write the train and test pictures of `folder` into `out` and tell what was written.

    Args:
      folder: any layout that `open_source` takes.
      out: a folder that does not exist yet, or is empty.
      seed: of the split, where `folder` has none.
      metadata: numbers to keep with it, in TFDS's metadata.json.

    Returns:
      {"splits": {name: count}, "classes": names or None, "unreadable": names}.

    Raises:
      UserError: no pictures, too many unreadable ones, or an `out` that holds something. `out` is then as it was.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"Expected a new or empty folder to write to, {out} holds something: give another OUT.")
    if not Path(folder).is_dir():
        raise UserError(f"Expected a folder of pictures, {folder} is none: fix the path.")
    splits = {name: folder_records(Path(folder), name, seed) for name in ("train", "test")}
    odd = [name for name in splits["train"].class_names or () if printable(name) != name]
    if odd:
        raise UserError(
            f"Expected classes whose names can be printed, which TFDS keeps line by line, got {odd}: rename them."
        )
    unreadable: list[str] = []
    temporary = out.with_name(out.name + ".unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        counts = _write(temporary, splits, unreadable, metadata or {})
        total = sum(len(source) for source in splits.values())
        if len(unreadable) > MAX_UNREADABLE * total:
            raise UserError(
                f"Expected at most {MAX_UNREADABLE:.0%} unreadable pictures of {total}, found {len(unreadable)}: "
                f"{', '.join(unreadable[:5])}; repair or remove them."
            )
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise UserError(f"Expected to write to {out}, it failed ({error}): free space or give another OUT.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    names = splits["train"].class_names
    return {"splits": counts, "classes": None if names is None else list(names), "unreadable": unreadable}


def _write(place: Path, splits: dict[str, Any], unreadable: list[str], metadata: dict[str, int]) -> dict[str, int]:
    import tensorflow_datasets as tfds

    names = splits["train"].class_names
    features = {"image": tfds.features.Image(shape=(None, None, None)), "name": tfds.features.Text()}
    if names is not None:
        features["label"] = tfds.features.ClassLabel(names=list(names))

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "pictures"
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = place

        def _info(self) -> Any:
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(metadata)
            )

        def _split_generators(self, manager: Any) -> Any:
            return {name: self._generate_examples(source) for name, source in splits.items()}

        def _generate_examples(self, source: Any) -> Iterator[tuple[str, dict[str, Any]]]:
            for index in range(len(source)):
                record = source[index]
                try:
                    encoded = as_png_or_jpeg(record)
                except UnreadablePicture as error:
                    unreadable.append(str(error))
                    continue
                example = {"image": io.BytesIO(encoded), "name": printable(Path(record.name).name)}
                yield f"{index:09d}", example | ({"label": record.label} if names is not None else {})

    tfds.disable_progress_bar()
    builder = Pictures(data_dir=place, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints its own progress
        builder.download_and_prepare()
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def as_png_or_jpeg(record: Record) -> bytes:
    """The bytes themselves where they decode and are JPEG or PNG, else the picture as PNG."""
    assert isinstance(record.image, bytes)
    picture = open_picture(record, 3)
    kept = picture.format in KEPT_FORMATS
    upright = decode(picture, 3, record.name)
    if kept:
        return record.image
    buffer = io.BytesIO()
    upright.save(buffer, format="PNG")
    return buffer.getvalue()
