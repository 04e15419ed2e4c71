"""The commands of an index on a collection of Milvus: client processes of one server, and what each refuses."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.calls import MAIN, assert_refused, fill, make_environment, run_cli, run_process, succeed
from tests.cli.files import write_digits
from tests.retrieval.milvus import LiteServer, needs_milvus

Places = dict[str, Path]
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["pymilvus", "tenacity", "milvus_lite"])
from indistill.cli.main import main
main()
"""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives commands a home whose ~/.cache they may fill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def remote(places: Places, server: LiteServer) -> dict[str, Any]:
    """Returns the places with `uri`, the server, and `there`, the workspace's index in a collection of it."""
    succeed(*fill(f"index push {{index}} --to {server.uri} --collection shared", places))
    return places | {"uri": server.uri, "there": f"{server.uri}#shared"}


def call(line: str, places: dict[str, Any]) -> Any:
    return json.loads(succeed(*fill(line, places)).out)


@pytest.mark.slow
@needs_milvus
def test_two_processes_push_one_index_and_search_it_while_they_do(places: Places, server: LiteServer) -> None:
    line = f"index push {{index}} --to {server.uri} --collection both --json"
    command = [sys.executable, "-c", MAIN, *fill(line, places)]
    options: dict[str, Any] = {"env": make_environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    pushing = [subprocess.Popen(command, **options) for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in pushing]
    assert [process.returncode for process in pushing] == [0, 0], ended
    for out, _ in ended:
        pushed = json.loads(out)
        assert pushed["sent"] + pushed["present"] == pushed["items"] == 40
    search = [sys.executable, "-c", MAIN, *fill(f"search {server.uri}#both {{query}} --json", places)]
    searching = [subprocess.Popen(search, **options) for _ in range(2)]
    answers = [json.loads(process.communicate(timeout=60)[0])["queries"][0]["hits"] for process in searching]
    expected = call("search {index} {query} --json", places)["queries"][0]["hits"]
    for hits in answers:
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in expected], abs=1e-6)


@pytest.mark.slow
@needs_milvus
def test_evaluate_measures_the_same_as_of_the_folder(remote: dict[str, Any]) -> None:
    for options in ("--queries {queries}", "--leave-one-out", "--queries {queries} --also {there} --depth 20"):
        local, there = (call(f"evaluate {{{name}}} {options} --json", remote) for name in ("index", "there"))
        assert list_numbers(there) == pytest.approx(list_numbers(local), abs=1e-6)


@pytest.mark.slow
@needs_milvus
def test_dedupe_lists_the_same_groups_as_of_the_folder(remote: dict[str, Any]) -> None:
    local, there = (call(f"dedupe {{{name}}} --threshold 0.97 --json", remote) for name in ("index", "there"))
    assert there == local
    assert len(local["groups"]) > 0


def list_numbers(value: object) -> list[float]:
    """Returns all numbers of a report, by the order in which they stand."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in list_numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in list_numbers(part)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
@needs_milvus
def test_the_commands_of_an_index_take_a_collection(remote: dict[str, Any], tmp_path: Path) -> None:
    succeed(*fill("index push {index} --to {uri} --collection living --type HNSW", remote))
    remote["living"] = f"{remote['uri']}#living"
    remote["more"] = write_digits(tmp_path / "more", 20, 2)
    info = succeed(*fill("index info {living}", remote)).out
    assert info.startswith(f"{remote['living']}: 40 images, 64 dimensions, HNSW, ef 128, generation 1\ngallery ")
    added = succeed(*fill("index add {living} {more} --label new", remote)).out
    assert added == f"{remote['living']}: 10 added; 50 images, generation 2\n"
    arguments = fill("search {living} {query} --json -k 50", remote)
    hits = json.loads(succeed(*arguments, "--where", "label = 'new'").out)["queries"][0]["hits"]
    assert len(hits) == 10
    removed = succeed(*fill("index remove {living} --json --where", remote), "label = 'new'").out
    assert json.loads(removed)["removed"] == 10
    synced = succeed(*fill("index sync {living}", remote)).out
    assert synced == f"{remote['living']}: 40 unchanged; 40 images, generation 3\n"
    again = call("index push {index} --to {uri} --collection living --json", remote)
    assert (again["sent"], again["present"]) == (0, 40)
    copied = call("index push {living} --to {uri} --collection copied --json", remote)
    assert (copied["sent"], copied["factory"]) == (40, "FLAT")
    for command in ("verify", "rebuild", "compact"):
        assert_refused(run_cli(*fill(f"index {command} {{living}}", remote)), "is a collection of Milvus: this command")


@contextmanager
def serve(*arguments: str) -> Iterator[httpx.Client]:
    """Serves in a process of its own."""
    command = [sys.executable, "-c", MAIN, "serve", *arguments, "--port", "0"]
    options: dict[str, Any] = {"env": make_environment(), "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            assert process.stdout is not None
            with httpx.Client(base_url=process.stdout.readline().strip(), timeout=20) as client:
                yield client
        finally:
            process.terminate()


@pytest.mark.slow
@needs_milvus
def test_serve_answers_from_a_collection_and_sees_what_others_change(remote: dict[str, Any], tmp_path: Path) -> None:
    succeed(*fill("index push {index} --to {uri} --collection served", remote))
    remote["served"] = f"{remote['uri']}#served"
    expected = call("search {index} {query} --json", remote)["queries"][0]["hits"]
    with serve(remote["served"]) as client, remote["query"].open("rb") as image:
        hits = client.post("/search", files={"image": image}).json()["hits"]
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected]
        assert client.post("/search", json={"id": 7}, params={"k": 1}).json()["hits"][0]["id"] == 7
        assert client.post("/search", json={"id": 999}).status_code == 404
        listed = client.get("/items", params={"after": 5, "limit": 3}).json()
        assert [item["id"] for item in listed["items"]] == [6, 7, 8]
        assert client.get("/images/7").headers["content-type"] == "image/jpeg"
        assert client.get("/index").json()["items"] == 40
        succeed(*fill("index remove {served} --id 7", remote))
        assert client.post("/search", json={"id": 7}).status_code == 404
        for _ in range(100):
            if client.get("/index").json()["items"] == 39:
                break
            time.sleep(0.1)
        assert client.get("/index").json()["generation"] == 2


@pytest.mark.parametrize(
    "line",
    [
        "index push {index} --to http://127.0.0.1:1 --collection a",
        "index push {index} --to {none}.db --collection a",
        "search http://127.0.0.1:1#a {query}",
        "serve http://127.0.0.1:1#a",
        "evaluate http://127.0.0.1:1#a --queries {queries}",
        "index add http://127.0.0.1:1#a {query}",
        "index remove http://127.0.0.1:1#a --id 1",
        "index sync http://127.0.0.1:1#a",
        "index info http://127.0.0.1:1#a",
    ],
)
def test_without_the_extra_each_command_says_what_to_install(places: Places, line: str) -> None:
    result = run_process(*fill(line, places), code=WITHOUT)
    assert_refused(result, "which this installation lacks: pip install 'indistill[milvus]'")


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("index push {index} --to milvus --collection a", "'milvus' is no address of Milvus: give http://HOST:19530"),
        ("index push {index} --to http://h:1 --collection a-b", "'http://h:1#a-b': a collection's name has letters"),
        ("index push {none} --to http://h:1 --collection a", "is not an index"),
        ("search http://h:1 {query}", "'http://h:1' names no collection: give http://h:1#COLLECTION"),
        ("index push {index} --to unix://x --collection a", "'unix://x' is no address of Milvus: give http://HOST"),
        ("index info unix://x#a", "'unix://x' is no address of Milvus: give http://HOST:19530"),
        ("index info http://127.0.0.1:99999#a", "'http://127.0.0.1:99999' is no address of Milvus (Port out of range"),
        ("search http://[::1#c {query}", "'http://[::1' is no address of Milvus (Invalid IPv6 URL)"),
        ("index info http://h:1#1a", "a collection's name has letters, digits and underscores"),
        ("index merge {index} http://h:1#a --out {out}", "http://h:1#a is a collection of Milvus: this command is for"),
    ],
)
def test_what_is_no_collection_is_refused(places: Places, line: str, fragment: str) -> None:
    assert_refused(run_cli(*fill(line, places)), fragment)


@pytest.mark.slow
@needs_milvus
def test_what_cannot_be_reached_is_one_line(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indistill.retrieval.milvus.client.PATIENCE_S", 0.3)
    assert_refused(run_cli(*fill("search http://127.0.0.1:1#a {query}", places)), "no Milvus server answers at")
    assert_refused(run_cli(*fill("index info {none}.db#a", places)), "nothing.db does not exist: make it by")


@pytest.mark.slow
@needs_milvus
def test_a_push_never_drops_its_own_source(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    succeed(*fill("index push {index} --to e.db --collection c", places))
    for option in ("", "--overwrite"):
        line = f"index push {{here}}/e.db#c --to e.db --collection c {option}"
        assert_refused(run_cli(*fill(line, places)), "e.db#c itself: choose another --collection")
    assert call("index info e.db#c --json", places)["items"] == 40


@pytest.mark.slow
@needs_milvus
def test_another_model_is_refused(remote: dict[str, Any]) -> None:
    line = "search {there} {query} --model {index}/CURRENT"
    assert_refused(run_cli(*fill(line, remote)), "is not the model of", "#shared (SHA-256")
