"""Where an index lies, and the one place that chooses between a folder, shards and a collection of Milvus.

Needs no torch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from indistill.errors import InputError, describe_os_error, escape_text
from indistill.retrieval.milvus.location import SERVER, MilvusLocation, is_milvus_uri, name_collection

if TYPE_CHECKING:
    from indistill.export.session import EmbeddingSession
    from indistill.retrieval.protocol import SearchIndex
    from indistill.retrieval.store.edit import Changes, Edit
    from indistill.retrieval.store.generations import Manifest
    from indistill.retrieval.store.upkeep import Verification

Location: TypeAlias = Path | MilvusLocation


def locate_index(text: str) -> Location:
    """Returns a folder, or for `http://host:19530#collection` and `file.db#collection` the collection.

    Raises:
        InputError: it is an address of Milvus that names no collection, or an impossible one.
    """
    uri, sign, collection = text.rpartition("#")
    if sign and is_milvus_uri(uri):
        return name_collection(uri, collection)
    if SERVER.match(text):
        raise InputError(f"'{escape_text(text)}' names no collection: give {escape_text(text.rstrip('/'))}#COLLECTION")
    return Path(text)


def require_folder(text: str) -> Path:
    """Returns an index folder; raises InputError for a collection."""
    location = locate_index(text)
    if isinstance(location, MilvusLocation):
        raise InputError(f"{location} is a collection of Milvus: this command is for index folders alone")
    return location


def introduce_model(location: Location, model: Path | None) -> None:
    """Checks that a file, if one is named, is the model of an index; that of a collection is kept on this machine.

    Raises:
        IndexFolderError: it is another model.
        ModelError: it cannot be run.
    """
    if model is not None:
        open_model(location, model)


def open_index(location: Location, threads: int = 1) -> "SearchIndex":
    """Returns an index opened for reading. Use it as a context, or close it.

    Args:
        location: a folder, or a collection of Milvus.
        threads: of FAISS, for a folder.

    Raises:
        IndexFolderError: it is no index, is damaged, or cannot be reached.
        InputError: a package is missing, or RAY_ADDRESS names a cluster that cannot be joined.
    """
    if isinstance(location, MilvusLocation):
        from indistill.retrieval.milvus.index import MilvusIndex

        return MilvusIndex(location)
    from indistill.retrieval.cluster.shards import list_shards
    from indistill.retrieval.index import Index

    shards = list_shards(location)
    if shards is None:
        return Index(location, threads)
    from indistill.retrieval.cluster.sharded import ShardedIndex

    return ShardedIndex(location, shards, threads)


def open_model(location: Location, model: Path | None = None, threads: int = 0) -> "EmbeddingSession":
    """Returns the model of an index.

    Args:
        location: a folder, or a collection of Milvus.
        model: the same model from elsewhere.
        threads: of ONNX Runtime; 0 for one for each core.

    Raises:
        IndexFolderError: the model is not the one that made the index's vectors, or is not on this machine.
        ModelError: the model cannot be run.
    """
    if isinstance(location, MilvusLocation):
        with open_index(location) as index:
            return index.open_model(model, threads)
    from indistill.retrieval.cluster.shards import list_shards
    from indistill.retrieval.index import open_model as open_folder_model

    shards = list_shards(location)
    return open_folder_model(location if shards is None else shards[0], model, threads)


def describe_index(location: Location) -> "Manifest":
    """Returns what an index is.

    Raises:
        IndexFolderError: it is no index, is damaged, or cannot be reached.
    """
    if isinstance(location, MilvusLocation):
        with open_index(location) as index:
            return index.manifest
    from indistill.retrieval.cluster.shards import list_shards
    from indistill.retrieval.store.generations import read_manifest

    shards = list_shards(location)
    if shards is None:
        return read_manifest(location)
    from indistill.retrieval.cluster.sharded import add_up_manifests

    return add_up_manifests(location, [read_manifest(shard) for shard in shards])


def verify_any(folder: Path, on_progress: Callable[[int], None] = lambda _: None) -> "Verification":
    """Returns what is wrong with an index, or with the shards of a folder; see `verify_index`."""
    from indistill.retrieval.cluster.shards import list_shards
    from indistill.retrieval.store.upkeep import Verification, verify_index

    shards = list_shards(folder)
    if shards is None:
        return verify_index(folder, on_progress)
    found = [verify_index(shard, on_progress) for shard in shards]
    problems = (f"{shard.name}: {line}" for shard, part in zip(shards, found, strict=True) for line in part.problems)
    return Verification(tuple(problems), sum(part.files for part in found), sum(part.items for part in found))


def count_outside(location: Location) -> int:
    """Returns how many images of an index lie outside its gallery, with absolute paths.

    Raises:
        IndexFolderError: it is no index, is damaged, or cannot be reached.
    """
    from indistill.retrieval.cluster.shards import list_shards
    from indistill.retrieval.store.catalogue import Catalogue
    from indistill.retrieval.store.generations import CATALOGUE, name_generation, read_generation
    from indistill.retrieval.where import parse_where

    outside = parse_where("path >= '/' and path < '0'")  # begins with a slash; Milvus has no such `like`
    if isinstance(location, MilvusLocation):
        with open_index(location) as index:
            return len(index.find_ids(outside))

    def count(folder: Path, manifest: "Manifest") -> int:
        with Catalogue(name_generation(folder, manifest.generation) / CATALOGUE) as catalogue:
            ((found,),) = catalogue.select(f"SELECT COUNT(*) FROM items WHERE {outside.sql}", outside.values)
            return int(found)

    return sum(read_generation(folder, partial(count, folder)) for folder in list_shards(location) or [location])


@contextmanager
def change_index(location: Location) -> Iterator["SearchIndex"]:
    """Yields an index that no other process of this machine changes meanwhile.

    Raises:
        IndexFolderError: it cannot be used, or another process changes it.
        InputError: the folder cannot be written to.
    """
    from indistill.retrieval.store.generations import lock_index

    folder, remote = (location.work, True) if isinstance(location, MilvusLocation) else (location, False)
    if remote:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {describe_os_error(error)}") from error
    with lock_index(folder, create=remote), open_index(location) as index:
        yield index


def apply_edit(index: "SearchIndex", edit: "Edit") -> "Changes":
    """Makes a change of an index, unless nothing changes, and tells what happened."""
    from indistill.retrieval.index import Index

    apply: Callable[..., Changes]
    if isinstance(index, Index):
        from indistill.retrieval.store.edit import apply_edit as apply
    else:
        from indistill.retrieval.milvus.edit import apply_edit as apply
    return apply(index, edit)
