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
    def manifest(self) -> Manifest: ...

    @property
    def root(self) -> Path:
        """The gallery's folder; `root / path` is the file of an item."""

    @property
    def work(self) -> Path:
        """The folder for what a change leaves when it is cut off."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None: ...

    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession: ...

    def search(
        self,
        queries: Embeddings | Sequence[ImageSource],
        k: int,
        *,
        where: "Where | None" = None,
        threshold: float | None = None,
        rerank: int = 0,
    ) -> list[list[Hit]]: ...

    def embed(self, images: Sequence[ImageSource]) -> Embeddings: ...

    def search_vectors(self, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]: ...

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]: ...

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""

    def find_ids(self, where: "Where") -> Ids: ...

    def has_labels(self) -> bool: ...

    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings: ...

    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]: ...
