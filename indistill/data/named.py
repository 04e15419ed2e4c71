"""The data sets that have a name: digits, and those below the data root."""

from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np

from indistill.data.cub import open_cub
from indistill.data.imagenet import open_imagenet
from indistill.data.sets import ArraySet, ImageSet
from indistill.errors import DataError

SPLITS = {
    "digits": ("", "train", "test"),
    "cifar10": ("", "train", "test"),
    "cifar100": ("", "train", "test"),
    "fashionmnist": ("", "train", "test"),
    "imagenet": ("train", "val"),
    "cub200": ("", "train", "test", "first100", "last100"),
}
DIGITS_TEST_EVERY = 4  # every fourth digit of a class is a test image
PARTS = {"": (True, False), "train": (True,), "test": (False,)}  # whether torchvision reads the training part


def open_named(spec: str, root: Path, *, download: bool) -> ImageSet:
    """Returns a data set by its name and a split of `SPLITS`; without a split it is all of the set.

    Args:
        spec: NAME or NAME/SPLIT.
        root: where the data sets lie.
        download: whether one that is not there may be fetched or unpacked.

    Raises:
        DataError: it is not there, or damaged.
    """
    name, _, split = spec.partition("/")
    openers: dict[str, Callable[[], ImageSet]] = {
        "digits": lambda: _open_digits(spec, split),
        "cifar10": lambda: _open_torchvision(spec, "CIFAR10", "CIFAR-10", root, download),
        "cifar100": lambda: _open_torchvision(spec, "CIFAR100", "CIFAR-100", root, download),
        "fashionmnist": lambda: _open_torchvision(spec, "FashionMNIST", "Fashion-MNIST", root, download),
        "imagenet": lambda: open_imagenet(spec, split, root, unpack=download),
        "cub200": lambda: open_cub(spec, split, root),
    }
    return openers[name]()


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


def _open_torchvision(spec: str, reader: str, title: str, root: Path, download: bool) -> ArraySet:
    """Returns a set that torchvision reads into memory; grey images become RGB."""
    from torchvision import datasets

    parts = []
    for train in PARTS[spec.partition("/")[2]]:
        try:
            parts.append(getattr(datasets, reader)(str(root), train=train, download=download))
        except URLError as error:
            raise DataError(f"data '{spec}': {title} could not be fetched ({error})") from error
        except RuntimeError as error:
            hint = (
                "it could not be fetched, or what lies there is damaged: remove it, and try again"
                if download
                else "--download fetches it"
            )
            raise DataError(f"data '{spec}': {title} is not in {root}; {hint}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"data '{spec}': {title} in {root} cannot be read ({error})") from error
    images = np.concatenate([np.asarray(part.data) for part in parts])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    labels = np.concatenate([np.asarray(part.targets, dtype=np.int64) for part in parts])
    return ArraySet(spec, images, [f"{p:05d}" for p in range(len(images))], tuple(parts[0].classes), labels)
