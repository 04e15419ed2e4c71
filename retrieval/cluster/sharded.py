"""An index in shards: each question goes to all of them, and their hits are merged by falling score, then rising id."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.retrieval.cluster.shards import Answer, open_shards
from indistill.retrieval.index import Index, is_few, open_model
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.ranking import sort_hits
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.store.generations import Manifest
from indistill.retrieval.store.segments import Ids

if TYPE_CHECKING:
    from indistill.retrieval.where import Where


class ShardedIndex(SearchIndex):
    """A folder of shards opened for reading; answers as the one index of all its images would.

    Args:
        folder: of the shards.
        shards: the index folders.
        threads: of FAISS, for each shard.

    Attributes:
        folder: where it is.
        manifest: of all shards together, without files.
        root: the gallery's folder.

    Raises:
        IndexFolderError: a shard is damaged, or is not of the same build.
        InputError: RAY_ADDRESS names a cluster that cannot be joined.
    """

    def __init__(self, folder: Path, shards: Sequence[Path], threads: int = 1) -> None:
        self.folder, self._folders = folder, shards
        self.name, self.work = str(folder), folder
        self._shards = open_shards(shards, threads)
        try:
            self.manifest = add_up_manifests(folder, self._ask(_get_manifest))
        except BaseException:
            self.close()
            raise
        self.root = Path(self.manifest.root)

    def close(self) -> None:
        """Closes the files, or ends the actors."""
        self._shards.close()

    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
        """Returns the model, of which each shard has a copy; see `open_model`."""
        return open_model(self._folders[0], model, threads)

    def search_vectors(self, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]:
        """Returns the scores (Q, k) and the ids (Q, k) of the nearest images; see `Index.search_vectors`."""
        return self._search(queries, k, None if among is None else partial(_find_own, ids=among))

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that the index does not have are left out."""
        return {i: item for items in self._ask(partial(Index.find_items, ids=ids)) for i, item in items.items()}

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""
        found = self._ask(partial(Index.find_paths, paths=paths))
        return {path: item for items in found for path, item in items.items()}

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""
        return min((i for i in self._ask(partial(Index.find_content, sha256=sha256)) if i is not None), default=None)

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""
        found = self._ask(partial(Index.list_page, after=after, limit=limit))
        return sorted((item for items in found for item in items), key=lambda item: item.id)[:limit]

    def find_ids(self, where: "Where") -> Ids:
        """Returns the ids (N,) of the images that a condition holds for, ascending."""
        return np.sort(np.concatenate(self._ask(partial(Index.find_ids, where=where))))

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""
        yield from sorted((item for items in self._ask(_list_items) for item in items), key=lambda item: item.id)

    def has_labels(self) -> bool:
        """Returns whether any image has a label."""
        return any(self._ask(Index.has_labels))

    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings:
        """Returns the stored vectors (N, D) of ids (N,)."""
        wanted = np.asarray(ids, dtype=np.int64)
        vectors = np.empty((len(wanted), self.manifest.dimension), dtype=np.float32)
        missing = np.ones(len(wanted), dtype=bool)
        for here, part in self._ask(partial(_find_vectors, ids=wanted)):
            vectors[here] = part
            missing &= ~here
        if missing.any():
            raise IndexFolderError(f"the index {self.folder} has no id {wanted[missing][0]}")
        return vectors

    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]:
        """Returns the ids (N,) in ascending order, their stored vectors (N, D), and their labels."""
        parts = self._ask(Index.read_vectors)
        ids = np.concatenate([part[0] for part in parts])
        vectors = np.concatenate([part[1] for part in parts])
        labels = [label for part in parts for label in part[2]]
        order = np.argsort(ids)
        return ids[order], vectors[order], [labels[i] for i in order.tolist()]

    def _search_where(self, vectors: Embeddings, k: int, where: "Where | None") -> tuple[Embeddings, Ids]:
        return self._search(vectors, k, None if where is None else partial(Index.find_ids, where=where))

    def _search(self, queries: Embeddings, k: int, select: Callable[[Index], Ids] | None) -> tuple[Embeddings, Ids]:
        """Each shard selects the images to search among; how they are scored depends on their number in all shards."""
        total = self.manifest.items if select is None else sum(self._ask(partial(_count, select=select)))
        exact = is_few(total, self.manifest)
        found = self._ask(partial(_search_shard, queries=queries, k=k, select=select, exact=exact))
        scores, ids = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return sort_hits(scores, ids, min(k, total))

    def _ask(self, question: Callable[[Index], Answer]) -> list[Answer]:
        return self._shards.ask(question)


def add_up_manifests(folder: Path, manifests: Sequence[Manifest]) -> Manifest:
    """Returns what a folder of shards is; raises IndexFolderError where they are not of one build."""
    first = manifests[0]
    if any((part.model_sha256, part.factory) != (first.model_sha256, first.factory) for part in manifests):
        raise IndexFolderError(f"the folder of shards {folder} is damaged: its shards are not of one build")
    items, skipped = (sum(getattr(part, name) for part in manifests) for name in ("items", "skipped"))
    files = {f"{n:04d}/{name}": sha256 for n, part in enumerate(manifests) for name, sha256 in part.files.items()}
    return replace(first, items=items, skipped=skipped, trained_on=items, segments=(), files=files)


def _get_manifest(index: Index) -> Manifest:
    return index.manifest


def _list_items(index: Index) -> list[CatalogueItem]:
    return list(index.list_items())


def _find_own(index: Index, ids: Ids) -> Ids:
    return np.array(sorted(index.find_items(ids.tolist())), dtype=np.int64)


def _count(index: Index, select: Callable[[Index], Ids]) -> int:
    return len(select(index))


def _search_shard(
    index: Index, queries: Embeddings, k: int, select: Callable[[Index], Ids] | None, *, exact: bool
) -> tuple[Embeddings, Ids]:
    if select is None:
        return index.search_vectors(queries, k)
    return index.search_vectors(queries, k, select(index), exact=exact)


def _find_vectors(index: Index, ids: Ids) -> tuple["np.ndarray[tuple[int], np.dtype[np.bool_]]", Embeddings]:
    """Returns which of the ids (N,) the shard has, and the vectors of these."""
    here = np.isin(ids, _find_own(index, ids))
    return here, index.find_vectors(ids[here])
