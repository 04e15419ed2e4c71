"""The images of an index that a user names to be rid of them."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from indistill.data.huggingface import is_saved_dataset
from indistill.data.sets import locate_files
from indistill.data.specs import open_images
from indistill.data.urls import is_url
from indistill.errors import InputError
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.where import parse_where


@dataclass(frozen=True)
class Selection:
    """Images to remove: what any of these names.

    Attributes:
        paths: of images, or of folders with all below them; as the catalogue has them, or where they lie.
        ids: of images.
        where: a condition, as `parse_where` reads it.
        missing: images whose files are not there any more.
    """

    paths: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    where: str | None = None
    missing: bool = False


def select_items(index: SearchIndex, selection: Selection) -> set[int]:
    """Returns the ids of the images that are selected.

    Raises:
        DataError: a tar shard or a saved data set, in which images are looked for, is damaged.
        IndexFolderError: the index is damaged.
        InputError: nothing is selected, or there is no such image.
    """
    if not (selection.paths or selection.ids or selection.where or selection.missing):
        raise InputError("say what to remove: --path, --id, --missing or --where")
    selected = set(index.find_items(selection.ids))
    if len(selected) < len(set(selection.ids)):
        raise InputError(f"the index {index.name} has no id {min(set(selection.ids) - selected)}")
    selected |= _find_paths(index, selection.paths)
    if selection.where:
        selected |= set(index.find_ids(parse_where(selection.where)).tolist())
    if selection.missing:
        selected |= _find_missing(index)
    return selected


def _find_paths(index: SearchIndex, names: Sequence[str]) -> set[int]:
    """Returns the ids of images that have one of some paths, or lie below it."""
    if "" in names:
        raise InputError("--path is empty: name an image or a folder; a dot stands for all of this folder")
    places = {name: _list_places(index, name) for name in names}
    wanted = {place for found in places.values() for place in found}
    ids: dict[str, list[int]] = defaultdict(list)
    above: dict[str, set[str]] = {}
    for number, path in _list_paths(index) if wanted else ():
        folder = os.path.dirname(path)  # noqa: PTH120
        if folder not in above:
            above[folder] = wanted.intersection(_list_folders(folder))
        for place in above[folder]:
            ids[place].append(number)
        if path in wanted:
            ids[path].append(number)
    selected: set[int] = set()
    for name, found in places.items():
        there = [place for place in found if ids[place]]
        if not there:
            raise InputError(f"the index {index.name} has no image {name}, and none below it")
        selected.update(ids[there[0]])
    return selected


def _list_places(index: SearchIndex, name: str) -> list[str]:
    """Returns where an image or a folder lies that a user names, absolute; of a file that is gone, in either sense.

    In an index of an address a name is first of what lies below that.
    """
    root = index.manifest.root
    if is_url(name):
        return [name.rstrip("/")]
    path = Path(name)
    place = str(path.resolve()) if path.is_dir() else locate_files([name])[0]
    if is_url(root):
        return [place] if path.is_absolute() else [f"{root}/{os.path.normpath(name)}", place]
    if os.path.lexists(name):
        return [place]
    return [os.path.normpath(os.path.join(root, name)), place]  # noqa: PTH118


def _list_paths(index: SearchIndex) -> list[tuple[int, str]]:
    """Returns id and absolute path of all images."""
    root = index.manifest.root
    return [(item.id, os.path.join(root, item.path)) for item in index.list_items()]  # noqa: PTH118


def _list_folders(folder: str) -> list[str]:
    """Returns a folder and all above it; of an address, those that are addresses."""
    if is_url(folder):
        parts = folder.split("/")
        return ["/".join(parts[:end]) for end in range(len(parts), 2, -1) if parts[end - 1]]
    return [folder, *map(str, PurePath(folder).parents)]


def _find_missing(index: SearchIndex) -> set[int]:
    """Returns the ids of images whose files are gone, or that are not in their shard or saved data set any more."""
    if is_url(index.manifest.root):
        raise InputError(
            f"the gallery {index.manifest.root} is an address, where --missing does not look: name images by --path, "
            "--id or --where, or build the index again"
        )
    if not index.root.is_dir():
        raise InputError(
            f"the gallery {index.root} is not there: mount it, or name images by --path, --id or "
            "--where; if it has moved as a whole, 'index sync INDEX IMAGES --moved' tells where it is now"
        )
    containers: dict[str, str | None] = {}  # by folder
    contents: dict[str, set[str]] = {}  # by container
    missing = set()
    for number, path in _list_paths(index):
        if os.path.isfile(path):  # noqa: PTH113
            continue
        folder = os.path.dirname(path)  # noqa: PTH120
        if folder not in containers:
            containers[folder] = next(filter(_is_container, _list_folders(folder)), None)
        container = containers[folder]
        if container is not None and container not in contents:
            images = open_images(container)
            contents[container] = {str(PurePath(images.root, name)) for name in images.names}
        if container is None or path not in contents[container]:
            missing.add(number)
    return missing


def _is_container(path: str) -> bool:
    """Returns whether a path is that of a tar shard, or of a saved data set."""
    return (path.endswith(".tar") and Path(path).is_file()) or (Path(path).is_dir() and is_saved_dataset(Path(path)))
