"""Caltech-UCSD Birds 200-2011 from its official folder. Needs no torch.

Reference: Wah, Branson, Welinder, Perona, Belongie, "The Caltech-UCSD Birds-200-2011 Dataset" (CNS-TR-2011-001).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from indistill.data.sets import FolderSet
from indistill.errors import DataError

FOLDER = "CUB_200_2011"
IMAGES, LABELS, SPLIT, CLASSES = "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"
SOURCE = "https://data.caltech.edu/records/65de6-vp158"
FIRST_CLASSES = 100


def open_cub(spec: str, split: str, root: Path) -> FolderSet:
    """Returns the images of a split, in the order of `images.txt`.

    Args:
        spec: the data spec.
        split: `train` or `test` as in `train_test_split.txt` (all 200 classes in both); `first100` or `last100`, all
            images of the classes 1 to 100 or 101 to 200, on which the literature of metric learning trains and tests
            (Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding", section 6); or empty
            for all images.
        root: the data root, with the folder `CUB_200_2011` in it, or that folder.

    Raises:
        DataError: a file is missing or has another form.
    """
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    needed = (IMAGES, LABELS, SPLIT, CLASSES, "images")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"data '{spec}': {', '.join(missing)} of CUB-200-2011 {'is' if len(missing) == 1 else 'are'} not in "
            f"{root / FOLDER}: unpack CUB_200_2011.tgz of {SOURCE} into {root}"
        )
    paths, of_class = _read_table(folder / IMAGES), _read_numbers(folder / LABELS)
    is_train, titles = _read_numbers(folder / SPLIT), _read_table(folder / CLASSES)
    for name, table in ((LABELS, of_class), (SPLIT, is_train)):
        if table.keys() != paths.keys():
            raise DataError(f"data '{spec}': {folder / name} has other image ids than {IMAGES}; unpack it again")
    unknown = set(of_class.values()) - titles.keys()
    if unknown:
        raise DataError(f"data '{spec}': {folder / CLASSES} has no class {min(unknown)}; unpack it again")
    rules: dict[str, Callable[[int], bool]] = {
        "": lambda _: True,
        "train": lambda image: is_train[image] == 1,
        "test": lambda image: is_train[image] == 0,
        "first100": lambda image: of_class[image] <= FIRST_CLASSES,
        "last100": lambda image: of_class[image] > FIRST_CLASSES,
    }
    chosen = [image for image in paths if rules[split](image)]
    if not chosen:
        raise DataError(f"data '{spec}': {folder} has no image of this split")
    present = {of_class[image] for image in chosen} if split.endswith("100") else titles.keys()
    numbers = sorted(present)
    index = {number: i for i, number in enumerate(numbers)}
    labels = np.array([index[of_class[image]] for image in chosen], dtype=np.int64)
    return FolderSet(
        spec, folder / "images", [paths[i] for i in chosen], tuple(titles[number] for number in numbers), labels
    )


def _read_table(path: Path) -> dict[int, str]:
    """Returns the second word of each line by its first, a number."""
    table = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or not words[0].isdecimal():
            raise DataError(f"{path}: line {number} is not a number and a word, as in CUB-200-2011, but {line!r}")
        table[int(words[0])] = words[1]
    return table


def _read_numbers(path: Path) -> dict[int, int]:
    table = _read_table(path)
    wrong = [word for word in table.values() if not word.isdecimal()]
    if wrong:
        raise DataError(f"{path}: two numbers a line are needed, as in CUB-200-2011, not {wrong[0]!r}")
    return {key: int(word) for key, word in table.items()}
