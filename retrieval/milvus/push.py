"""From an index to a collection of Milvus; what is there already is not sent again."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from indistill import __version__
from indistill.errors import ExistsError, IndexFolderError, InputError
from indistill.retrieval.milvus.client import Connection, require_place
from indistill.retrieval.milvus.collection import (
    ITEM_FIELDS,
    CollectionState,
    Kind,
    choose_search,
    connect,
    count_batch,
    count_rows,
    create_collection,
    is_index,
    read_collection_state,
    read_item,
    upsert_items,
    write_collection_state,
)
from indistill.retrieval.milvus.index import SCAN_ROWS, MilvusIndex, describe_collection
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.milvus.model import keep_model
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.store.generations import Manifest

OVERWRITE = "choose another --collection, or replace it with --overwrite"


@dataclass(frozen=True)
class Pushed:
    """How many images were sent, how many were there already, and what the collection is now."""

    sent: int
    present: int
    manifest: Manifest


def push_index(
    source: SearchIndex,
    target: MilvusLocation,
    kind: Kind | None = None,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Pushed:
    """Makes a collection hold the images of an index. A push that was cut off goes on when it is given again.

    Args:
        source: the index.
        target: the collection.
        kind: of Milvus's index; default that of a collection that is there, else exact search.
        overwrite: whether an older collection may be replaced.
        on_progress: called with the number of images just sent or found.

    Raises:
        ExistsError: the collection holds something else, or more.
        IndexFolderError: Milvus cannot be reached, or the file is something else's.
        InputError: a package is missing, or the collection is the index.
    """
    if isinstance(source, MilvusIndex) and source.location.is_same(target):
        raise InputError(f"{target} is the index {source.name} itself: choose another --collection")
    session, manifest = source.open_model(), source.manifest
    new = CollectionState(
        complete=False,
        generation=1,
        model_sha256=session.sha256,
        preprocessing=session.artefact.preprocessing.to_dict(),
        dimension=manifest.dimension,
        root=manifest.root,
        source=manifest.source,
        kind=kind or "FLAT",
        parameters=choose_search(kind or "FLAT", manifest.items),
        version=__version__,
    )
    connection = connect(target)
    require_place(target)
    try:
        state = _open_collection(connection, new, kind, manifest.items, overwrite=overwrite)
        connection.call("load_collection")
        present = _list_present(connection, source)
        on_progress(len(present))
        missing = [item for item in source.list_items() if item.id not in present]
        step = count_batch(manifest.dimension)
        for start in range(0, len(missing), step):
            items = missing[start : start + step]
            upsert_items(connection, items, source.find_vectors([item.id for item in items]))
            on_progress(len(items))
        if missing or not state.complete or state.source != new.source:
            connection.call("flush")
            generation = state.generation + state.complete
            state = replace(new, generation=generation, kind=state.kind, parameters=state.parameters, complete=True)
            write_collection_state(connection, state)
        keep_model(session.path, session.sha256)
        return Pushed(len(missing), len(present), describe_collection(state, count_rows(connection)))
    finally:
        connection.close()


def _open_collection(
    connection: Connection, new: CollectionState, kind: Kind | None, count: int, *, overwrite: bool
) -> CollectionState:
    """Returns what is known of the collection, which is made where there is none."""
    location, exists = connection.location, connection.has_collection()
    if exists and not is_index(connection):
        raise ExistsError(
            f"the collection {location} exists and is not an index of indistill; choose another --collection"
        )
    if exists and overwrite:
        connection.call("drop_collection")
    if not exists or overwrite:
        try:
            create_collection(connection, new, count)
        except IndexFolderError:
            if not connection.has_collection():  # else another client was first
                raise
    found = read_collection_state(connection)
    if found is None:
        raise IndexFolderError(f"Milvus at {location} keeps no properties of a collection: it is too old")
    if (found.model_sha256, found.preprocessing) != (new.model_sha256, new.preprocessing):
        raise ExistsError(
            f"the collection {location} has another model (SHA-256 {found.model_sha256[:12]}...) than the index "
            f"({new.model_sha256[:12]}...); {OVERWRITE}"
        )
    if found.root != new.root:
        raise ExistsError(f"the collection {location} is of the gallery {found.root}, not {new.root}; {OVERWRITE}")
    if kind is not None and found.kind != kind:
        raise ExistsError(f"the collection {location} has the type {found.kind}, not {kind}; {OVERWRITE}")
    return found


def _list_present(connection: Connection, source: SearchIndex) -> set[int]:
    """Returns the ids of images that the collection has as the index has them."""
    present: set[int] = set()
    for rows in connection.scan("", ITEM_FIELDS, SCAN_ROWS):
        items = source.find_items([row["id"] for row in rows])
        strange = next((row for row in rows if row["id"] not in items), None)
        if strange is not None:
            raise ExistsError(
                f"the collection {connection.location} has images that the index has not, such as id {strange['id']}; "
                f"{OVERWRITE}"
            )
        present |= {row["id"] for row in rows if read_item(row) == items[row["id"]]}
    return present
