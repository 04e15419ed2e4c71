"""The one place that chooses between an index and a folder of shards. Needs no torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from indistill.export.session import EmbeddingSession
from indistill.retrieval import index as single
from indistill.retrieval.cluster.sharded import ShardedIndex, add_up_manifests
from indistill.retrieval.cluster.shards import list_shards
from indistill.retrieval.store import Manifest, read_manifest

if TYPE_CHECKING:
    from indistill.retrieval.upkeep import Verification

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


def describe_index(folder: Path) -> Manifest:
    """Returns what an index is; of a folder of shards what all are together.

    Raises:
        IndexFolderError: it is no index, or is damaged.
    """
    shards = list_shards(folder)
    return read_manifest(folder) if shards is None else add_up_manifests(folder, [read_manifest(s) for s in shards])


def verify_any(folder: Path, on_progress: Callable[[int], None] = lambda _: None) -> "Verification":
    """Returns what is wrong with an index, or with the shards of a folder; see `verify_index`."""
    from indistill.retrieval.upkeep import Verification, verify_index

    shards = list_shards(folder)
    if shards is None:
        return verify_index(folder, on_progress)
    found = [verify_index(shard, on_progress) for shard in shards]
    problems = (f"{shard.name}: {line}" for shard, part in zip(shards, found, strict=True) for line in part.problems)
    return Verification(tuple(problems), sum(part.files for part in found), sum(part.items for part in found))
