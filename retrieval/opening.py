"""The one place that chooses between an index and a folder of shards. Needs no torch."""

from pathlib import Path
from typing import TypeAlias

from indistill.export.session import EmbeddingSession
from indistill.retrieval import index as single
from indistill.retrieval.cluster.sharded import ShardedIndex
from indistill.retrieval.cluster.shards import list_shards

SearchIndex: TypeAlias = single.Index | ShardedIndex


def open_index(folder: Path, threads: int = 1) -> SearchIndex:
    """Returns an index opened for reading. Use it as a context, or close it.

    Args:
        folder: of an index, or of shards.
        threads: of FAISS.

    Raises:
        IndexFolderError: the folder is no index, or is damaged.
        InputError: RAY_ADDRESS names a cluster that cannot be joined.
    """
    shards = list_shards(folder)
    return single.Index(folder, threads) if shards is None else ShardedIndex(folder, shards, threads)


def open_model(folder: Path, model: Path | None = None, threads: int = 0) -> EmbeddingSession:
    """Returns the model of an index; see `indistill.retrieval.index.open_model`."""
    shards = list_shards(folder)
    return single.open_model(folder if shards is None else shards[0], model, threads)
