"""Image sets: what every form of data becomes, and the images of a folder. Needs no torch."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.errors import DataError
from indistill.images import decode_image, list_images, measure_file

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
UNLABELLED = -1


@dataclass(frozen=True)
class StoredImage:
    """An image as it is stored: an encoded file, and when that was changed (nanoseconds; 0 where it never is)."""

    content: bytes
    modified_ns: int


def fetch_file(path: Path) -> StoredImage:
    """Returns an image file. Raises DataError where it is none that can be read whole, OSError where there is none."""
    modified_ns = measure_file(path).st_mtime_ns  # before it is read: what changes meanwhile is seen as changed
    return StoredImage(path.read_bytes(), modified_ns)


class ImageSet(Protocol):
    """Images in a fixed order, with or without classes.

    Attributes:
        name: the data spec.
        root: the folder that the names are relative to, or the data spec where they are no paths.
        names: of each image, without repetition: its path relative to the root, or a number.
        classes: the class names, sorted; empty where there are no labels.
        labels: (N,) int64, an index into `classes`, or -1.
    """

    @property
    def name(self) -> str:
        """The data spec."""

    @property
    def root(self) -> str:
        """What the names are relative to, or the data spec."""

    @property
    def names(self) -> Sequence[str]:
        """Of each image, without repetition."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted; empty where there are no labels."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), an index into `classes`, or -1."""

    def read(self, position: int) -> Image.Image:
        """Returns the RGB image at a position. Raises DataError with the reason where it cannot be read."""

    def fetch(self, position: int) -> StoredImage:
        """Returns the stored form of the image at a position. Raises DataError or OSError where there is none."""


@dataclass(frozen=True)
class FolderSet:
    """The images below a folder; the classes are its sub-folders, if no image lies outside them."""

    name: str
    folder: Path
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        """The folder, resolved."""
        return str(self.folder.resolve())

    def read(self, position: int) -> Image.Image:
        """Returns the decoded file."""
        return decode_image(self.folder / self.names[position])

    def fetch(self, position: int) -> StoredImage:
        """Returns the file."""
        return fetch_file(self.folder / self.names[position])


@dataclass(frozen=True)
class ArraySet:
    """Images in memory, (N, H, W, 3) uint8."""

    name: str
    images: NDArray[np.uint8]
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        """The data spec: the names are no paths."""
        return self.name

    def read(self, position: int) -> Image.Image:
        """Returns the image."""
        return Image.fromarray(self.images[position])

    def fetch(self, position: int) -> StoredImage:
        """Returns the image as PPM, whose bytes are the same on every machine."""
        stream = io.BytesIO()
        self.read(position).save(stream, format="PPM")
        return StoredImage(stream.getvalue(), 0)


@dataclass(frozen=True)
class SampledSet:
    """Some images of another set, in its order."""

    images: ImageSet
    positions: Sequence[int]

    @property
    def name(self) -> str:
        """The data spec of the other set."""
        return self.images.name

    @property
    def root(self) -> str:
        """That of the other set."""
        return self.images.root

    @property
    def names(self) -> Sequence[str]:
        """Of the images of the sample."""
        return [self.images.names[p] for p in self.positions]

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes of the other set, also those without an image here."""
        return self.images.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,), an index into `classes`, or -1."""
        return self.images.labels[list(self.positions)]

    def read(self, position: int) -> Image.Image:
        """Returns the image at a position of the sample."""
        return self.images.read(self.positions[position])

    def fetch(self, position: int) -> StoredImage:
        """Returns the stored form of the image at a position of the sample."""
        return self.images.fetch(self.positions[position])


def sample_images(images: ImageSet, count: int) -> SampledSet:
    """Returns `count` images spread evenly over a set, or all of them where there are fewer."""
    total = len(images.names)
    return SampledSet(images, [i * total // min(count, total) for i in range(min(count, total))])


def open_files(paths: Sequence[str], name: str) -> FolderSet:
    """Returns image files, each once, in their order; the set's folder is the deepest that holds all of them.

    An image that does not exist is skipped when it is read, as any that is damaged. The classes are as of a folder.

    Args:
        paths: of one image or more.
        name: of the set.
    """
    folder, names = place_files(list(dict.fromkeys(locate_files(paths))))
    return FolderSet(name, folder, names, *find_classes(names))


def locate_files(paths: Sequence[str]) -> list[str]:
    """Returns where files lie, the same for all spellings of a path: absolute, without `..` and links to folders.

    A link to a file is a file of its own.
    """
    folders: dict[str, str] = {}
    located = []
    for path in paths:
        folder, name = os.path.split(path.rstrip("/") or "/")
        if name in ("", ".", ".."):
            folder, name = path, ""
        if folder not in folders:
            try:
                folders[folder] = os.path.realpath(folder)
            except ValueError:  # no file system has such a name
                folders[folder] = os.path.abspath(folder)  # noqa: PTH100
        located.append(os.path.join(folders[folder], name) if name else folders[folder])  # noqa: PTH118
    return located


def place_files(located: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns the deepest folder that holds all of some located files, and their paths relative to it."""
    folder = os.path.commonpath({os.path.dirname(path) for path in located})  # noqa: PTH120
    start = len(folder.rstrip("/")) + 1
    return Path(folder), [path[start:] or "." for path in located]


def open_folder(folder: Path, name: str) -> FolderSet:
    """Returns the images below a folder, with the first sub-folder of each as its class.

    Raises:
        DataError: the folder holds no images, or its sub-folders are splits.
    """
    names = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    refuse_splits(names, str(folder))
    return FolderSet(name, folder, names, *find_classes(names))


def refuse_splits(names: Sequence[str], folder: str) -> None:
    """Raises DataError where the first folders of paths are splits, not classes."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    if len(tops) > 1 and tops <= set(SPLIT_FOLDERS):
        splits = sorted(tops)
        raise DataError(f"{folder} holds the splits {', '.join(splits)}: name one, as in {folder}/{splits[0]}")


def find_classes(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Returns the first folders of paths, and the one of each (N,); no classes where a path has no folder."""
    tops = [name.partition("/")[0] if "/" in name else "" for name in names]
    classes = () if "" in tops else tuple(sorted(set(tops)))
    index = {label: i for i, label in enumerate(classes)}
    return classes, np.array([index[top] if classes else UNLABELLED for top in tops], dtype=np.int64)


def number_labels(labels: Sequence[str | None]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Returns the class names, in the order of numbers where all are numbers, and the class of each label or -1."""
    found = {label for label in labels if label is not None}
    numeric = all(label.isascii() and label.isdecimal() for label in found)
    digits = {label: label.lstrip("0") if numeric else "" for label in found}  # of any length, where int() has a limit
    classes = tuple(sorted(found, key=lambda label: (len(digits[label]), digits[label], label)))
    index = {label: i for i, label in enumerate(classes)}
    return classes, np.array([UNLABELLED if label is None else index[label] for label in labels], dtype=np.int64)


def require_labels(images: ImageSet, purpose: str) -> None:
    """Raises DataError unless the images have at least two classes, and each image has one."""
    if len(images.classes) < 2:
        found = "one class" if images.classes else "no classes"
        raise DataError(
            f"data '{images.name}' has {found}; {purpose} needs a sub-folder for each of two or more classes, or as "
            "many labels in the manifest, shards or data set"
        )
    missing = np.flatnonzero(images.labels == UNLABELLED)
    if len(missing):
        raise DataError(
            f"data '{images.name}': {len(missing)} of {len(images.names)} images have no label, the first is "
            f"{images.names[missing[0]]}; {purpose} needs one for each"
        )
