"""What becomes of an index, and the generation that it becomes."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from indistill import __version__
from indistill.errors import InputError
from indistill.export.session import Embeddings
from indistill.images import SkippedImage
from indistill.retrieval.index import Index
from indistill.retrieval.index_types.types import add_to_faiss, can_remove, make_faiss, read_faiss, remove_from_faiss
from indistill.retrieval.store.build import name_segment, write_faiss
from indistill.retrieval.store.catalogue import CatalogueItem, NewItem, edit_catalogue
from indistill.retrieval.store.generations import (
    CATALOGUE,
    FAISS,
    MODEL,
    PENDING,
    SKIPPED,
    Manifest,
    commit_generation,
    draft_generation,
    link_files,
    name_generation,
    require_whole,
    write_skipped,
)
from indistill.retrieval.store.segments import Ids, write_segment

MOST_SEGMENTS = 32  # each is a file that a reader holds open
COUNTS = ("added", "changed", "moved", "relabelled", "removed", "unchanged")


@dataclass(frozen=True)
class Changes:
    """What a change did to an index: numbers of images, the files that were passed over, and what it is now.

    `relabelled` are those of the same content with another label, at their place or, counted there too, moved.
    """

    added: int
    changed: int
    moved: int
    relabelled: int
    removed: int
    unchanged: int
    skipped: list[SkippedImage]
    manifest: Manifest


@dataclass
class Edit:
    """What becomes of an index: items that go, items whose description changes, and new ones with vectors (N, D).

    `place` is the new root and source of a gallery that moved as a whole, None where it did not.
    """

    removed: list[int] = field(default_factory=list)
    replaced: list[CatalogueItem] = field(default_factory=list)
    added: list[NewItem] = field(default_factory=list)
    vectors: list[Embeddings] = field(default_factory=list)
    skipped: list[SkippedImage] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    place: tuple[str, str] | None = None

    def changes_anything(self) -> bool:
        """Returns whether the index is another afterwards."""
        return bool(self.removed or self.replaced or self.added or self.place)


def apply_edit(index: Index, edit: Edit) -> Changes:
    """Writes the next generation, unless nothing changes, and tells what happened.

    Raises:
        IndexFolderError: the index is damaged.
        InputError: it cannot be written, or nothing would be left in it.
    """
    manifest = index.manifest
    if edit.changes_anything():
        manifest = _write_next(index, edit)
    if edit.added:
        (index.folder / PENDING).unlink(missing_ok=True)
    return Changes(**edit.counts, skipped=edit.skipped, manifest=manifest)


def _write_next(index: Index, edit: Edit) -> Manifest:
    folder, manifest = index.folder, index.manifest
    before = name_generation(folder, manifest.generation)
    require_whole(folder, manifest, [CATALOGUE, FAISS])  # else damage would get a checksum of its own
    together = len(manifest.segments) >= MOST_SEGMENTS and bool(edit.added)
    with draft_generation(folder) as draft:
        kept = [MODEL] if together else [MODEL, *manifest.segments]
        link_files(before, draft, kept)
        known = {name: index.manifest.files[name] for name in kept}
        write_skipped(draft / SKIPPED, edit.skipped)
        shutil.copyfile(before / CATALOGUE, draft / CATALOGUE)
        with edit_catalogue(draft / CATALOGUE) as catalogue:
            catalogue.remove(edit.removed)
            catalogue.replace(edit.replaced)
            ids = np.array(catalogue.add(edit.added), dtype=np.int64)
            items = catalogue.count()
        if not items:
            raise InputError(f"nothing would be left in the index {folder}; to be rid of it, delete the folder")
        segments = manifest.segments
        if len(ids):
            all_ids, all_vectors = ids, np.stack(edit.vectors)
            if together:
                segments = ()
                stored_ids, stored, _ = index.read_vectors()
                left = ~np.isin(stored_ids, edit.removed)
                all_ids = np.concatenate([stored_ids[left], ids])
                all_vectors = np.concatenate([stored[left], all_vectors])
            segments = (*segments, name_segment(manifest.generation + 1))
            write_segment(draft / segments[-1], all_ids, all_vectors)
        if len(ids) or edit.removed:
            known[FAISS] = _change_faiss(index, np.array(edit.removed, dtype=np.int64), ids, edit, draft / FAISS)
        else:
            link_files(before, draft, [FAISS])
            known[FAISS] = index.manifest.files[FAISS]
        root, source = edit.place or (manifest.root, manifest.source)
        manifest = replace(
            manifest,
            items=items,
            segments=segments,
            skipped=len(edit.skipped),
            version=__version__,
            root=root,
            source=source,
        )
        return commit_generation(draft, manifest, known)


def _change_faiss(index: Index, removed: Ids, added: Ids, edit: Edit, path: Path) -> str:
    """Writes the FAISS index without some ids and with others, and returns its SHA-256; one that cannot remove is made
    again.
    """
    vectors = np.stack(edit.vectors) if edit.vectors else np.empty((0, index.manifest.dimension), dtype=np.float32)
    if len(removed) and not can_remove(index.manifest.factory):
        ids, stored, _ = index.read_vectors()
        kept = ~np.isin(ids, removed)
        ids, vectors = np.concatenate([ids[kept], added]), np.concatenate([stored[kept], vectors])
        return write_faiss(make_faiss(index.manifest.factory, vectors, ids), path)
    changed = read_faiss(name_generation(index.folder, index.manifest.generation) / FAISS)
    if len(removed):
        remove_from_faiss(changed, removed)
    if len(added):
        add_to_faiss(changed, vectors, added)
    return write_faiss(changed, path)
