"""The index folder, opened for reading: FAISS index, catalogue and model.

CURRENT                         the name of the generation in force
generations/00000001/
    manifest.json               what the generation is, with the SHA-256 of each of its files
    index.faiss                 the vectors, by id
    catalogue.sqlite            the images, by id
model.onnx                      a copy of the model
skipped.jsonl                   files that were passed over, with the reason
"""

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.hashing import hash_file
from indistill.retrieval.catalogue import Catalogue, CatalogueItem

if TYPE_CHECKING:
    from indistill.retrieval.where import Where

CURRENT, MODEL, SKIPPED = "CURRENT", "model.onnx", "skipped.jsonl"
MANIFEST, VECTORS, CATALOGUE = "manifest.json", "index.faiss", "catalogue.sqlite"


@dataclass(frozen=True)
class Manifest:
    """What a generation of an index is.

    Attributes:
        items: number of images.
        dimension: D of the vectors.
        factory: FAISS's name of the index type.
        metric: inner product of unit vectors, the cosine.
        model_sha256: of the model that made the vectors.
        generation: counts from 1.
        root: the gallery's folder when it was built.
        skipped: number of files that were passed over.
        files: SHA-256 of each file of the generation.
        version: of indistill.
    """

    items: int
    dimension: int
    factory: str
    metric: str
    model_sha256: str
    generation: int
    root: str
    skipped: int
    files: dict[str, str]
    version: str


@dataclass(frozen=True)
class Hit:
    """An image found: its rank from 1, its id, its path relative to the gallery's root, its label, and the cosine."""

    rank: int
    id: int
    path: str
    label: str | None
    score: float


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of the generation in force.

    Raises:
        IndexFolderError: the folder is no index, or is damaged.
    """
    try:
        name = (folder / CURRENT).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise IndexFolderError(
            f"the index {folder} is damaged: its {CURRENT} cannot be read; build it again"
        ) from error
    except OSError as error:
        raise IndexFolderError(
            f"{folder} is not an index (it has no {CURRENT}): make one by 'indistill index build IMAGES'"
        ) from error
    try:
        return Manifest(**json.loads((folder / "generations" / name / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IndexFolderError(
            f"the index {folder} is damaged: its {MANIFEST} cannot be read; build it again"
        ) from error


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
    expected = read_manifest(folder).model_sha256
    path = model or folder / MODEL
    if path.is_file() and hash_file(path) != expected:
        if model is None:
            raise IndexFolderError(f"the index {folder} is damaged: its {MODEL} is not the one it was built with")
        raise IndexFolderError(
            f"{model} is not the model of the index {folder} (SHA-256 {hash_file(path)[:12]}..., the index has "
            f"{expected[:12]}...): leave --model out, or build an index with this model"
        )
    return EmbeddingSession(path, threads)


class Index:
    """An index opened for reading.

    Args:
        folder: the index folder.
        threads: of FAISS; one is fastest for single queries.

    Attributes:
        manifest: what it is.
        folder: where it is.

    Raises:
        IndexFolderError: the folder is no index, or is damaged.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        generation = folder / "generations" / f"{self.manifest.generation:08d}"
        self._threads = threads
        try:
            self._vectors: Any = faiss.read_index(str(generation / VECTORS))
        except RuntimeError as error:
            raise IndexFolderError(f"the index {folder} is damaged: its {VECTORS} cannot be read") from error
        self._catalogue = generation / CATALOGUE
        if self._vectors.ntotal != self.manifest.items or self._vectors.d != self.manifest.dimension:
            raise IndexFolderError(f"the index {folder} is damaged: its {VECTORS} does not fit its {MANIFEST}")

    @property
    def root(self) -> Path:
        """The gallery's folder."""
        return Path(self.manifest.root)

    def search(
        self,
        queries: Embeddings,
        k: int,
        *,
        where: "Where | None" = None,
        threshold: float | None = None,
        rerank: int = 0,
    ) -> list[list[Hit]]:
        """Returns the k nearest images of each query vector (Q, D), or all where there are fewer.

        Equal scores come in the order of their ids.

        Args:
            queries: unit vectors.
            k: hits for each.
            where: a condition that hits must meet.
            threshold: the least cosine.
            rerank: this many are found first, and ordered by the stored vectors.
        """
        among = None
        if where is not None:
            from indistill.retrieval.where import find_ids

            with closing(sqlite3.connect(self._catalogue)) as connection:
                among = find_ids(connection, where)
        scores, ids = self.search_vectors(queries, max(k, rerank), among)
        scores, ids = scores[:, :k], ids[:, :k]
        if threshold is not None:
            ids = np.where(scores >= threshold, ids, -1)
        found = sorted(set(ids[ids >= 0].tolist()))
        with Catalogue(self._catalogue) as catalogue:
            items = catalogue.find_items(found)
        missing = set(found) - set(items)
        if missing:
            raise IndexFolderError(f"the index {self.folder} is damaged: id {min(missing)} is not in its catalogue")
        return [
            [
                Hit(rank, i, items[i].path, items[i].label, score)
                for rank, (i, score) in enumerate(zip(row_ids.tolist(), row_scores.tolist(), strict=True), start=1)
                if i >= 0
            ]
            for row_ids, row_scores in zip(ids, scores, strict=True)
        ]

    def search_vectors(
        self, queries: Embeddings, k: int, among: NDArray[np.int64] | None = None
    ) -> tuple[Embeddings, NDArray[np.int64]]:
        """Returns the cosines (Q, k) and ids (Q, k) by falling cosine; id -1 where there are fewer than k."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if among is None:
            return self._search_ordered(queries, min(k, self.manifest.items))
        order = np.sort(among)
        products = queries @ self.find_vectors(order.tolist()).T
        best = np.argsort(-products, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(products, best, 1), order[best]

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that do not exist are left out."""
        with Catalogue(self._catalogue) as catalogue:
            return catalogue.find_items(ids)

    def find_vectors(self, ids: Sequence[int]) -> Embeddings:
        """Returns the vectors (len, D) of ids that exist."""
        known, vectors, _ = self.read_vectors()
        return vectors[np.searchsorted(known, np.asarray(ids, dtype=np.int64))]

    def read_vectors(self) -> tuple[NDArray[np.int64], Embeddings, list[str | None]]:
        """Returns the ids (N,) in ascending order, their vectors (N, D), and their labels."""
        with Catalogue(self._catalogue) as catalogue:
            labels = catalogue.list_labels()
        ids = np.array([i for i, _ in labels], dtype=np.int64)
        stored = faiss.vector_to_array(self._vectors.id_map)
        rows = faiss.downcast_index(self._vectors.index).reconstruct_n(0, len(stored))
        order = np.argsort(stored)
        if not np.array_equal(stored[order], ids):
            raise IndexFolderError(
                f"the index {self.folder} is damaged: its catalogue has other ids than its {VECTORS}"
            )
        return ids, rows[order], [label for _, label in labels]

    def _search_ordered(self, queries: Embeddings, k: int) -> tuple[Embeddings, NDArray[np.int64]]:
        """FAISS breaks ties as it likes, also at the last place: fetch on until the tie there ends, then sort."""
        fetched = min(self.manifest.items, k + 1)
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self._threads)
        try:
            while True:
                scores, ids = self._vectors.search(queries, fetched)
                if fetched == self.manifest.items or (scores[:, -1] < scores[:, k - 1]).all():
                    break
                fetched = min(self.manifest.items, 2 * fetched)
        finally:
            faiss.omp_set_num_threads(before)  # torch may share this setting, in the same process
        order = np.lexsort((ids, -scores))[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
