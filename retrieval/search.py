"""Queries against an index: images, catalogued ones by id, or the mean of several. Needs no torch."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
from PIL import Image

from indistill.errors import DataError, IndexFolderError, InputError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.files.hashing import hash_file
from indistill.images import ImageSource, read_pixels
from indistill.preprocess import PixelArray
from indistill.retrieval.opening import Location, open_index, open_model
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.ranking import Hit

if TYPE_CHECKING:
    from indistill.retrieval.where import Where

Query = ImageSource | int
Asked = Query | tuple[Query, ...]
BATCH_SIZE = 32
MANY = 16  # queries for which threads are worth starting


@dataclass(frozen=True)
class SearchOptions:
    """What is searched, and what counts as a hit.

    Attributes:
        where: a condition that hits must meet, of `parse_where`.
        threshold: the least cosine of a hit, from -1 to 1.
        rerank: this many are found first and then ordered by the stored vectors; 0 leaves the index's own order.
        combine: whether all queries are one, their mean.
        exclude_self: whether a query is no hit of its own: a catalogued image by its id, a file by its content.
    """

    where: "Where | None" = None
    threshold: float | None = None
    rerank: int = 0
    combine: bool = False
    exclude_self: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:  # nor NaN
            raise InputError(f"the threshold is a cosine, from -1 to 1, not {self.threshold}")
        if self.rerank < 0:
            raise InputError(f"rerank is a number of hits from 0 on, not {self.rerank}")


@dataclass(frozen=True)
class SearchResults:
    """The hits of each query, best first, and the gallery's root, to which the hits' paths are relative.

    A query stands as it was given; combined ones are one, a tuple of them. `paths` are those of the queries that are
    catalogued images, by id.
    """

    root: Path
    queries: list[tuple[Asked, list[Hit]]]
    paths: Mapping[int, str] = field(default_factory=dict)


def search_images(
    folder: Location,
    queries: Sequence[Query],
    *,
    k: int,
    model: Path | None = None,
    options: SearchOptions = SearchOptions(),
) -> SearchResults:
    """Returns the k nearest images of an index for each query, fewer where no more meet the options.

    Args:
        folder: the index folder, or a collection of Milvus.
        queries: images as paths, encoded bytes or PIL images, or ids of catalogued images, with their stored vectors.
        k: hits for each query.
        model: the index's model from elsewhere.
        options: what counts as a hit.

    Raises:
        DataError: a query cannot be read.
        IndexFolderError: the index cannot be used, or not with this model.
        InputError: no query, an id that is not in the index, or queries whose mean is zero.
        ModelError: the model cannot be run.
    """
    if not queries or k < 1:
        raise InputError(f"{len(queries)} queries and k = {k}: at least one of each is needed")
    threads = count_threads(len(queries))
    images = [query for query in queries if not isinstance(query, int)]
    session = open_model(folder, model, threads) if images else None
    vectors = _embed_images(images, session) if session is not None else None
    asked: list[Asked] = [tuple(queries)] if options.combine else list(queries)
    with open_index(folder, threads) as index:
        if session is not None and index.manifest.model_sha256 != session.sha256:
            raise IndexFolderError(f"the index {folder} was replaced during this search; search again")
        paths = _find_paths(index, [query for query in queries if isinstance(query, int)])
        gathered = _gather_vectors(index, queries, vectors)
        excluded = [_Excluded.of(query) for query in asked] if options.exclude_self else None
        hits = _search(index, _combine(gathered) if options.combine else gathered, k, options, excluded)
        return SearchResults(index.root, list(zip(asked, hits, strict=True)), paths)


def count_threads(queries: int) -> int:
    """Returns the threads for a number of queries: one for a few, else as many as there are idle cores now.

    A thread that waits for a core makes all others wait for it, at the end of each search: on a busy machine two are
    slower than one.
    """
    if queries < MANY:
        return 1
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    return max(1, round(int(faiss.omp_get_max_threads()) * (1 - busy)))


def describe_query(query: Asked) -> str:
    """Returns what a query is called in text."""
    if isinstance(query, tuple):
        return " + ".join(map(describe_query, query))
    if isinstance(query, int):
        return f"id {query}"
    if isinstance(query, bytes):
        return f"an image of {len(query)} bytes"
    return f"an image of {query.width}x{query.height}" if isinstance(query, Image.Image) else str(query)


@dataclass(frozen=True)
class _Excluded:
    """The ids and the contents that are no hits of a query."""

    ids: frozenset[int]
    contents: frozenset[str]

    @classmethod
    def of(cls, query: Asked) -> "_Excluded":
        parts = query if isinstance(query, tuple) else (query,)
        contents = {_hash_query(part) for part in parts if not isinstance(part, int | Image.Image)}
        return cls(frozenset(part for part in parts if isinstance(part, int)), frozenset(contents))


def _hash_query(query: str | Path | bytes) -> str:
    return hashlib.sha256(query).hexdigest() if isinstance(query, bytes) else hash_file(Path(query))


def _embed_images(images: Sequence[ImageSource], session: EmbeddingSession) -> Embeddings:
    """Returns the vectors (N, D) of query images; of their pixels a batch is kept."""
    preprocessing = session.artefact.preprocessing

    def read(query: ImageSource) -> PixelArray:
        try:
            return read_pixels(query, preprocessing)
        except DataError as error:
            raise DataError(f"query {describe_query(query)}: {error}") from error

    decoded: Iterable[PixelArray] = map(read, images)
    if len(images) >= MANY:
        from indistill.data.ahead import count_decoders, map_ahead  # one query starts faster without

        decoded = map_ahead(read, images, workers=count_decoders(), ahead=BATCH_SIZE)
    vectors, batch = [], []
    for number, pixels in enumerate(decoded, start=1):
        batch.append(pixels)
        if len(batch) == BATCH_SIZE or number == len(images):
            vectors.append(session.embed_pixels(np.stack(batch)))
            batch.clear()
    return np.concatenate(vectors)


def _find_paths(index: SearchIndex, ids: Sequence[int]) -> dict[int, str]:
    items = index.find_items(ids)
    unknown = set(ids) - set(items)
    if unknown:
        raise InputError(
            f"id {min(unknown)} is not in the index {index.name}, which holds {index.manifest.items:,} images; "
            "a search prints the ids of its hits"
        )
    return {i: item.path for i, item in items.items()}


def _gather_vectors(index: SearchIndex, queries: Sequence[Query], embedded: Embeddings | None) -> Embeddings:
    """Returns a vector for each query (Q, D): of the images those embedded, in their order, of ids those stored."""
    vectors = np.empty((len(queries), index.manifest.dimension), dtype=np.float32)
    by_id = np.array([isinstance(query, int) for query in queries])
    if by_id.any():
        vectors[by_id] = index.find_vectors([query for query in queries if isinstance(query, int)])
    if embedded is not None:
        vectors[~by_id] = embedded
    return vectors


def _combine(vectors: Embeddings) -> Embeddings:
    """Returns the mean of unit vectors (Q, D) as one unit vector (1, D)."""
    mean = vectors.mean(axis=0, keepdims=True, dtype=np.float64)
    norm = float(np.linalg.norm(mean))
    if norm < 1e-6:  # what rounding leaves of zero
        raise InputError("the mean of the queries is zero: they are opposites, and have no common neighbours")
    combined: Embeddings = (mean / norm).astype(np.float32)
    return combined


def _search(
    index: SearchIndex, vectors: Embeddings, k: int, options: SearchOptions, excluded: list[_Excluded] | None
) -> list[list[Hit]]:
    """Returns k hits for each vector that are not excluded: as many more are fetched as need be."""
    wanted = k if excluded is None else k + max(len(part.ids) + len(part.contents) for part in excluded)
    while True:
        fetched = index.search(vectors, wanted, where=options.where, threshold=options.threshold, rerank=options.rerank)
        if excluded is None:
            return fetched
        kept = _drop(index, fetched, excluded)
        if all(len(hits) >= k or len(all_hits) < wanted for hits, all_hits in zip(kept, fetched, strict=True)):
            return [[replace(hit, rank=rank) for rank, hit in enumerate(hits[:k], start=1)] for hits in kept]
        wanted *= 2  # a query's content is in the index many times


def _drop(index: SearchIndex, found: list[list[Hit]], excluded: list[_Excluded]) -> list[list[Hit]]:
    by_content = any(part.contents for part in excluded)
    items = index.find_items(sorted({hit.id for hits in found for hit in hits})) if by_content else {}
    return [
        [
            hit
            for hit in hits
            if hit.id not in part.ids and not (part.contents and items[hit.id].sha256 in part.contents)
        ]
        for hits, part in zip(found, excluded, strict=True)
    ]
