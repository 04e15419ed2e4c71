"""Folders that the Hugging Face `datasets` package wrote by `save_to_disk`. Needs no torch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.data.sets import StoredImage, fetch_file, number_labels
from indistill.errors import DataError, escape_text
from indistill.images import decode_image

STATE, SPLITS = "state.json", "dataset_dict.json"
LABEL_COLUMNS = ("label", "labels", "fine_label")


# These errors have no common class.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
)


class Table(Protocol):
    """The part of `datasets.Dataset` that is used: rows by position."""

    def __getitem__(self, position: int, /) -> Mapping[str, Mapping[str, object]]: ...

    def select(self, indices: range) -> "Table":
        """Returns the rows at some positions."""


@dataclass(frozen=True)
class SavedSet:
    """The images in one column of a saved data set; they stay on disk, and are read through a memory map."""

    name: str
    folder: Path
    table: Table
    column: str
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        """The folder, resolved."""
        return str(self.folder.resolve())

    def read(self, position: int) -> Image.Image:
        """Returns the decoded image."""
        return decode_image(self._find(position))

    def fetch(self, position: int) -> StoredImage:
        """Returns the encoded image."""
        source = self._find(position)
        if isinstance(source, bytes):
            return StoredImage(source, 0)
        return fetch_file(source)

    def _find(self, position: int) -> bytes | Path:
        """Returns the encoded image, or the path where the data set names a file."""
        with _explain_damage("its row cannot be read"):
            cell = self.table[position][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise DataError("no image in this row")
        content = cell["bytes"]
        return content if isinstance(content, bytes) else Path(str(cell["path"]))


@contextmanager
def _explain_damage(what: str) -> Iterator[None]:
    """Raises DataError for whatever the datasets package and pyarrow raise at folders that are not what they were."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"{what} ({' '.join(str(error).split())})") from error


def is_saved_dataset(folder: Path) -> bool:
    """Returns whether a folder was written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / "dataset_info.json").is_file())


def open_saved_dataset(folder: Path, name: str) -> SavedSet:
    """Returns the images of a saved data set: of its first column of images, with the labels beside it.

    Args:
        folder: of one split.
        name: the data spec.

    Raises:
        DataError: the `datasets` package is missing, the folder is damaged, holds several splits or no images.
    """
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise DataError(f"{folder} holds the splits {', '.join(splits) or '(none)'}: name one, as in {folder}/SPLIT")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data '{name}' was saved by the Hugging Face datasets package, which is needed to read it: "
            "pip install 'indistill[huggingface]'"
        ) from error
    with _explain_damage(f"data '{name}': the datasets package cannot read it"):
        table = datasets.load_from_disk(str(folder))
        table.data.validate(full=True)  # Arrow would follow a damaged offset out of the file, and end the process
        features = table.features
    column = next((key for key, feature in features.items() if isinstance(feature, datasets.Image)), None)
    if column is None:
        raise DataError(f"data '{name}': no column holds images; there are {', '.join(features) or 'none'}")
    if not len(table):
        raise DataError(f"data '{name}': it has no rows")
    beside = next((key for key in LABEL_COLUMNS if key in features), None)
    labels: list[str | None] = [None] * len(table)
    if beside is not None:
        feature = features[beside]
        titles = feature.names if isinstance(feature, datasets.ClassLabel) else None
        with _explain_damage(f"data '{name}': its column {escape_text(beside)} cannot be read"):
            labels = [_read_label(value, titles) for value in table[beside]]
    classes, numbers = number_labels(labels)
    width = len(str(len(table) - 1))
    names = [f"{position:0{width}d}" for position in range(len(table))]
    with _explain_damage(f"data '{name}': its column {escape_text(str(column))} cannot be read"):
        table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return SavedSet(name, folder, table, column, names, classes, numbers)


def _read_label(value: object, titles: Sequence[str] | None) -> str | None:
    if value is None or value == "":
        return None
    if titles is not None and isinstance(value, int):
        return str(titles[value]) if value >= 0 else None  # -1 stands for no label
    return str(value)
