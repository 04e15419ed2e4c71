"""The images that a user names for an index, with the paths and labels that its catalogue gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from indistill.data.manifests import SUFFIXES as MANIFESTS
from indistill.data.manifests import find_metadata
from indistill.data.sets import ImageSet, open_files
from indistill.data.specs import open_images
from indistill.errors import DataError
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.store.build import list_labels


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
    files = []
    sources = []
    for spec in specs:
        path = Path(spec)
        if path.is_file() and path.suffix not in (*MANIFESTS, ".tar"):
            files.append(spec)
        else:
            sources.append(open_source(index, spec, label))
    if files:
        images = open_files(files, "files")
        paths = [name_item(index.manifest.root, images.root, name) for name in images.names]
        own = [None] * len(paths)
        sources.append(
            Source(images, paths, _label_by_folder(index, paths, own) if label is None else [label] * len(paths))
        )
    seen: set[str] = set()
    for item in (item for source in sources for item in source.paths):
        if item in seen:
            raise DataError(f"{item} is named twice: name each image, or a folder with it, once")
        seen.add(item)
    return sources


def name_item(gallery_root: str, root: str, name: str) -> str:
    """Returns an image's path as a catalogue has it: relative to the gallery's root, or absolute outside it.

    Args:
        gallery_root: of the index.
        root: of the image's set.
        name: of the image, relative to that root.
    """
    if root == gallery_root:
        return name
    full = PurePath(root, name)
    return (full.relative_to(gallery_root) if full.is_relative_to(gallery_root) else full).as_posix()


def open_source(index: SearchIndex, spec: str, label: str | None = None) -> Source:
    """Returns the images of a data spec for an index.

    Raises:
        DataError: the spec names nothing, or images without paths.
    """
    path = Path(spec)
    return describe_images(index, open_images(spec), label, by_folder=path.is_dir() and find_metadata(path) is None)


def describe_images(index: SearchIndex, images: ImageSet, label: str | None = None, *, by_folder: bool) -> Source:
    """Returns images with the paths and the labels that the catalogue of an index gives them.

    Args:
        index: the index that they are for.
        images: the images.
        label: of all of them, in place of their own.
        by_folder: whether their own labels are those of folders, so that the gallery's folders go before them.

    Raises:
        DataError: they have no paths.
    """
    root = images.root  # which asks the file system
    if root != index.manifest.root and not PurePath(root).is_absolute():
        raise DataError(f"'{root}' is no folder, so that its images have no path of their own: build an index of it")
    paths = [name_item(index.manifest.root, root, name) for name in images.names]
    labels: Sequence[str | None] = list_labels(images) if label is None else [label] * len(paths)
    if label is None and by_folder and root != index.manifest.root:
        labels = _label_by_folder(index, paths, labels)
    return Source(images, paths, labels)


def _label_by_folder(index: SearchIndex, paths: Sequence[str], own: Sequence[str | None]) -> Sequence[str | None]:
    """Returns the first folder of each path below the root of a gallery with classes, elsewhere its own label."""
    if not index.has_labels():
        return own
    parts = [PurePath(path).parts for path in paths]
    return [
        part[0] if len(part) > 1 and not PurePath(path).is_absolute() else label
        for path, part, label in zip(paths, parts, own, strict=True)
    ]
