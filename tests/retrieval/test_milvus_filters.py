"""Conditions as filters of Milvus: by hand, and against SQLite on any condition."""

import sqlite3
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings

from indistill.retrieval.milvus.filters import translate_condition
from indistill.retrieval.milvus.index import MilvusIndex
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.store.catalogue import SCHEMA
from indistill.retrieval.where import parse_where
from tests.retrieval.milvus import fill_collection, needs_milvus
from tests.retrieval.test_where import INJECTIONS, ITEMS, conditions, find_ids, write

LABELLED = "labelled == true and "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id = 3", "id == 3"),
        ("size > 10.5 and size < 99", "(size_bytes >= 11) and (size_bytes < 99)"),
        ("size = 0.5", "id < 0"),
        ("not size = 0.5", "id >= 0"),
        ("size <= -0.5", "size_bytes <= -1"),
        ("id in (1, 2.5, 3.0)", "id in [1, 3]"),
        ("label = 'a'", LABELLED + '(label == "a")'),
        ("not label = 'a'", LABELLED + '(label != "a")'),
        ("label not in ('a', 'b')", LABELLED + '(label not in ["a", "b"])'),
        ("label is null", "labelled == false"),
        ("not label is null", "labelled == true"),
        ("path is null", "id < 0"),
        ("path < 'b'", 'path < "b"'),
        ("not (id = 1 or id = 2 and size > 3)", "(id != 1) and ((id != 2) or (size_bytes <= 3))"),
        ("path = 'it''s \"so\" \\'", 'path == "it\'s \\"so\\" \\\\"'),
        ("path = 'd\u00f6g'", 'path == "d\u00f6g"'),
        ("modified >= '1970-01-02'", "modified_ns >= 86400000000000"),
    ],
)
def test_a_condition_becomes_a_filter(text: str, expected: str) -> None:
    assert translate_condition(parse_where(text).condition) == expected


@pytest.mark.parametrize(
    "text", ["path like 'a%'", "id = 1 or label like '%b'", "path = 'a\nb'", "label in ('a', '\t')"]
)
def test_what_milvus_cannot_express_has_no_filter(text: str) -> None:
    assert translate_condition(parse_where(text).condition) is None


@pytest.mark.parametrize("text", [*INJECTIONS, '" or id >= 0 or path == "', "\\", '\\"'])
def test_a_text_of_the_user_stays_within_its_quotes(text: str) -> None:
    quoted = text.replace("'", "''")
    expression = translate_condition(parse_where(f"path = '{quoted}'").condition)
    if expression is None:
        assert not text.isprintable()
        return
    inner = expression.removeprefix('path == "')
    assert inner[-1] == '"'
    escapes = inner[:-1].replace("\\\\", "").replace('\\"', "")
    assert '"' not in escapes
    assert "\\" not in escapes


@pytest.fixture(scope="module")
def catalogue() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    rows = [tuple(vars(item).values()) for item in ITEMS]
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusIndex]:
    """Returns the same images in an embedded Milvus Lite."""
    location = MilvusLocation(str(tmp_path_factory.mktemp("lite") / "images.db"), "images")
    angles = np.linspace(0, 1, len(ITEMS))
    fill_collection(location, ITEMS, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    with MilvusIndex(location) as index:
        yield index


@pytest.mark.slow
@needs_milvus
@settings(max_examples=60, deadline=None)
@given(condition=conditions)
def test_the_same_images_meet_a_condition_as_in_sqlite(
    catalogue: sqlite3.Connection, collection: MilvusIndex, condition: tuple
) -> None:
    where = parse_where(write(condition))
    expected = find_ids(catalogue, where)
    assert collection.find_ids(where).tolist() == expected
    hits = collection.search(np.array([[1, 0]], dtype=np.float32), len(ITEMS), where=where)[0]
    assert [hit.id for hit in hits] == expected  # the angle rises with the id
