"""The images that a user names for an index, with the paths and labels that its catalogue gives them."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from indistill.data.manifests import SUFFIXES as MANIFESTS
from indistill.data.manifests import find_metadata
from indistill.data.sets import UNLABELLED, FolderSet, ImageSet, open_images
from indistill.errors import DataError
from indistill.retrieval.build import list_labels
from indistill.retrieval.protocol import SearchIndex


@dataclass(frozen=True)
class Source:
    """Images to be in an index: `paths` and `labels` as its catalogue has them, one for each image of the set."""

    images: ImageSet
    paths: Sequence[str]
    labels: Sequence[str | None]


def find_sources(index: SearchIndex, specs: Sequence[str], label: str | None = None) -> list[Source]:
    """Returns the images of folders, image files and other data specs.

    Below the root of a gallery with classes, the class of an image is its first folder there, as a build has it.

    Args:
        index: the index that they are for.
        specs: what the user names.
        label: of all of them, in place of their own.

    Raises:
        DataError: a spec names nothing, or an image comes twice.
    """
    files: dict[Path, list[str]] = defaultdict(list)
    sources = []
    for spec in specs:
        path = Path(spec)
        if path.is_file() and path.suffix not in (*MANIFESTS, ".tar"):
            if path.name not in files[path.parent]:
                files[path.parent].append(path.name)
        else:
            images = open_images(spec)
            sources.append(_describe(index, images, label, by_folder=path.is_dir() and find_metadata(path) is None))
    for folder, names in files.items():
        labels = np.full(len(names), UNLABELLED, dtype=np.int64)
        sources.append(_describe(index, FolderSet(str(folder), folder, names, (), labels), label, by_folder=True))
    seen: set[str] = set()
    for item in (item for source in sources for item in source.paths):
        if item in seen:
            raise DataError(f"{item} is named twice: name each image, or a folder with it, once")
        seen.add(item)
    return sources


def name_item(index: SearchIndex, root: str, name: str) -> str:
    """Returns an image's path as the catalogue of an index has it: relative to the gallery's root, or absolute.

    Args:
        index: the index.
        root: of the image's set.
        name: of the image, relative to that root.
    """
    if root == index.manifest.root:
        return name
    full = PurePath(root, name)
    return (full.relative_to(index.root) if full.is_relative_to(index.root) else full).as_posix()


def _describe(index: SearchIndex, images: ImageSet, label: str | None, *, by_folder: bool) -> Source:
    root = images.root  # which asks the file system
    if root != index.manifest.root and not PurePath(root).is_absolute():
        raise DataError(f"'{root}' is no folder, so that its images have no path of their own: build an index of it")
    paths = [name_item(index, root, name) for name in images.names]
    labels = list_labels(images) if label is None else [label] * len(paths)
    if label is None and by_folder and root != index.manifest.root and index.has_labels():
        parts = [PurePath(path).parts for path in paths]
        labels = [
            part[0] if len(part) > 1 and not PurePath(path).is_absolute() else own
            for path, part, own in zip(paths, parts, labels, strict=True)
        ]
    return Source(images, paths, labels)
