"""Changing an index: images are added, removed, and followed as their folder changes.

An id stands for the content of an image: a file that moves keeps it, a file whose content changes gets another. After
`sync_folder` the index holds what a new build of the folder would, but for the ids.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from indistill.data.sets import FolderSet, ImageSet, SampledSet
from indistill.errors import InputError
from indistill.export.session import Embeddings
from indistill.retrieval.catalogue import CatalogueItem, NewItem
from indistill.retrieval.edit import Changes, Edit, apply_edit
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.journal import Journal, open_journal
from indistill.retrieval.sources import Source, find_sources, name_item
from indistill.retrieval.store import PENDING, lock_index, refuse_shard
from indistill.retrieval.where import parse_where

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def _show_nothing(_: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


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


def add_images(
    folder: Path, specs: Sequence[str], *, label: str | None = None, show: Progress = _show_nothing
) -> Changes:
    """Adds images to an index, or takes in their new content; an image that cannot be read any more leaves it.

    Args:
        folder: the index folder.
        specs: folders, image files or other data specs.
        label: of all of them, in place of their own.
        show: opens a progress bar for a number of images.

    Raises:
        DataError: a spec names nothing.
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: it cannot be written.
    """
    with lock_index(folder), Index(folder) as index:
        sources = find_sources(index, specs, label)
        known = index.catalogue.find_paths([path for source in sources for path in source.paths])
        return _take_in(index, sources, known, (), show)


def sync_folder(folder: Path, images: str | None = None, show: Progress = _show_nothing) -> Changes:
    """Makes an index follow a folder: new, changed, moved and gone images.

    Args:
        folder: the index folder.
        images: the folder, the gallery's root or another; default the root.
        show: opens a progress bar for a number of images.

    Raises:
        DataError: the folder holds no images, perhaps because it is not mounted.
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: it cannot be written, is a shard, or `images` is no folder.
    """
    refuse_shard(folder)
    with lock_index(folder), Index(folder) as index:
        name = images or index.manifest.root
        if not Path(name).is_dir():
            raise InputError(f"{name} is no folder: 'index sync' follows a folder of images")
        (source,) = find_sources(index, [name])
        inside = PurePath(name_item(index, source.images.root, ""))
        known = {item.path: item for item in index.catalogue.list_items() if _is_below(item.path, inside)}
        present = set(source.paths)
        gone = [item for path, item in known.items() if path not in present]
        return _take_in(index, [source], known, gone, show)


def remove_items(folder: Path, selection: Selection) -> Changes:
    """Removes images from an index; the files stay where they are.

    Args:
        folder: the index folder.
        selection: the images.

    Raises:
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: nothing is selected, there is no such image, nothing would be left, or it cannot be written.
    """
    if not (selection.paths or selection.ids or selection.where or selection.missing):
        raise InputError("say what to remove: --path, --id, --missing or --where")
    with lock_index(folder), Index(folder) as index:
        edit = Edit(removed=sorted(_select(index, selection)))
        edit.counts |= {"removed": len(edit.removed), "unchanged": index.manifest.items - len(edit.removed)}
        return apply_edit(index, edit)


def _select(index: Index, selection: Selection) -> set[int]:
    selected = set(index.catalogue.find_items(selection.ids))
    if len(selected) < len(set(selection.ids)):
        raise InputError(f"the index {index.folder} has no id {min(set(selection.ids) - selected)}")
    for name in selection.paths:
        if not name:
            raise InputError("--path is empty: name an image or a folder; a dot stands for all of this folder")
        path = PurePath(name_item(index, str(Path.cwd()), name) if Path(name).exists() else name)
        found = {item.id for item in index.catalogue.list_items() if PurePath(item.path).is_relative_to(path)}
        if not found:
            raise InputError(f"the index {index.folder} has no image {path.as_posix()}, and none below it")
        selected |= found
    if selection.where:
        selected |= set(index.find_ids(parse_where(selection.where)).tolist())
    if selection.missing:
        selected |= set(_find_missing(index))
    return selected


def _find_missing(index: Index) -> list[int]:
    if not index.root.is_dir():
        raise InputError(f"the gallery {index.root} is not there: mount it, or name images by --path, --id or --where")
    return [item.id for item in index.catalogue.list_items() if not (index.root / item.path).is_file()]


def _is_below(path: str, folder: PurePath) -> bool:
    return PurePath(path).is_relative_to(folder) if folder.parts else not os.path.isabs(path)  # noqa: PTH117


class _KnownVectors(Mapping[str, Embeddings]):
    """The vectors (D,) by the SHA-256 of the file, of a journal and of an index."""

    def __init__(self, journal: Journal, index: Index) -> None:
        self._journal, self._index = journal, index

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._journal or self._index.catalogue.find_content(str(sha256)) is not None

    def __getitem__(self, sha256: str) -> Embeddings:
        if sha256 in self._journal:
            return self._journal[sha256]
        found = self._index.catalogue.find_content(sha256)
        if found is None:
            raise KeyError(sha256)
        vector: Embeddings = self._index.find_vectors([found])[0]
        return vector

    def __iter__(self) -> Iterator[str]:
        yield from self._journal
        yield from (item.sha256 for item in self._index.catalogue.list_items() if item.sha256 not in self._journal)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _take_in(
    index: Index,
    sources: Sequence[Source],
    known: Mapping[str, CatalogueItem],
    gone: Sequence[CatalogueItem],
    show: Progress,
) -> Changes:
    """Compares images with the items that have their paths, embeds what is new, and commits what comes of it.

    Args:
        index: the index.
        sources: the images.
        known: the items of these paths, and of those that are gone.
        gone: items whose files are not there any more.
        show: opens a progress bar.
    """
    edit = Edit()
    looked_at = [_find_changed(source, known, edit) for source in sources]
    found = _embed(index, list(zip(sources, looked_at, strict=True)), edit, show) if any(looked_at) else []
    looked = {source.paths[p] for source, positions in zip(sources, looked_at, strict=True) for p in positions}
    _settle(edit, found, [*gone, *(known[path] for path in sorted(looked & known.keys()))])
    return apply_edit(index, edit)


def _embed(
    index: Index, chosen: Sequence[tuple[Source, Sequence[int]]], edit: Edit, show: Progress
) -> list[tuple[NewItem, Embeddings]]:
    """Returns the images at some positions of each source with their vectors (D,); others are put down as skipped."""
    session = open_model(index.folder)
    found: list[tuple[NewItem, Embeddings]] = []
    try:
        with (
            open_journal(index.folder / PENDING, session.sha256, index.manifest.dimension) as journal,
            show(sum(len(positions) for _, positions in chosen)) as advance,
        ):
            vectors_of = _KnownVectors(journal, index)
            for source, positions in chosen:
                images = SampledSet(source.images, positions)
                embedded = embed_files(images, session, advance, known=vectors_of, keep=journal.keep)
                at = {source.images.names[position]: position for position in positions}
                for file, vector in zip(embedded.files, embedded.vectors, strict=True):
                    path, label = source.paths[at[file.name]], source.labels[at[file.name]]
                    found.append((NewItem(path, label, file.sha256, file.size_bytes, file.modified_ns), vector))
                edit.skipped += embedded.skipped
    except OSError as error:
        raise InputError(f"the index {index.folder} cannot be written: {error.strerror}") from error
    return found


def _find_changed(source: Source, known: Mapping[str, CatalogueItem], edit: Edit) -> list[int]:
    """Returns the positions of images that may have changed, and puts those that only have another label into `edit`.

    A file whose size and time of change are the item's is taken for unchanged.
    """
    positions = []
    for position, (path, label) in enumerate(zip(source.paths, source.labels, strict=True)):
        item = known.get(path)
        if item is None or not _is_unchanged(source.images, position, item):
            positions.append(position)
        else:
            edit.counts["unchanged"] += 1
            if item.label != label:
                edit.replaced.append(replace(item, label=label))
    return positions


def _is_unchanged(images: ImageSet, position: int, item: CatalogueItem) -> bool:
    if not isinstance(images, FolderSet):
        return False
    try:
        stat = os.stat(f"{images.folder}/{images.names[position]}")  # noqa: PTH116 - half the time of a Path
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (item.size_bytes, item.modified_ns)


def _settle(edit: Edit, found: Sequence[tuple[NewItem, Embeddings]], displaced: Sequence[CatalogueItem]) -> None:
    """Decides what becomes of images that were read, and of the items whose files may hold something else now.

    An image with the content of such an item is that item, at its own path first, then at another: it has moved.
    """
    left = {item.path: item for item in displaced}
    places: dict[str, list[CatalogueItem]] = defaultdict(list)
    new: list[tuple[NewItem, Embeddings]] = []
    for image, vector in found:
        item = left.get(image.path)
        if item is not None and item.sha256 == image.sha256:
            edit.counts["unchanged"] += 1
            edit.replaced.append(CatalogueItem(item.id, **vars(image)))
            del left[image.path]
        else:
            new.append((image, vector))
    for item in left.values():
        places[item.sha256].append(item)
    for image, vector in new:
        if places[image.sha256]:
            item = places[image.sha256].pop(0)
            edit.counts["moved"] += 1
            edit.replaced.append(CatalogueItem(item.id, **vars(image)))
        else:
            edit.counts["changed" if image.path in left else "added"] += 1
            edit.added.append(image)
            edit.vectors.append(vector)
    replaced = {image.path for image in edit.added}
    for item in (item for items in places.values() for item in items):
        edit.removed.append(item.id)
        edit.counts["removed"] += item.path not in replaced  # else its file has changed
