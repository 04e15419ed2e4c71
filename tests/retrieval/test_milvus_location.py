"""Addresses of Milvus: what they may be, and when two of them are one collection. Needs no Milvus."""

import os
from pathlib import Path

import pytest

from indistill.errors import InputError
from indistill.retrieval.milvus.location import MilvusLocation, name_collection


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://h:port", "Port could not be cast"),
        ("http://h:0", "0 is no port"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://", "it names no host"),
        ("http://:19530", "it names no host"),
        ("http://a b:1", "'a b' is no host"),
        ("http://h:1/a/b", "after the port there may be /DATABASE"),
        ("http://h:1/files.db", "after the port there may be /DATABASE"),
        ("http://h:1?x=1", "after the port there may be /DATABASE"),
        ("unix://x", "is no address of Milvus: give"),
        ("unix:///tmp/x.db", "is no address of Milvus: give"),
        ("ftp://h/x.db", "is no address of Milvus: give"),
        ("milvus", "is no address of Milvus: give"),
    ],
)
def test_what_is_no_address_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(InputError) as refusal:
        name_collection(uri, "c")
    assert str(refusal.value).startswith(f"'{uri}' is no address of Milvus")
    assert reason in str(refusal.value)
    assert "give http://HOST:19530, or a FILE.db" in str(refusal.value)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://h:1/", "http://h:1"),
        ("http:/h:1", "http://h:1"),
        ("HTTP://Host", "http://host:19530"),
        ("tcp://h:1", "http://h:1"),
        ("https://h/default/", "https://h:443"),
        ("http://h:1/photos/", "http://h:1/photos"),
        ("http://user:word@h:1/", "http://user:word@h:1"),
        ("http://[::1]:7", "http://[::1]:7"),
        ("some/x.db", "some/x.db"),
    ],
)
def test_a_server_has_one_form_and_one_lock(uri: str, expected: str) -> None:
    location = name_collection(uri, "c")
    assert location == MilvusLocation(expected, "c")
    assert location.work == MilvusLocation(expected, "c").work


def test_one_collection_is_known_by_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "e.db")
    file = MilvusLocation("e.db", "c")
    for same in (str(tmp_path / "e.db"), "link.db", f"./{os.curdir}/e.db"):
        assert file.is_same(MilvusLocation(same, "c"))
    server = MilvusLocation("http://127.0.0.1", "c")
    for same in ("http://127.0.0.1:19530/", "tcp://localhost:19530", "http://user:word@127.0.0.1/default"):
        assert server.is_same(MilvusLocation(same, "c"))
    for other in ("http://127.0.0.1:19531", "http://127.0.0.2", "http://127.0.0.1/photos", "http://x.invalid", "e.db"):
        assert not server.is_same(MilvusLocation(other, "c"))
    assert not server.is_same(MilvusLocation(server.uri, "d"))
    assert not file.is_same(MilvusLocation("other.db", "c"))
