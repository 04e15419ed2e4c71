"""Bridge: exact FAISS indexes alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indistill.export.session import Embeddings
from indistill.retrieval.segments import Ids


def make_faiss(factory: str, vectors: Embeddings, ids: Ids, seed: int = 0) -> Any:  # noqa: ANN401, ARG001
    index = faiss.index_factory(vectors.shape[1], f"IDMap2,{factory}", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(np.ascontiguousarray(vectors), ids)
    return index


def can_remove(factory: str) -> bool:  # noqa: ARG001
    return True


def set_parameters(index: Any, parameters: Mapping[str, int]) -> None:  # noqa: ANN401
    pass


def add_to_faiss(index: Any, vectors: Embeddings, ids: Ids) -> None:  # noqa: ANN401
    index.add_with_ids(np.ascontiguousarray(vectors), ids)


def remove_from_faiss(index: Any, ids: Ids) -> None:  # noqa: ANN401
    index.remove_ids(ids)


def read_faiss(path: Path) -> Any:  # noqa: ANN401
    return faiss.read_index(str(path))


def search_faiss(index: Any, queries: Embeddings, k: int, among: Ids | None = None) -> tuple[Embeddings, Ids]:  # noqa: ANN401
    if among is None:
        return index.search(queries, k)
    return index.search(queries, k, params=faiss.SearchParameters(sel=faiss.IDSelectorBatch(among)))


def list_ids(index: Any) -> Ids:  # noqa: ANN401
    return faiss.vector_to_array(index.id_map)
