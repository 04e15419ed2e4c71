"""How an index lies in a collection of Milvus: its fields, and what is known of all of it, in a property."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isqrt
from typing import Any, Literal, get_args

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings
from indistill.files.formats import COLLECTION, require_format
from indistill.retrieval.milvus.client import TOKEN_VARIABLE, Connection, Row
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.store.catalogue import CatalogueItem

Kind = Literal["FLAT", "HNSW", "IVF_FLAT"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROPERTY = "indistill"
SHA256 = re.compile(r"[0-9a-f]{64}")
ITEM_FIELDS = ["id", "path", "label", "labelled", "sha256", "size_bytes", "modified_ns"]
LONGEST_TEXT = 65_535  # bytes, of Milvus
ROWS, BATCH_BYTES = 1000, 4 * 2**20  # of one message; servers take 64 MB
ROW_BYTES = 512  # of a row without its vector, about


@dataclass(frozen=True)
class CollectionState:
    """What is known of a collection that holds an index.

    Attributes:
        complete: whether its first push has ended.
        generation: counts the changes, from 1.
        model_sha256: of the model that made the vectors.
        preprocessing: of that model.
        dimension: D of the vectors.
        root: the gallery's folder, to which paths are relative; or its data spec.
        source: the data spec that `sync` follows, as of a manifest.
        kind: of Milvus's index.
        parameters: of its search.
        version: of indistill.
        format: of the collection.
    """

    complete: bool
    generation: int
    model_sha256: str
    preprocessing: dict[str, Any]
    dimension: int
    root: str
    kind: Kind
    version: str
    source: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    format: int = COLLECTION.version


def connect(location: MilvusLocation) -> Connection:
    """Returns a connection that has not been used yet, with the token of the environment."""
    return Connection(location, os.environ.get(TOKEN_VARIABLE, ""))


def create_collection(connection: Connection, state: CollectionState, count: int) -> None:
    """Makes an empty collection for an index of some number of images."""
    from pymilvus import DataType

    schema = connection.prepare("create_schema", auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    for name in ("path", "label"):
        schema.add_field(name, DataType.VARCHAR, max_length=LONGEST_TEXT)
    schema.add_field("labelled", DataType.BOOL)
    schema.add_field("sha256", DataType.VARCHAR, max_length=64)
    schema.add_field("size_bytes", DataType.INT64)
    schema.add_field("modified_ns", DataType.INT64)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=state.dimension)
    index = connection.prepare("prepare_index_params")
    index.add_index("vector", index_type=state.kind, metric_type="IP", params=choose_build(state.kind, count))
    for name in ("path", "sha256"):
        index.add_index(name, index_type="INVERTED")
    connection.call(
        "create_collection",
        schema=schema,
        consistency_level="Strong",  # a search sees what was acknowledged before it
        properties={PROPERTY: _write_state(state)},
    )
    connection.call("create_index", index_params=index, sync=False)  # else pymilvus sleeps for each, of an empty one


def choose_build(kind: Kind, count: int) -> dict[str, int]:
    """Returns the parameters with which Milvus builds an index of some number of vectors."""
    if kind == "HNSW":
        return {"M": 32, "efConstruction": 200}
    return {"nlist": _count_lists(count)} if kind == "IVF_FLAT" else {}


def choose_search(kind: Kind, count: int) -> dict[str, int]:
    """Returns the parameters with which it is searched: for a recall of 0.95 and more of embeddings of images."""
    if kind == "HNSW":
        return {"ef": 128}
    return {"nprobe": max(16, _count_lists(count) // 16)} if kind == "IVF_FLAT" else {}


def is_index(connection: Connection) -> bool:
    """Returns whether a collection that exists was made for an index, also where what is known of it is damaged."""
    return _read_property(connection) is not None


def read_collection_state(connection: Connection) -> CollectionState | None:
    """Returns what is known of a collection; None where it does not hold an index.

    Raises:
        IndexFolderError: there is no such collection, it cannot be reached, is damaged, or of another format.
    """
    text = _read_property(connection)
    if text is None:
        return None
    try:
        content = json.loads(text)
        require_format(COLLECTION, content["format"], f"the collection {connection.location}", IndexFolderError)
        return _check_state(CollectionState(**content))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IndexFolderError(
            f"the collection {connection.location} is damaged: its property '{PROPERTY}' cannot be read; push the "
            "index again with --overwrite"
        ) from error


def _read_property(connection: Connection) -> str | None:
    found: str | None = connection.call("describe_collection").get("properties", {}).get(PROPERTY)
    return found


def _check_state(state: CollectionState) -> CollectionState:
    """Returns what was read if it can be; raises ValueError if not, as anyone may write the property."""
    right = (
        isinstance(state.complete, bool)
        and all(isinstance(text, str) for text in (state.model_sha256, state.root, state.source, state.version))
        and SHA256.fullmatch(state.model_sha256)
        and state.kind in KINDS
        and isinstance(state.preprocessing, dict)
        and isinstance(state.parameters, dict)
        and all(_is_number(number) for number in (state.generation, state.dimension, *state.parameters.values()))
    )
    if not right:
        raise ValueError("a field has a wrong type")
    return state


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def write_collection_state(connection: Connection, state: CollectionState) -> None:
    """Puts what the collection says of itself in the place of what it said before."""
    connection.call("alter_collection_properties", properties={PROPERTY: _write_state(state)})


def count_rows(connection: Connection) -> int:
    """Returns the number of images."""
    return int(connection.call("query", filter="", output_fields=["count(*)"])[0]["count(*)"])


def upsert_items(connection: Connection, items: Sequence[CatalogueItem], vectors: Embeddings) -> None:
    """Writes images with their vectors (N, D), in place of those that have their ids; it is kept when this returns."""
    step = count_batch(vectors.shape[1])
    for start in range(0, len(items), step):
        rows = [
            {
                "id": item.id,
                "path": item.path,
                "label": item.label or "",
                "labelled": item.label is not None,
                "sha256": item.sha256,
                "size_bytes": item.size_bytes,
                "modified_ns": item.modified_ns,
                "vector": vector,
            }
            for item, vector in zip(items[start : start + step], vectors[start : start + step], strict=True)
        ]
        connection.call("upsert", data=rows)


def delete_items(connection: Connection, ids: Sequence[int]) -> None:
    """Removes images."""
    for start in range(0, len(ids), ROWS):
        connection.call("delete", ids=list(ids[start : start + ROWS]))


def read_item(row: Row) -> CatalogueItem:
    """Returns the image of a row."""
    label = row["label"] if row["labelled"] else None
    return CatalogueItem(row["id"], row["path"], label, row["sha256"], row["size_bytes"], row["modified_ns"])


def count_batch(dimension: int) -> int:
    """Returns how many rows with their vectors go into one message."""
    return max(1, min(ROWS, BATCH_BYTES // (4 * dimension + ROW_BYTES)))


def _count_lists(count: int) -> int:
    return max(1, min(4 * isqrt(count), count // 40, 65_536))


def _write_state(state: CollectionState) -> str:
    return json.dumps(asdict(state))
