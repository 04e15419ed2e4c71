"""Looking after an index: is it whole, make it again from its embeddings, make it small, put several into one."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np

from indistill import __version__
from indistill.errors import ExistsError, IndexFolderError, IndistillError, InputError, describe_os_error
from indistill.export.session import Embeddings
from indistill.retrieval.index import Index
from indistill.retrieval.index_types.types import list_ids, make_faiss
from indistill.retrieval.store.build import IndexType, check_index_output, name_segment, write_faiss
from indistill.retrieval.store.catalogue import Catalogue, CatalogueItem, NewItem, edit_catalogue
from indistill.retrieval.store.generations import (
    ATTEMPTS,
    CATALOGUE,
    CURRENT,
    FAISS,
    MANIFEST,
    MODEL,
    NO_SOURCE,
    SKIPPED,
    Manifest,
    commit_generation,
    discard_unfinished,
    draft_generation,
    find_damage,
    is_shard,
    link_files,
    lock_index,
    name_generation,
    read_current,
    read_manifest,
    require_whole,
    write_skipped,
)
from indistill.retrieval.store.segments import Ids, Segments, write_segment
from indistill.retrieval.store.sources import name_item


@dataclass(frozen=True)
class Verification:
    """What is wrong with an index, a line for each; empty where nothing is. `files` and `items` were looked at."""

    problems: tuple[str, ...]
    files: int
    items: int


def verify_index(folder: Path, on_progress: Callable[[int], None] = lambda _: None) -> Verification:
    """Returns what is wrong with the generation in force: a file against its checksum, ids against one another.

    Args:
        folder: the index folder.
        on_progress: called with 1 for each file.

    Raises:
        IndexFolderError: the folder is no index, or its manifest is damaged.
    """
    for _ in range(ATTEMPTS):
        manifest = read_manifest(folder)
        problems = _find_problems(folder, manifest, on_progress)
        if not problems or read_current(folder) == manifest.generation:
            break  # else changes have removed the generation meanwhile
    return Verification(tuple(problems), len(manifest.files), manifest.items)


def _find_problems(folder: Path, manifest: Manifest, on_progress: Callable[[int], None]) -> list[str]:
    problems = []
    for name in manifest.files:
        damage = find_damage(folder, manifest, name)
        if damage is not None:
            problems.append(f"{name} {damage}")
        on_progress(1)
    try:
        there = sorted(path.name for path in name_generation(folder, manifest.generation).iterdir())
    except OSError as error:
        return [*problems, f"generation {manifest.generation} cannot be read: {describe_os_error(error)}"]
    problems += [f"{name} does not belong here" for name in there if name not in {*manifest.files, MANIFEST}]
    return problems or _compare_ids(folder)


def rebuild_index(folder: Path, choose: Callable[[Embeddings], IndexType] | None = None) -> Manifest:
    """Makes the FAISS index again from the stored embeddings, also where it is damaged or missing.

    Args:
        folder: the index folder.
        choose: returns the type of index for vectors (N, D); default the type that it has.

    Raises:
        IndexFolderError: the embeddings or the catalogue are damaged too.
        InputError: it cannot be written, or another type is wanted of a shard.
    """
    if choose is not None and is_shard(folder):
        raise InputError(
            f"{folder} is a shard, and all shards of a folder have one type: build them again, or keep the type"
        )
    with lock_index(folder):
        manifest = read_manifest(folder)
        require_whole(folder, manifest, [name for name in manifest.files if name != FAISS])
        ids, vectors, items = _read_stored(folder, manifest)
        kind = IndexType(manifest.factory, manifest.parameters, manifest.trials) if choose is None else choose(vectors)
        before = name_generation(folder, manifest.generation)
        with draft_generation(folder) as draft:
            kept = [name for name in manifest.files if name != FAISS]
            link_files(before, draft, kept)
            known = {name: manifest.files[name] for name in kept}
            known[FAISS] = write_faiss(make_faiss(kind.factory, vectors, ids), draft / FAISS)
            made = replace(
                manifest,
                factory=kind.factory,
                parameters=kind.parameters,
                trials=kind.trials,
                trained_on=len(items),
                version=__version__,
            )
            return commit_generation(draft, made, known)


def compact_index(folder: Path) -> Manifest:
    """Drops the embeddings of removed images, the catalogue's holes and the generation before; ids stay.

    Args:
        folder: the index folder.

    Raises:
        IndexFolderError: the index is damaged, or another process changes it.
        InputError: it cannot be written.
    """
    with lock_index(folder):
        manifest = read_manifest(folder)
        require_whole(folder, manifest, list(manifest.files))
        ids, vectors, _ = _read_stored(folder, manifest)
        before = name_generation(folder, manifest.generation)
        with draft_generation(folder) as draft:
            kept = [MODEL, FAISS, SKIPPED]
            link_files(before, draft, kept)
            shutil.copyfile(before / CATALOGUE, draft / CATALOGUE)
            with edit_catalogue(draft / CATALOGUE) as catalogue:
                catalogue.vacuum()
            segment = name_segment(manifest.generation + 1)
            write_segment(draft / segment, ids, vectors)
            made = replace(manifest, segments=(segment,), version=__version__)
            made = commit_generation(draft, made, {name: manifest.files[name] for name in kept})
        shutil.rmtree(before, ignore_errors=True)
        return made


def merge_indexes(folders: Sequence[Path], out: Path) -> Manifest:
    """Writes a new index with the images of several of one model. Those of the first keep their ids, others get new.

    An image's path becomes relative to the root of the first, or absolute outside it.

    Args:
        folders: the index folders, two or more.
        out: the folder to write.

    Raises:
        ExistsError: the folder exists, and is not what a merge that was cut off has left.
        IndexFolderError: an index is damaged, or has another model.
        InputError: it cannot be written, or an image is in two of them.
    """
    _check_merge_output(out)
    first, *others = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders[1:], others, strict=True):
        if manifest.model_sha256 != first.model_sha256:
            raise IndexFolderError(
                f"{folder} has another model (SHA-256 {manifest.model_sha256[:12]}...) than {folders[0]} "
                f"({first.model_sha256[:12]}...): only indexes of one model can be merged"
            )
        if manifest.root != first.root and not PurePath(manifest.root).is_absolute():
            raise IndexFolderError(
                f"{folder} is of '{manifest.root}', which is no folder: its images have no path of their own"
            )
    for folder, manifest in zip(folders, (first, *others), strict=True):
        require_whole(folder, manifest, [name for name in manifest.files if name != FAISS])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the index {out} cannot be written: {describe_os_error(error)}") from error
    with lock_index(out, create=True), discard_unfinished(out), draft_generation(out) as draft:
        _check_merge_output(out)  # another process may have been first
        source = name_generation(folders[0], first.generation)
        shutil.copyfile(source / MODEL, draft / MODEL)
        shutil.copyfile(source / CATALOGUE, draft / CATALOGUE)
        write_skipped(draft / SKIPPED, [])
        ids, vectors, items = _read_stored(folders[0], first)
        paths = {item.path: folders[0] for item in items}
        all_ids, all_vectors = [ids], [vectors]
        with edit_catalogue(draft / CATALOGUE) as catalogue:
            for folder, manifest in zip(folders[1:], others, strict=True):
                _, vectors, items = _read_stored(folder, manifest)
                new = [_move_item(item, manifest.root, first.root) for item in items]
                for item in new:
                    if item.path in paths:
                        raise InputError(f"{item.path} is in {paths[item.path]} and in {folder}: remove it from one")
                    paths[item.path] = folder
                all_ids.append(np.array(catalogue.add(new), dtype=np.int64))
                all_vectors.append(vectors)
        ids, vectors = np.concatenate(all_ids), np.concatenate(all_vectors)
        write_segment(draft / name_segment(1), ids, vectors)
        known = {FAISS: write_faiss(make_faiss(first.factory, vectors, ids), draft / FAISS)}
        made = replace(
            first,
            items=len(ids),
            trained_on=len(ids),
            segments=(name_segment(1),),
            skipped=0,
            source=first.source if first.source in ("", first.root) else NO_SOURCE,
            version=__version__,
        )
        return commit_generation(draft, made, known)


def _check_merge_output(out: Path) -> None:
    if (out / CURRENT).exists():
        raise ExistsError(f"the index {out} exists; choose another --out")
    check_index_output(out, overwrite=False)


def _move_item(item: CatalogueItem, root: str, new_root: str) -> NewItem:
    path = name_item(new_root, root, item.path)
    return NewItem(path, item.label, item.sha256, item.size_bytes, item.modified_ns)


def _compare_ids(folder: Path) -> list[str]:
    """Returns where the ids of catalogue, FAISS index and embeddings differ; the files are as they were written."""
    try:
        with Index(folder) as index:
            ids, vectors, _ = index.read_vectors()
            stored = np.sort(list_ids(index.faiss))
    except IndistillError as error:
        return [str(error)]
    problems = []
    if not np.array_equal(stored, ids):
        problems.append(f"{FAISS} has other ids than {CATALOGUE}")
    if not np.isfinite(vectors).all() or (len(vectors) and abs(np.linalg.norm(vectors, axis=1) - 1).max() > 1e-3):
        problems.append("an embedding is no unit vector")
    return problems


def _read_stored(folder: Path, manifest: Manifest) -> tuple[Ids, Embeddings, list[CatalogueItem]]:
    """Returns the ids (N,), the embeddings (N, D) and the items, without the FAISS index."""
    generation = name_generation(folder, manifest.generation)
    with Catalogue(generation / CATALOGUE) as catalogue:
        items = list(catalogue.list_items())
    ids = np.array([item.id for item in items], dtype=np.int64)
    segments = Segments([generation / name for name in manifest.segments], manifest.dimension)
    return ids, segments.find(ids), items
