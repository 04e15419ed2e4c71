"""An index opened for reading: FAISS index, catalogue, stored embeddings and model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.files.bounded import require_regular
from indistill.files.hashing import hash_file
from indistill.retrieval.index_types.types import can_filter, read_faiss, search_faiss, set_parameters
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.ranking import NOTHING, score_candidates, sort_hits
from indistill.retrieval.store.catalogue import Catalogue, CatalogueItem
from indistill.retrieval.store.generations import (
    CATALOGUE,
    FAISS,
    MANIFEST,
    MODEL,
    Manifest,
    explain_count,
    name_generation,
    read_generation,
    require_whole,
)
from indistill.retrieval.store.segments import Ids, Segments

if TYPE_CHECKING:
    from indistill.retrieval.where import Where

EXACT_SHARE = 20  # a twentieth of the images or fewer are scored one by one, instead of searched with a filter


def open_model(folder: Path, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
    """Returns the model of an index.

    Args:
        folder: the index folder.
        model: the same model from elsewhere; default the index's own copy.
        threads: of ONNX Runtime; 0 for one for each core.

    Raises:
        IndexFolderError: the model is not the one that made the index's vectors.
        ModelError: the model cannot be run.
    """
    return read_generation(folder, lambda manifest: _open_model(folder, manifest, model, threads))


def _open_model(folder: Path, manifest: Manifest, model: Path | None, threads: int) -> EmbeddingSession:
    expected = manifest.model_sha256
    path = model or name_generation(folder, manifest.generation) / MODEL
    try:
        require_regular(path)
        found = hash_file(path)
    except OSError:
        return EmbeddingSession(path, threads)  # whose error says why
    if found == expected:
        return EmbeddingSession(path, threads)
    if model is None:
        raise IndexFolderError(f"the index {folder} is damaged: its {MODEL} is not the one it was built with")
    raise IndexFolderError(
        f"{model} is not the model of the index {folder} (SHA-256 {found[:12]}..., the index has "
        f"{expected[:12]}...): leave --model out, or build an index with this model"
    )


def is_few(count: int, manifest: Manifest) -> bool:
    """Returns whether so many images of an index are scored one by one, instead of searched with a filter."""
    return count <= manifest.items // EXACT_SHARE or not can_filter(manifest.factory)


class Index(SearchIndex):
    """An index opened for reading; later changes of the folder do not reach it. Use it as a context, or close it.

    Args:
        folder: the index folder.
        threads: of FAISS; one is fastest for single queries.

    Attributes:
        manifest: what it is.
        folder: where it is.
        root: the gallery's folder; `root / path` is the file of an item.
        catalogue: its images.
        faiss: its FAISS index.

    Raises:
        IndexFolderError: the folder is no index, or is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder, self._threads = folder, threads
        self.name, self.work = str(folder), folder
        self.manifest = read_generation(folder, self._open)
        self.root = Path(self.manifest.root)

    def _open(self, manifest: Manifest) -> Manifest:
        generation = name_generation(self.folder, manifest.generation)
        require_whole(self.folder, manifest, [FAISS], "note")  # a damaged one can end the process, inside FAISS
        require_whole(self.folder, manifest, [CATALOGUE, *manifest.segments], "size")
        try:
            self.faiss: Any = read_faiss(generation / FAISS, mapped=True)
        except (RuntimeError, OSError, MemoryError) as error:
            why = "too little memory for it, or damaged" if isinstance(error, MemoryError) else "damaged"
            raise IndexFolderError(
                f"the {FAISS} of the index {self.folder} cannot be read ({why}); make it again by 'indistill index "
                "rebuild'"
            ) from error
        if self.faiss.ntotal != manifest.items or self.faiss.d != manifest.dimension:
            raise IndexFolderError(f"the index {self.folder} is damaged: its {FAISS} does not fit its {MANIFEST}")
        set_parameters(self.faiss, manifest.parameters)
        self._segments = Segments([generation / name for name in manifest.segments], manifest.dimension)
        self.catalogue = Catalogue(generation / CATALOGUE)
        return manifest

    def close(self) -> None:
        """Closes the files."""
        self.catalogue.close()

    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
        """Returns the model of the folder; see `open_model`."""
        return open_model(self.folder, model, threads)

    @classmethod
    def open(cls, folder: Path | str, threads: int = 1) -> "Index":
        """Returns the index of a folder: `Index.open("gallery.index").search(["query.jpg"], k=5)`."""
        return cls(Path(folder), threads)

    def search_vectors(
        self, queries: Embeddings, k: int, among: Ids | None = None, *, exact: bool | None = None
    ) -> tuple[Embeddings, Ids]:
        """Returns the scores (Q, k) and the ids (Q, k) of the nearest images, as the index finds them.

        Sorted by falling score, then rising id; where fewer are found, the score is minus infinity and the id -1.

        Args:
            queries: unit vectors (Q, D).
            k: as many columns, or as there are images to search among.
            among: the ids to search among; all where it is left out.
            exact: whether these are scored one by one by their stored vectors; default where `is_few` says so.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        total = self.manifest.items if among is None else len(among)
        k = min(k, total)
        if not k or not len(queries):
            return np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        some = among is not None and (is_few(total, self.manifest) if exact is None else exact)
        if not some:
            scores, ids = self._search_ordered(queries, k, total, among)
            if among is None or (ids != NOTHING).all():
                return scores, ids
        candidates = np.broadcast_to(np.asarray(among), (len(queries), total))
        return score_candidates(queries, candidates, k, self._segments.find)

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that the index does not have are left out."""
        return self.catalogue.find_items(ids)

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""
        return self.catalogue.find_paths(paths)

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""
        return self.catalogue.find_content(sha256)

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""
        return self.catalogue.list_items()

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""
        return self.catalogue.list_page(after, limit)

    def find_ids(self, where: "Where") -> Ids:
        """Returns the ids (N,) of the images that a condition holds for, ascending."""
        rows = self.catalogue.select(f"SELECT id FROM items WHERE {where.sql} ORDER BY id", where.values)
        return np.array([row[0] for row in rows], dtype=np.int64)

    def has_labels(self) -> bool:
        """Returns whether any image has a label."""
        return bool(self.catalogue.select("SELECT 1 FROM items WHERE label IS NOT NULL LIMIT 1"))

    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings:
        """Returns the stored vectors (N, D) of ids (N,)."""
        return self._segments.find(np.asarray(ids, dtype=np.int64))

    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]:
        """Returns the ids (N,) in ascending order, their stored vectors (N, D), and their labels."""
        labels = self.catalogue.list_labels()
        ids = np.array([i for i, _ in labels], dtype=np.int64)
        if len(ids) != self.manifest.items:
            raise IndexFolderError(explain_count(self.folder, self.manifest, len(ids)))
        return ids, self._segments.find(ids), [label for _, label in labels]

    def _search_ordered(self, queries: Embeddings, k: int, total: int, among: Ids | None) -> tuple[Embeddings, Ids]:
        """FAISS breaks ties as it likes, also at the last place: fetch on until the tie there ends, then sort."""
        fetched = min(total, k + 1)
        tied = np.arange(len(queries))
        best = np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._threads)
        try:
            while len(tied):
                scores, ids = search_faiss(self.faiss, queries[tied], fetched, among)
                best[0][tied], best[1][tied] = sort_hits(scores, ids, k)
                tied = tied[(scores[:, -1] == scores[:, k - 1]) & (ids[:, -1] != NOTHING) & (fetched < total)]
                fetched = min(total, 2 * fetched)
        finally:
            faiss.omp_set_num_threads(before)  # torch may share this setting, in the same process
        return best
