"""An index in a collection of Milvus, opened for reading."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from indistill.errors import IndexFolderError, InputError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.retrieval.milvus.client import Row, require_file
from indistill.retrieval.milvus.collection import (
    ITEM_FIELDS,
    ROWS,
    CollectionState,
    connect,
    count_batch,
    count_rows,
    read_collection_state,
    read_item,
)
from indistill.retrieval.milvus.filters import quote_text, quote_texts, translate_condition
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.milvus.model import open_collection_model
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.ranking import NOTHING, score_candidates, sort_hits
from indistill.retrieval.store.catalogue import LARGEST_ID, SCHEMA, CatalogueItem, is_text
from indistill.retrieval.store.generations import Manifest
from indistill.retrieval.store.segments import Ids

if TYPE_CHECKING:
    from indistill.retrieval.where import Where

T = TypeVar("T")
MOST_HITS = 16_384  # of one query, and rows of one batch, of Milvus
HITS_AT_ONCE = 100_000  # of all queries of one call
MOST_QUERIES = 1000  # of one call
IDS_AT_ONCE = 5000  # in one filter
SCAN_ROWS = 10_000  # without vectors, in one batch
ALL_LISTS = 65_536  # the largest nprobe of Milvus
ROUNDING = 1e-6  # of float32 inner products of unit vectors


class MilvusIndex(SearchIndex):
    """An index in a collection; a search sees all changes that were acknowledged before it. Close it.

    Args:
        location: of the collection.

    Attributes:
        location: as given.
        connection: to the server.
        state: what is known of the collection.
        manifest: the same as of a folder, with the number of images when it was opened.

    Raises:
        IndexFolderError: it cannot be reached, or holds no index, or an incomplete one.
        InputError: a package is missing.
    """

    _shared = True

    def __init__(self, location: MilvusLocation) -> None:
        self.location, self.connection = location, connect(location)
        require_file(location)
        self.name, self.work = str(location), location.work
        try:
            self.refresh()
            self.connection.call("load_collection")
        except BaseException:
            self.connection.close()
            raise

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()

    def open_model(self, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
        """Returns the model; see `open_collection_model`."""
        return open_collection_model(self.location, self.state, model, threads)

    def search_vectors(self, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]:
        """Returns the scores (Q, k) and the ids (Q, k) of the nearest images; see `Index.search_vectors`."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if among is None:
            return self._search_some(queries, min(k, self.manifest.items), "")
        k = min(k, len(among))
        parts = [
            self._search_some(queries, min(k, len(chunk)), f"id in {chunk}")
            for chunk in _split(np.asarray(among).tolist(), IDS_AT_ONCE)
        ]
        if not parts:
            return np.empty((len(queries), 0), dtype=np.float32), np.empty((len(queries), 0), dtype=np.int64)
        scores, ids = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
        return sort_hits(scores, ids, k)

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that the index does not have are left out."""
        possible = [i for i in ids if 0 < i <= LARGEST_ID]
        rows = self._find_rows([f"id in {chunk}" for chunk in _split(possible, ROWS)], ITEM_FIELDS)
        return {row["id"]: read_item(row) for row in rows}

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""
        plain = [path for path in paths if quote_text(path) is not None]
        conditions = [f"path in {quote_texts(chunk)}" for chunk in _split(plain, ROWS)]
        items = [read_item(row) for row in self._find_rows(conditions, ITEM_FIELDS)]
        strange = {path for path in paths if is_text(path)} - set(plain)
        if strange:
            items += [item for item in self.list_items() if item.path in strange]
        return {item.path: item for item in items}

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""
        found = self._query(f"sha256 == {quote_text(sha256)}", ["id"], limit=MOST_HITS)
        return min((int(row["id"]) for row in found), default=None)

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""
        for rows in self.connection.scan("", ITEM_FIELDS, SCAN_ROWS):
            yield from map(read_item, rows)

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""
        for rows in self.connection.scan(f"id > {after}", ITEM_FIELDS, limit):
            return [read_item(row) for row in rows]
        return []

    def find_ids(self, where: "Where") -> Ids:
        """Returns the ids (N,) of the images that a condition holds for, ascending."""
        condition = translate_condition(where.condition)
        if condition is not None:
            return self._list_ids(condition)
        with closing(sqlite3.connect(":memory:")) as catalogue:
            catalogue.executescript(SCHEMA)
            rows = (tuple(vars(item).values()) for item in self.list_items())
            catalogue.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
            found = catalogue.execute(f"SELECT id FROM items WHERE {where.sql} ORDER BY id", where.values).fetchall()
        return np.array([row[0] for row in found], dtype=np.int64)

    def has_labels(self) -> bool:
        """Returns whether any image has a label."""
        return bool(self._query("labelled == true", ["id"], limit=1))

    def find_vectors(self, ids: Sequence[int] | Ids) -> Embeddings:
        """Returns the stored vectors (N, D) of ids (N,)."""
        wanted = np.asarray(ids, dtype=np.int64).tolist()
        found = self._read_vectors(wanted)
        if len(found) < len(set(wanted)):
            missing = min(set(wanted) - found.keys())
            raise IndexFolderError(f"{self.name} has no image {missing} any more: another client has removed it")
        return np.array([found[i] for i in wanted], dtype=np.float32).reshape(len(wanted), -1)

    def read_vectors(self) -> tuple[Ids, Embeddings, list[str | None]]:
        """Returns the ids (N,) in ascending order, their stored vectors (N, D), and their labels."""
        ids: list[int] = []
        labels: list[str | None] = []
        vectors: list[Embeddings] = []
        fields = ["id", "label", "labelled", "vector"]
        for rows in self.connection.scan("", fields, count_batch(self.state.dimension)):
            ids += [row["id"] for row in rows]
            labels += [row["label"] if row["labelled"] else None for row in rows]
            vectors.append(np.array([row["vector"] for row in rows], dtype=np.float32))
        return np.array(ids, dtype=np.int64), np.concatenate(vectors), labels

    def refresh(self) -> None:
        """Reads what is known of the collection anew, after a change."""
        self.state = self._read_state()
        self.root = Path(self.state.root)
        self.manifest = describe_collection(self.state, count_rows(self.connection))

    def _search_where(self, vectors: Embeddings, k: int, where: "Where | None") -> tuple[Embeddings, Ids]:
        condition = "" if where is None else translate_condition(where.condition)
        if condition is None:
            return super()._search_where(vectors, k, where)
        return self._search_some(vectors, k, condition)

    def _read_state(self) -> CollectionState:
        state = read_collection_state(self.connection)
        if state is None:
            raise IndexFolderError(
                f"the collection {self.location} is not an index of indistill: make one by 'indistill index push INDEX "
                f"--to {self.location.uri} --collection NAME'"
            )
        if not state.complete:
            raise IndexFolderError(
                f"the collection {self.location} is not complete: its 'indistill index push' was cut off; give it "
                "again to go on"
            )
        return state

    def _query(self, condition: str, fields: list[str], limit: int) -> list[Row]:
        return list(self.connection.call("query", filter=condition, output_fields=fields, limit=limit))

    def _find_rows(self, conditions: list[str], fields: list[str]) -> Iterator[Row]:
        for condition in conditions:
            yield from self._query(condition, fields, limit=MOST_HITS)

    def _read_vectors(self, ids: Sequence[int]) -> dict[int, list[float]]:
        """Returns the vectors (D,) by id, of those that there are."""
        chunks = _split(sorted(set(ids)), count_batch(self.state.dimension))
        rows = self._find_rows([f"id in {chunk}" for chunk in chunks], ["id", "vector"])
        return {row["id"]: row["vector"] for row in rows}

    def _list_ids(self, condition: str) -> Ids:
        batches = self.connection.scan(condition, ["id"], SCAN_ROWS)
        return np.array([row["id"] for rows in batches for row in rows], dtype=np.int64)

    def _search_some(self, queries: Embeddings, k: int, condition: str) -> tuple[Embeddings, Ids]:
        """Searches among the images that meet a condition of Milvus; k of them are found wherever they exist."""
        if k > MOST_HITS:
            raise InputError(f"Milvus gives at most {MOST_HITS:,} hits of a query, not {k:,}: ask for fewer")
        if not k or not len(queries):
            return np.empty((len(queries), k), dtype=np.float32), np.empty((len(queries), k), dtype=np.int64)
        parts = [
            self._search_ordered(queries[start : start + MOST_QUERIES], k, condition)
            for start in range(0, len(queries), MOST_QUERIES)
        ]
        scores, ids = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        if self.state.kind != "FLAT":
            self._complete_rows(queries, scores, ids, condition)
        return scores, ids

    def _complete_rows(self, queries: Embeddings, scores: Embeddings, ids: Ids, condition: str) -> None:
        """Fills rows (Q, k) that an approximate search left short: through all lists, or one by one for a filter."""
        short, k = np.flatnonzero(ids[:, -1] == NOTHING), ids.shape[1]
        if self.state.kind == "IVF_FLAT" and len(short):
            scores[short], ids[short] = self._search_ordered(queries[short], k, condition, wide=True)
            short = np.flatnonzero(ids[:, -1] == NOTHING)
        if not condition or not len(short):
            return
        matching = self._list_ids(condition)
        short = short[(ids[short] != NOTHING).sum(axis=1) < min(k, len(matching))]
        if len(short):
            candidates = np.broadcast_to(matching, (len(short), len(matching)))
            best, best_ids = score_candidates(queries[short], candidates, k, self.find_vectors)
            scores[short, : best.shape[1]], ids[short, : best.shape[1]] = best, best_ids

    def _search_ordered(
        self, queries: Embeddings, k: int, condition: str, *, wide: bool = False
    ) -> tuple[Embeddings, Ids]:
        """Milvus breaks ties as it likes, also at the last place: fetch on until the tie there ends, then sort."""
        fetched = min(MOST_HITS, k + 1)
        while True:
            scores, ids = self._fetch(queries, fetched, condition, wide=wide)
            tied = (scores[:, -1] >= scores[:, k - 1] - ROUNDING) & (ids[:, -1] != NOTHING)
            if fetched == MOST_HITS or not tied.any():
                self._settle_ties(queries, scores, ids)
                return sort_hits(scores, ids, k)
            fetched = min(MOST_HITS, 2 * fetched)

    def _settle_ties(self, queries: Embeddings, scores: Embeddings, ids: Ids) -> None:
        """Scores hits anew that rounding alone may keep apart: Milvus Lite gives equal vectors unequal scores."""
        near = (scores[:, :-1] <= scores[:, 1:] + ROUNDING) & (ids[:, 1:] != NOTHING)
        rows, columns = np.nonzero(np.pad(near, ((0, 0), (0, 1))) | np.pad(near, ((0, 0), (1, 0))))
        if not len(rows):
            return
        tied = ids[rows, columns]
        vectors = self._read_vectors(tied.tolist())
        known = np.array([i in vectors for i in tied.tolist()])
        rows, columns, tied = rows[known], columns[known], tied[known]
        stored = np.array([vectors[i] for i in tied.tolist()], dtype=np.float64).reshape(len(tied), -1)
        scores[rows, columns] = np.einsum("nd,nd->n", queries[rows].astype(np.float64), stored)

    def _fetch(self, queries: Embeddings, limit: int, condition: str, *, wide: bool) -> tuple[Embeddings, Ids]:
        """Returns the scores (Q, limit) and ids (Q, limit) as Milvus gives them; -inf and -1 where there are fewer."""
        scores = np.full((len(queries), limit), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), limit), NOTHING, dtype=np.int64)
        parameters = dict(self.state.parameters)
        if "ef" in parameters:
            parameters["ef"] = max(parameters["ef"], limit)
        if wide:
            parameters["nprobe"] = ALL_LISTS
        step = max(1, HITS_AT_ONCE // limit)
        for start in range(0, len(queries), step):
            answers = self.connection.call(
                "search",
                data=list(queries[start : start + step]),
                anns_field="vector",
                limit=limit,
                filter=condition,
                output_fields=["id"],
                search_params={"metric_type": "IP", "params": parameters},
            )
            for row, hits in enumerate(answers, start=start):
                scores[row, : len(hits)] = [hit["distance"] for hit in hits]
                ids[row, : len(hits)] = [hit["id"] for hit in hits]
        return scores, ids


def describe_collection(state: CollectionState, items: int) -> Manifest:
    """Returns what a collection is, in the words of an index folder."""
    return Manifest(
        items=items,
        dimension=state.dimension,
        factory=state.kind,
        metric="inner_product",
        model_sha256=state.model_sha256,
        generation=state.generation,
        root=state.root,
        skipped=0,
        segments=(),
        version=state.version,
        parameters=state.parameters,
        source=state.source,
    )


def read_state(location: MilvusLocation) -> tuple[object, ...]:
    """Returns what changes when a collection does; of an embedded file, which is this process's alone, nothing.

    Raises:
        IndexFolderError: it cannot be reached.
    """
    if location.is_embedded:
        return ()
    connection = connect(location)
    try:
        state = read_collection_state(connection)
        return (repr(state), count_rows(connection))
    finally:
        connection.close()


def _split(values: list[T], size: int) -> list[list[T]]:
    return [values[start : start + size] for start in range(0, len(values), size)]
