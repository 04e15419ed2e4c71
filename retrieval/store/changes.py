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

from indistill.data.manifests import SUFFIXES as MANIFESTS
from indistill.data.sets import FolderSet, ImageSet, SampledSet
from indistill.data.shards import is_shard_pattern
from indistill.data.specs import locate_data, open_images
from indistill.data.urls import is_url
from indistill.errors import InputError, describe_os_error
from indistill.export.session import Embeddings
from indistill.retrieval.embed import embed_files, skip_name
from indistill.retrieval.opening import Location, apply_edit, change_index
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.store.build import list_labels
from indistill.retrieval.store.catalogue import CatalogueItem, NewItem, is_text
from indistill.retrieval.store.edit import Changes, Edit
from indistill.retrieval.store.generations import NO_SOURCE, PENDING, refuse_shard
from indistill.retrieval.store.journal import Journal, explain_interruption, open_journal
from indistill.retrieval.store.selection import Selection, select_items
from indistill.retrieval.store.sources import Source, describe_images, find_sources, name_item, open_source

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


def _show_nothing(_: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def add_images(
    folder: Location,
    specs: Sequence[str],
    *,
    label: str | None = None,
    show: Progress = _show_nothing,
    workers: int | None = None,
) -> Changes:
    """Adds images to an index, or takes in their new content; an image that cannot be read any more leaves it.

    Args:
        folder: the index folder, or a collection of Milvus.
        specs: folders, image files or other data specs.
        label: of all of them, in place of their own; `sync_folder` goes back to their own where it follows them.
        show: opens a progress bar for a number of images.
        workers: threads that decode images; default one for each core.

    Raises:
        DataError: a spec names nothing.
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: it cannot be written.
    """
    with change_index(folder) as index:
        sources = find_sources(index, specs, label)
        known = index.find_paths([path for source in sources for path in source.paths])
        return _take_in(sources, known, (), _Embedder(index, show, workers))


def sync_folder(
    folder: Location,
    images: str | ImageSet | None = None,
    *,
    moved: bool = False,
    show: Progress = _show_nothing,
    workers: int | None = None,
) -> Changes:
    """Makes an index follow a folder, a manifest or shards: new, changed, moved, relabelled and gone images.

    Of the gallery's own source, all images below the gallery's root that it does not name are gone; of another one,
    those below its folder.

    Args:
        folder: the index folder, or a collection of Milvus.
        images: what to follow; default what the index was built from.
        moved: `images` is the gallery, which lies elsewhere now as a whole: its root becomes that place, and ids stay.
        show: opens a progress bar for a number of images.
        workers: threads that decode images; default one for each core.

    Raises:
        DataError: there are no images, perhaps because a folder is not mounted.
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: it cannot be written, is a shard, `images` cannot be followed, or are not the gallery that moved.
    """
    if isinstance(folder, Path):
        refuse_shard(folder)
    with change_index(folder) as index:
        source, own = (_open_moved(images), True) if moved else _open_followed(index, images)
        root = source.images.root
        inside = PurePath() if own else PurePath(name_item(index.manifest.root, root, ""))
        below = {item.path: item for item in index.list_items() if _is_below(item.path, inside)}
        present = set(source.paths)
        gone = [item for path, item in below.items() if path not in present]
        known = below | index.find_paths([path for path in source.paths if path not in below])
        edit = Edit()
        if moved:
            _require_moved(index, root, len(below), len(below) - len(gone))
            edit.place = root, locate_data(images) if isinstance(images, str) else NO_SOURCE
        elif not own and not below and PurePath(index.manifest.root).is_absolute() and not index.root.is_dir():
            raise InputError(
                f"the gallery {index.root} is not there: if it has moved to {root} as a whole, add --moved; images "
                "from elsewhere are added by 'index add'"
            )
        return _take_in([source], known, gone, _Embedder(index, show, workers), edit)


def _open_followed(index: SearchIndex, images: str | ImageSet | None) -> tuple[Source, bool]:
    """Returns the images that `sync` follows, and whether they are what the index was built from."""
    root, source = index.manifest.root, index.manifest.source
    if images is None and source == NO_SOURCE:
        raise InputError(
            f"the index {index.name} has paths from standard input, or from several lists: give them all to 'index "
            "sync INDEX -', or name a folder"
        )
    if images is not None and not isinstance(images, str):
        by_folder = images.root != root
        return describe_images(index, images, by_folder=by_folder), source == NO_SOURCE or not by_folder
    spec = images or source or root
    if images is None and PurePath(spec).is_absolute() and not is_shard_pattern(spec) and not Path(spec).exists():
        raise InputError(
            f"the gallery {spec} is not there: mount it; if it has moved as a whole, give 'index sync INDEX IMAGES "
            "--moved' with its place now as IMAGES"
        )
    _require_followed(spec)
    followed = open_source(index, spec)
    return followed, locate_data(spec) == (source or root)


def _open_moved(images: str | ImageSet | None) -> Source:
    """Returns the images of a gallery at its new place, with the paths and labels that a new build gives them."""
    if images is None:
        raise InputError("--moved: name the place where the gallery is now")
    if isinstance(images, str):
        _require_followed(images)
        images = open_images(images)
    if not PurePath(images.root).is_absolute():
        raise InputError(f"--moved: '{images.root}' is no folder, to which a gallery could move")
    return Source(images, images.names, list_labels(images))


def _require_moved(index: SearchIndex, root: str, items: int, found: int) -> None:
    """Raises InputError unless a folder has half of a gallery's images at their paths, and none is in the index twice.

    Args:
        index: of the gallery.
        root: the folder.
        items: number of the gallery's images in the index.
        found: of these, how many have their paths in the folder.
    """
    _require_half(root, index, found, items, "at their paths")
    paths = (item.path for item in index.list_items() if os.path.isabs(item.path))  # noqa: PTH117
    twice = sum(_is_below(path, PurePath(root)) for path in paths)
    if twice:
        raise InputError(
            f"the index {index.name} has {twice:,} images of {root} as images from elsewhere: give 'index remove INDEX "
            f"--path {root}' first"
        )


def _require_half(root: str, index: SearchIndex, found: int, items: int, how: str) -> None:
    if 2 * found < items:
        raise InputError(
            f"{root} has {found:,} of the {items:,} images of the gallery {index.root} {how}, fewer than half: "
            "it is not where the gallery moved to as a whole"
        )


def _require_followed(spec: str) -> None:
    if is_url(spec):
        raise InputError(f"{spec} is an address, which 'index sync' does not follow: build the index again")
    path = Path(spec)
    if not (path.is_dir() or (path.is_file() and path.suffix in (*MANIFESTS, ".tar")) or is_shard_pattern(spec)):
        raise InputError(f"{spec} is no folder, manifest or tar shard: 'index sync' follows one of these")


def remove_items(folder: Location, selection: Selection) -> Changes:
    """Removes images from an index; the files stay where they are.

    Args:
        folder: the index folder, or a collection of Milvus.
        selection: the images.

    Raises:
        DataError: a tar shard or a saved data set, in which images are looked for, is damaged.
        IndexFolderError: the index cannot be used, or another process changes it.
        InputError: nothing is selected, there is no such image, nothing would be left, or it cannot be written.
    """
    with change_index(folder) as index:
        edit = Edit(removed=sorted(select_items(index, selection)))
        edit.counts |= {"removed": len(edit.removed), "unchanged": index.manifest.items - len(edit.removed)}
        return apply_edit(index, edit)


def _is_below(path: str, folder: PurePath) -> bool:
    return PurePath(path).is_relative_to(folder) if folder.parts else not os.path.isabs(path)  # noqa: PTH117


class _KnownVectors(Mapping[str, Embeddings]):
    """The vectors (D,) by the SHA-256 of the file, of a journal and of an index."""

    def __init__(self, journal: Journal, index: SearchIndex) -> None:
        self._journal, self._index = journal, index

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._journal or self._index.find_content(str(sha256)) is not None

    def __getitem__(self, sha256: str) -> Embeddings:
        if sha256 in self._journal:
            return self._journal[sha256]
        found = self._index.find_content(sha256)
        if found is None:
            raise KeyError(sha256)
        vector: Embeddings = self._index.find_vectors([found])[0]
        return vector

    def __iter__(self) -> Iterator[str]:
        yield from self._journal
        yield from (item.sha256 for item in self._index.list_items() if item.sha256 not in self._journal)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _Embedder:
    """How images are embedded for an index: `show` opens a progress bar, `workers` threads decode."""

    index: SearchIndex
    show: Progress
    workers: int | None

    def embed(self, chosen: Sequence[tuple[Source, Sequence[int]]], edit: Edit) -> list[tuple[NewItem, Embeddings]]:
        """Returns the images at some positions of each source with their vectors (D,); others go down as skipped."""
        index = self.index
        session = index.open_model()
        found: list[tuple[NewItem, Embeddings]] = []
        try:
            with (
                open_journal(index.work / PENDING, session.sha256, index.manifest.dimension) as journal,
                self.show(sum(len(positions) for _, positions in chosen)) as advance,
            ):
                vectors_of = _KnownVectors(journal, index)
                for source, positions in chosen:
                    images = SampledSet(source.images, positions)
                    embedded = embed_files(
                        images, session, advance, known=vectors_of, keep=journal.keep, workers=self.workers
                    )
                    at = {source.images.names[position]: position for position in positions}
                    for file, vector in zip(embedded.files, embedded.vectors, strict=True):
                        path, label = source.paths[at[file.name]], source.labels[at[file.name]]
                        found.append((NewItem(path, label, file.sha256, file.size_bytes, file.modified_ns), vector))
                    edit.skipped += embedded.skipped
        except OSError as error:
            raise InputError(f"the index {index.name} cannot be written: {describe_os_error(error)}") from error
        return found


def _take_in(
    sources: Sequence[Source],
    known: Mapping[str, CatalogueItem],
    gone: Sequence[CatalogueItem],
    embedder: _Embedder,
    edit: Edit | None = None,
) -> Changes:
    """Compares images with the items that have their paths, embeds what is new, and commits what comes of it.

    Args:
        sources: the images.
        known: the items of these paths, and of those that are gone.
        gone: items whose files are not there any more.
        embedder: of the index.
        edit: what else becomes of the index.
    """
    edit = edit or Edit()
    with explain_interruption(embedder.index.work / PENDING):
        looked_at = [_find_changed(source, known, edit) for source in sources]
        found = embedder.embed(list(zip(sources, looked_at, strict=True)), edit) if any(looked_at) else []
        looked = {source.paths[p] for source, positions in zip(sources, looked_at, strict=True) for p in positions}
        _settle(edit, found, [*gone, *(known[path] for path in sorted(looked & known.keys()))])
        if edit.place is not None:  # other images may have the same names
            _require_half(edit.place[0], embedder.index, len(known) - len(edit.removed), len(known), "unchanged")
        return apply_edit(embedder.index, edit)


def _find_changed(source: Source, known: Mapping[str, CatalogueItem], edit: Edit) -> list[int]:
    """Returns the positions of images that may have changed, and puts those that only have another label into `edit`.

    A file whose size and time of change are the item's is taken for unchanged.
    """
    positions = []
    for position, (path, label) in enumerate(zip(source.paths, source.labels, strict=True)):
        item = known.get(path)
        if not is_text(path):
            edit.skipped.append(skip_name(path))
        elif item is None or not _is_unchanged(source.images, position, item):
            positions.append(position)
        else:
            edit.counts["unchanged" if item.label == label else "relabelled"] += 1
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
            edit.counts["unchanged" if item.label == image.label else "relabelled"] += 1
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
            edit.counts["relabelled"] += item.label != image.label
            edit.replaced.append(CatalogueItem(item.id, **vars(image)))
        else:
            edit.counts["changed" if image.path in left else "added"] += 1
            edit.added.append(image)
            edit.vectors.append(vector)
    replaced = {image.path for image in edit.added}
    for item in (item for items in places.values() for item in items):
        edit.removed.append(item.id)
        edit.counts["removed"] += item.path not in replaced  # else its file has changed
