"""Where pictures come from: random access to records, with class names."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vit_jax.contracts import Record, UserError, first_line
from vit_jax.data.folders import folder_records
from vit_jax.data.labels import TABLE, Labels, has_table, table_records
from vit_jax.data.tfds_labels import label_reader

__all__ = ["Source", "open_source"]


MADE_UP = ("digits", "fake")  # data sets that need no folder and no download


@runtime_checkable
class Source(Protocol):
    """Random access to records. `class_names`: of the numbers in a regression; None without labels."""

    name: str
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(
    dataset: str, split: str, *, tfds_data_dir: str | None = None, seed: int = 0, labels: Labels | None = None
) -> Source:
    """The records of one split.

    Args:
      dataset: "digits", "fake", the path of a folder (pictures, or a prepared TFDS data set), or a TFDS name.
      split: "train", "test", or a part: "train[:98%]", "train[100:200]".
      tfds_data_dir: where TFDS data sets lie; None for TFDS's own default.
      seed: of the split of a folder that has none.
      labels: what is asked of the labels; None for one class a picture as folders have it, a labels.csv is not read then.

    Raises:
      UserError: nothing there, labels that mean nothing, an empty class, or a split that does not exist.
    """
    path = Path(dataset).expanduser()
    if "://" in dataset:
        raise UserError(
            f"Expected data on a disk, got {dataset}: mount the bucket (gcsfuse) and give that path as config.dataset."
        )
    if dataset in MADE_UP:
        _check_no_columns(dataset, labels)
        base, part = parse_split(split)
        return Part(digits(base), part) if dataset == "digits" else Part(Fake(base), part)
    if prepared := _prepared_folder(path):
        return tfds_source(prepared, split, None, labels)
    if path.is_dir():
        base, part = parse_split(split)
        if labels is not None and has_table(path):
            return Part(table_records(path, base, seed, labels), part)
        _check_no_columns(dataset, labels)
        return Part(folder_records(path, base, seed), part)
    if path.exists():
        raise UserError(f"Expected a folder of pictures or a TFDS name, {dataset} is a file: fix config.dataset.")
    if not re.fullmatch(r"[a-z]\w*(/[\w.-]+)?(:[\w.]+)?", dataset):
        raise _missing_folder(path)
    return tfds_source(dataset, split, tfds_data_dir, labels)


def check_classes(source: Source, task: str = "classes") -> int:
    """The number of classes to learn to tell apart, or of numbers to learn.

    Raises:
      UserError: no labels, labels of another task, or fewer than two classes of which each picture has one.
    """
    if source.class_names is None:
        raise UserError(
            f"Expected labelled pictures, {source.name} has none (labels are the names of folders, one a class, or lie in "
            f"a {TABLE}): sort the pictures into folders, or pre-train with config.objective='mae'."
        )
    if (np.ndim(source[0].label) == 0) != (task == "classes"):
        raise UserError(
            f"Expected labels for task {task!r}, {source.name} has "
            f"{'one class a picture' if task != 'classes' else 'several numbers a picture'}: give a {TABLE} or a TFDS set "
            "with such labels, or change config.task."
        )
    if task != "classes":
        return len(source.class_names)
    if len(source.class_names) < 2:
        raise UserError(
            f"Expected two classes or more to tell apart, {source.name} has {', '.join(source.class_names) or 'none'} "
            "alone: add the folder of another class, or pre-train with config.objective='mae'."
        )
    return len(source.class_names)


def _check_no_columns(dataset: str, labels: Labels | None) -> None:
    if labels is not None and labels.columns:
        raise UserError(
            f"Expected a {TABLE} or a TFDS set with {', '.join(labels.columns)}, {dataset} has neither: unset "
            "config.label_columns."
        )


def _missing_folder(path: Path) -> UserError:
    return UserError(
        f"Expected a folder of pictures or a TFDS name, the folder {path.absolute()} does not exist (and no data set of "
        "TFDS has this name): fix config.dataset."
    )


def parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """ "train[:98%]" -> ("train", ("", "98%"))."""
    match = re.fullmatch(r"(\w+)(?:\[(\d*%?):(\d*%?)\])?", split)
    if not match or any(int(percent) > 100 for percent in re.findall(r"(\d+)%", split)):
        raise UserError(
            f'Expected a split such as "train" or "train[:98%]", got {split!r}: change pp.train or pp.test.'
        )
    name, low, high = match.groups()
    return name, None if low is None else (low, high)


def check_split(name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UserError(f"Expected a split of {', '.join(known)}, got {name!r}: change pp.train or pp.test.")


class Part:
    """Some of a source's records, in order; percentages are rounded to the nearest record, as in TFDS."""

    def __init__(self, whole: Source, part: tuple[str, str] | None):
        self.whole, self.name, self.class_names = whole, whole.name, whole.class_names
        low, high = (0, len(whole)) if part is None else tuple(
            _boundary(text, len(whole), default) for text, default in zip(part, (0, len(whole)), strict=True)
        )  # fmt: skip
        self.indices = range(low, max(low, high))
        if not self.indices:
            raise UserError(
                f"Expected pictures in {whole.name}[{low}:{high}], the part is empty: change pp.train or pp.test."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.whole[self.indices[index]]


def _boundary(text: str, size: int, default: int) -> int:
    if not text:
        return default
    value = round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(value, size)


class Arrays:
    """Pictures in memory."""

    class_names: tuple[str, ...] | None

    def __init__(self, name: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        self.name, self.images, self.labels, self.class_names = name, images, labels, class_names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], int(self.labels[index]), f"{self.name}[{index}]")


def digits(split: str) -> Arrays:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 greys: 1,437 to train, 360 to test, always the same ones."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    check_split(split, ("train", "test"))
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    parts = train_test_split(np.arange(len(images)), test_size=360, random_state=0, stratify=data.target)
    chosen = parts[0] if split == "train" else parts[1]
    return Arrays(f"digits {split}", images[chosen], data.target[chosen], tuple("0123456789"))


class Fake:
    """Made-up 32 x 32 colour pictures whose colour and stripes tell the class: nothing to download."""

    class_names: tuple[str, ...] | None

    def __init__(self, split: str, num_classes: int = 10):
        check_split(split, ("train", "test"))
        self.name, self.size, self.offset = f"fake {split}", *((256, 0) if split == "train" else (64, 10_000))
        self.num_classes = num_classes
        self.class_names = tuple(f"class {place}" for place in range(num_classes))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        label = index % self.num_classes
        rng = np.random.default_rng(self.offset + index)
        color = np.random.default_rng(label).integers(40, 216, 3)
        stripes = 40 * np.sin(np.arange(32) * (label + 1) / 4)[:, None, None]
        picture = color + stripes + rng.normal(0, 20, (32, 32, 3))
        return Record(picture.clip(0, 255).astype(np.uint8), label, f"{self.name}[{index}]")


def _prepared_folder(path: Path) -> Path | None:
    """The folder with `dataset_info.json` at `path` or one or two levels below it (config, version)."""
    if not path.is_dir():
        return None
    for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json"):
        if found := sorted(path.glob(pattern)):
            return found[-1].parent
    return None


class Tfds:
    """A prepared TFDS data set, pictures still encoded."""

    def __init__(
        self,
        name: str,
        records: Any,
        class_names: tuple[str, ...] | None,
        label_of: Callable[[Any], int | np.ndarray] = lambda record: int(record.get("label", -1)),
    ):
        self.name, self.records, self.class_names, self.label_of = name, records, class_names, label_of

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        return Record(record["image"], self.label_of(record), f"{self.name}[{index}]")

    def answers(self, index: int) -> tuple[int, ...]:
        """All right classes of a picture: ImageNet ReaL has several, or none."""
        record = self.records[index]
        if "real_label" in record:
            return tuple(int(label) for label in record["real_label"])
        return (int(self[index].label),)


def tfds_source(where: str | Path, split: str, data_dir: str | None, labels: Labels | None = None) -> Tfds:
    """A TFDS data set in ArrayRecord files, read without TensorFlow."""
    import tensorflow_datasets as tfds

    try:
        in_folder = isinstance(where, Path)
        builder = tfds.builder_from_directory(where) if in_folder else tfds.builder(where, data_dir=data_dir)
        known = list(builder.info.splits)
    except Exception as error:
        if not in_folder and re.split("[/:]", str(where))[0] not in tfds.list_builders(
            with_community_datasets=False  # which would need TensorFlow
        ):
            raise _missing_folder(Path(where)) from error
        raise UserError(
            f"Expected the prepared TFDS data set {where}, it could not be opened ({first_line(error)[:160]}): set "
            "config.tfds_data_dir, give a folder of pictures, or make one with `vit-jax prepare FOLDER OUT`."
        ) from error
    if not known:
        how = (
            f"`tfds build {where} --file_format=array_record` where TensorFlow is installed (preparing needs it, training "
            "does not)"
        )
        if where == "imagenet2012":
            how = "`vit-jax prepare --imagenet ILSVRC2012_img_train.tar ILSVRC2012_img_val.tar OUT`"
        raise UserError(
            f"Expected {where} to be prepared in {data_dir or 'the default folder of TFDS'}, it is not: run {how}, or set "
            "config.tfds_data_dir."
        )
    check_split(parse_split(split)[0], known)
    features = builder.info.features
    if features is None or "image" not in features:
        raise UserError(f"Expected a TFDS data set with a feature 'image', {where} has none: use another data set.")
    try:
        records = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        form = builder.info.file_format.value
        command = f"vit-jax prepare --tfrecord {builder.data_dir} OUT" if form == "tfrecord" else (
            "tfds build --file_format=array_record"
        )  # fmt: skip
        raise UserError(
            f"Expected {where} in ArrayRecord files, it is in {form}: `{command}` writes it in those."
        ) from error
    return Tfds(f"{builder.info.name} {split}", records, *label_reader(features, labels, str(where)))
