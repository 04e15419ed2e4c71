"""What an opened index is to those who search and change it: in a folder with FAISS, or in Milvus."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from indistill.export.session import Embeddings, EmbeddingSession
from indistill.images import ImageSource
from indistill.retrieval.index import Hit
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.store.generations import Manifest
from indistill.retrieval.store.segments import Ids

if TYPE_CHECKING:
    from indistill.retrieval.where import Where


class SearchIndex(Protocol):
    """An index opened for reading: `retrieval.index.Index`, whose methods say more, or `MilvusIndex`."""

    @property
    def name(self) -> str:
        """What messages call it: the folder, or `URI#collection`."""

    @property
    def manifest(self) -> Manifest:
        """What it was built from and with."""

    @property
    def root(self) -> Path:
        """The gallery's folder; `root / path` is the file of an item."""

    @property
    def work(self) -> Path:
        """The folder for what a change leaves when it is cut off."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None:
        """Gives back files and connections."""

    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
        """Returns a session of the index's model. Raises InputError where `model` is another one."""

    def search(
        self,
        queries: Embeddings | Sequence[ImageSource],
        k: int,
        *,
        where: "Where | None" = None,
        threshold: float | None = None,
        rerank: int = 0,
    ) -> list[list[Hit]]:
        """Returns the hits of each query, best first."""

    def embed(self, images: Sequence[ImageSource]) -> Embeddings:
        """Returns unit vectors (N, D) of images, by the index's model."""

    def search_vectors(self, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]:
        """Returns scores and ids (Q, k), best first, of all images or of those `among`; id -1 where there are fewer."""

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that are not there are left out."""

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""

    def find_ids(self, where: "Where") -> Ids:
        """Returns the ids that meet a condition, rising."""

    def has_labels(self) -> bool:
        """Returns whether any image has a label."""

    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings:
        """Returns the stored vectors (N, D) of some ids, in their order."""

    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]:
        """Returns all ids (N,), rising, with their vectors (N, D) and labels."""
