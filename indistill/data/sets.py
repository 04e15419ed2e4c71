"""Data specs and the image sets that they name. Needs no torch, but for the torchvision data sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.errors import DataError, suggest_nearest
from indistill.images import decode_image, list_images

SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
NAMED_SETS = ("digits", "cifar10")
DIGITS_TEST_EVERY = 4  # every fourth digit of a class is a test image
UNLABELLED = -1


class ImageSet(Protocol):
    """Images in a fixed order, with or without classes.

    Attributes:
        name: the data spec.
        names: of each image: its path relative to the folder, or a number.
        classes: the class names, sorted; empty where there are no labels.
        labels: (N,) int64, an index into `classes`, or -1.
    """

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...

    def read(self, position: int) -> Image.Image:
        """Returns the RGB image at a position. Raises DataError with the reason where it cannot be read."""


@dataclass(frozen=True)
class FolderSet:
    """The images below a folder; the classes are its sub-folders, if no image lies outside them."""

    name: str
    folder: Path
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def read(self, position: int) -> Image.Image:
        """Returns the decoded file."""
        return decode_image(self.folder / self.names[position])


@dataclass(frozen=True)
class ArraySet:
    """Images in memory, (N, H, W, 3) uint8."""

    name: str
    images: NDArray[np.uint8]
    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def read(self, position: int) -> Image.Image:
        """Returns the image."""
        return Image.fromarray(self.images[position])


@dataclass(frozen=True)
class SampledSet:
    """Some images of another set, in its order."""

    images: ImageSet
    positions: Sequence[int]

    @property
    def name(self) -> str:
        return self.images.name

    @property
    def names(self) -> Sequence[str]:
        return [self.images.names[p] for p in self.positions]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels[list(self.positions)]

    def read(self, position: int) -> Image.Image:
        """Returns the image at a position of the sample."""
        return self.images.read(self.positions[position])


def locate_data(spec: str) -> str:
    """Returns a data spec that means the same from any folder."""
    return str(Path(spec).resolve()) if Path(spec).exists() else spec


def sample_images(images: ImageSet, count: int) -> SampledSet:
    """Returns `count` images spread evenly over a set, or all of them where there are fewer."""
    total = len(images.names)
    return SampledSet(images, [i * total // min(count, total) for i in range(min(count, total))])


def open_images(spec: str, *, root: Path | None = None, download: bool = False) -> ImageSet:
    """Returns the image set that a data spec names: a folder, `digits/SPLIT` or `cifar10/SPLIT`.

    A folder that exists goes before a name. The split is `train` or `test`, or left out for both (`digits` alone).

    Args:
        spec: the data spec.
        root: where torchvision's data sets lie; default `~/.cache/indistill`.
        download: whether a data set that is not there may be fetched.

    Raises:
        DataError: the spec names nothing, or a folder that holds no images or several splits.
    """
    if Path(spec).exists():
        return open_folder(Path(spec), spec)
    name, _, split = spec.partition("/")
    if name not in NAMED_SETS:
        raise DataError(
            f"data '{spec}': there is no such folder, and no data set of this name ({', '.join(NAMED_SETS)})."
            + suggest_nearest(name, NAMED_SETS)
        )
    if split not in ("", "train", "test"):
        raise DataError(f"data '{spec}': {name} has the splits train and test")
    if name == "digits":
        return _open_digits(spec, split)
    return _open_cifar10(spec, split, root or Path("~/.cache/indistill").expanduser(), download)


def open_folder(folder: Path, name: str) -> FolderSet:
    """Returns the images below a folder, with the first sub-folder of each as its class.

    Raises:
        DataError: the folder holds no images, or its sub-folders are splits.
    """
    paths = [path.relative_to(folder) for path in list_images(folder)]
    tops = {path.parts[0] if len(path.parts) > 1 else "" for path in paths}
    if len(tops) > 1 and tops <= set(SPLIT_FOLDERS):
        raise DataError(
            f"{folder} holds the splits {', '.join(sorted(tops))}: name one, as in {folder / sorted(tops)[0]}"
        )
    classes = () if "" in tops else tuple(sorted(tops))
    index = {label: i for i, label in enumerate(classes)}
    labels = [index[path.parts[0]] if classes else UNLABELLED for path in paths]
    return FolderSet(name, folder, [path.as_posix() for path in paths], classes, np.array(labels, dtype=np.int64))


def require_labels(images: ImageSet, purpose: str) -> None:
    """Raises DataError unless the images have at least two classes."""
    if len(images.classes) < 2:
        found = "one class" if images.classes else "no classes"
        raise DataError(
            f"data '{images.name}' has {found}; {purpose} needs a sub-folder for each of two or more classes"
        )


def _open_digits(spec: str, split: str) -> ArraySet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, 8x8 pixels
    labels = digits.target.astype(np.int64)
    occurrence = np.zeros(len(labels), dtype=np.int64)
    for label in range(10):
        members = labels == label
        occurrence[members] = np.arange(members.sum())
    is_test = occurrence % DIGITS_TEST_EVERY == DIGITS_TEST_EVERY - 1
    chosen = {"": np.ones_like(is_test), "train": ~is_test, "test": is_test}[split]
    positions = np.flatnonzero(chosen)
    rgb = np.repeat(grey[positions][..., None], 3, axis=3)
    return ArraySet(spec, rgb, [f"{p:05d}" for p in positions], tuple("0123456789"), labels[positions])


def _open_cifar10(spec: str, split: str, root: Path, download: bool) -> ArraySet:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in {"": (True, False), "train": (True,), "test": (False,)}[split]:
        try:
            parts.append(CIFAR10(str(root), train=train, download=download))
        except RuntimeError as error:
            hint = "what lies there is damaged: remove it, and try again" if download else "--download fetches it"
            raise DataError(f"data '{spec}': CIFAR-10 is not in {root}; {hint}") from error
        except OSError as error:
            raise DataError(f"data '{spec}': CIFAR-10 could not be fetched ({error})") from error
    images = np.concatenate([part.data for part in parts])
    labels = np.concatenate([np.array(part.targets, dtype=np.int64) for part in parts])
    return ArraySet(spec, images, [f"{p:05d}" for p in range(len(images))], tuple(parts[0].classes), labels)
