"""What an opened index is to those who search and change it: in a folder with FAISS, or in Milvus."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.images import ImageSource
from indistill.retrieval.ranking import NOTHING, Hit, make_hits, score_candidates, sort_hits
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.store.generations import Manifest
from indistill.retrieval.store.segments import Ids

if TYPE_CHECKING:
    from indistill.retrieval.where import Where


class SearchIndex(ABC):
    """An index opened for reading: use it as a context, or close it.

    Attributes:
        name: what messages call it: the folder, or `URI#collection`.
        manifest: what it was built from and with.
        root: the gallery's folder; `root / path` is the file of an item.
        work: the folder for what a change leaves when it is cut off.
    """

    name: str
    manifest: Manifest
    root: Path
    work: Path
    _session: EmbeddingSession | None = None
    _shared = False  # whether another client may remove an image while it is searched

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Gives back files and connections."""

    @abstractmethod
    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
        """Returns a session of the index's model. Raises InputError where `model` is another one."""

    def embed(self, images: Sequence[ImageSource]) -> Embeddings:
        """Returns the vectors (N, D) of images, by the index's model, which is opened once."""
        if self._session is None:
            self._session = self.open_model()
        if self._session.sha256 != self.manifest.model_sha256:
            raise IndexFolderError(f"the index {self.name} was built anew with another model; open it again")
        return self._session.embed_images(images)

    def search(
        self,
        queries: Embeddings | Sequence[ImageSource],
        k: int,
        *,
        where: "Where | None" = None,
        threshold: float | None = None,
        rerank: int = 0,
    ) -> list[list[Hit]]:
        """Returns the k nearest images of each query, or all where there are fewer.

        Equal scores come in the order of their ids.

        Args:
            queries: unit vectors (Q, D), or images as paths, encoded bytes or PIL images.
            k: hits for each query.
            where: the images to search among, of which the k nearest come.
            threshold: the cosine that a hit has at least.
            rerank: how many of an approximate index's hits are scored again by their stored vectors; at least k.

        Raises:
            DataError: an image cannot be read.
            IndexFolderError: the index is damaged, or cannot be reached.
            InputError: k is more than the index can give.
        """
        vectors = queries if isinstance(queries, np.ndarray) else self.embed(queries)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        scores, ids = self._search_where(vectors, max(k, rerank), where)
        if rerank:
            scores, ids = score_candidates(vectors, ids, k, self.find_vectors)
        items = self.find_items(sorted(set(ids.ravel().tolist()) - {NOTHING}))
        gone = ~np.isin(ids, [*items, NOTHING])
        if gone.any():
            if not self._shared:
                raise IndexFolderError(
                    f"the index {self.name} is damaged: id {ids[gone].min()} is not in its catalogue"
                )
            scores, ids = sort_hits(np.where(gone, -np.inf, scores), np.where(gone, NOTHING, ids), k)
        return make_hits(scores, ids, items, threshold)

    def _search_where(self, vectors: Embeddings, k: int, where: "Where | None") -> tuple[Embeddings, Ids]:
        return self.search_vectors(vectors, k, None if where is None else self.find_ids(where))

    @abstractmethod
    def search_vectors(self, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]:
        """Returns scores and ids (Q, k), best first, of all images or of those `among`; id -1 where there are fewer."""

    @abstractmethod
    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that are not there are left out."""

    @abstractmethod
    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""

    @abstractmethod
    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""

    @abstractmethod
    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""

    @abstractmethod
    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""

    @abstractmethod
    def find_ids(self, where: "Where") -> Ids:
        """Returns the ids that meet a condition, rising."""

    @abstractmethod
    def has_labels(self) -> bool:
        """Returns whether any image has a label."""

    @abstractmethod
    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings:
        """Returns the stored vectors (N, D) of some ids, in their order."""

    @abstractmethod
    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]:
        """Returns all ids (N,), rising, with their vectors (N, D) and labels."""
