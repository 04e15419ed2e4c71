"""The answers of `indistill search`: as JSON, as text, and as a page that needs no other file."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.calls import succeed
from tests.cli.files import CLASSES, list_files

Places = dict[str, Path]
Copy = Callable[[str], Path]
GALLERY_SIZE = 40


def search(index: Path, *arguments: object) -> list[dict[str, Any]]:
    return json.loads(succeed("search", index, *arguments, "--json").out)["queries"]


def test_the_json_has_exactly_this_form(workspace: Places) -> None:
    result = succeed("search", workspace["index"], workspace["query"], "-k", 3, "--json")
    answer = json.loads(result.out)
    assert list(answer) == ["queries"]
    (query,) = answer["queries"]
    assert list(query) == ["query", "hits"]
    assert query["query"] == str(workspace["query"])
    assert len(query["hits"]) == 3
    for hit in query["hits"]:
        assert list(hit) == ["rank", "id", "path", "label", "score"]
        assert [type(value) for value in hit.values()] == [int, int, str, str, float]
    assert result.err == ""


def test_hits_are_ranked_from_one_by_falling_score(workspace: Places) -> None:
    (query,) = search(workspace["index"], workspace["query"], "-k", 12)
    assert [hit["rank"] for hit in query["hits"]] == list(range(1, 13))
    scores = [hit["score"] for hit in query["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.000001 <= score <= 1.000001 for score in scores)


def test_ids_and_paths_are_those_of_the_gallery_in_the_order_of_its_paths(workspace: Places) -> None:
    (query,) = search(workspace["index"], workspace["query"], "-k", GALLERY_SIZE)
    found = {hit["id"]: (hit["path"], hit["label"]) for hit in query["hits"]}
    files = [path.relative_to(workspace["gallery"]) for path in list_files(workspace["gallery"])]
    assert found == {i: (path.as_posix(), path.parts[0]) for i, path in enumerate(files, start=1)}


def test_every_image_of_the_gallery_finds_itself_first(workspace: Places) -> None:
    files = list_files(workspace["gallery"])
    answers = search(workspace["index"], *files, "-k", 1)
    assert [workspace["gallery"] / answer["hits"][0]["path"] for answer in answers] == files
    assert all(answer["hits"][0]["score"] == pytest.approx(1, abs=1e-5) for answer in answers)


def test_most_of_the_first_hits_are_of_the_querys_class(workspace: Places) -> None:
    answers = search(workspace["index"], *list_files(workspace["queries"]), "-k", 1)
    right = [answer["hits"][0]["label"] == Path(answer["query"]).parent.name for answer in answers]
    assert sum(right) / len(right) > 0.6  # chance is 0.2


def test_a_k_larger_than_the_gallery_gives_the_whole_gallery(workspace: Places) -> None:
    (query,) = search(workspace["index"], workspace["query"], "--top", 1000)
    assert sorted(hit["id"] for hit in query["hits"]) == list(range(1, GALLERY_SIZE + 1))


def test_ten_hits_are_given_unless_told(workspace: Places) -> None:
    (query,) = search(workspace["index"], workspace["query"])
    assert len(query["hits"]) == 10


def test_several_queries_are_answered_in_their_order_as_each_alone(workspace: Places) -> None:
    queries = list_files(workspace["queries"])[::6]
    queries.append(queries[0])
    together = search(workspace["index"], *queries, "-k", 5)
    assert [answer["query"] for answer in together] == [str(query) for query in queries]
    assert together[0] == together[-1]
    for answer, query in zip(together, queries, strict=True):
        (alone,) = search(workspace["index"], query, "-k", 5)
        assert [hit["id"] for hit in alone["hits"]] == [hit["id"] for hit in answer["hits"]]
        assert [hit["score"] for hit in alone["hits"]] == pytest.approx([h["score"] for h in answer["hits"]], abs=1e-5)


def test_the_indexs_model_from_elsewhere_gives_the_same_hits(workspace: Places) -> None:
    own, given = (
        search(workspace["index"], workspace["query"], *options) for options in ((), ("--model", workspace["model"]))
    )
    assert own == given


def test_an_index_that_was_moved_answers_as_before(workspace: Places, copy: Copy) -> None:
    assert search(copy("index"), workspace["query"]) == search(workspace["index"], workspace["query"])


def test_paths_are_relative_to_the_gallery_however_it_was_named(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places["gallery"])
    succeed("index", "build", "../gallery/.", "--model", places["model"], "--out", places["out"])
    monkeypatch.chdir(places["here"])
    assert search(Path("out"), places["query"]) == search(places["index"], places["query"])


def test_text_has_a_line_for_each_hit(workspace: Places) -> None:
    (answer,) = search(workspace["index"], workspace["query"], "-k", 2)
    lines = succeed("search", workspace["index"], workspace["query"], "-k", 2).out.splitlines()
    assert lines[0].split() == ["rank", "cosine", "id", "label", "path"]
    assert lines[1] == str(workspace["query"])
    for line, hit in zip(lines[2:], answer["hits"], strict=True):
        rank, score, number, label, path = line.split(maxsplit=4)
        assert (int(rank), int(number), label, path) == (hit["rank"], hit["id"], hit["label"], hit["path"])
        assert float(score) == pytest.approx(hit["score"], abs=1e-4)


UNICODE = ("日本/富士 山.png", "zürich/naïve – “façade”.png", "zürich/🐈.png", "日本/a & <b>.png")


@pytest.fixture
def unicode_index(places: Places) -> Path:
    gallery = places["here"] / "画像"
    for name, source in zip(UNICODE, list_files(places["gallery"])[::9], strict=False):
        (gallery / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).save(gallery / name)
    index = places["here"] / "índice"
    succeed("index", "build", gallery, "--model", places["model"], "--out", index)
    return index


def test_unicode_names_come_back_as_they_are(places: Places, unicode_index: Path) -> None:
    for name in UNICODE:
        query = places["here"] / "画像" / name
        result = succeed("search", unicode_index, query, "-k", 1, "--json")
        ((answer,),) = json.loads(result.out).values()
        assert (answer["query"], answer["hits"][0]["path"]) == (str(query), name)
        assert answer["hits"][0]["label"] == name.split("/")[0]
        assert name in result.out  # not escaped
        assert name in succeed("search", unicode_index, query, "-k", 1).out


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_no_other_file_and_no_network(places: Places) -> None:
    queries = list_files(places["queries"])[:2]
    result = succeed("search", places["index"], *queries, "-k", 4, "--html", places["out"])
    assert result.out == ""
    assert result.err == f"wrote {places['out']}\n"
    text = places["out"].read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"https?://|file:|//[a-z]|@import|url\(", re.sub(r'"data:image/[^"]*"', "", text))
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert len(page.references) == len(queries) * (1 + 4)
    for reference in page.references:
        kind, _, data = reference.partition(",")
        assert re.fullmatch(r"data:image/(jpeg|png|webp);base64", kind)
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()
    assert str(places["gallery"]) not in text


def test_the_page_names_queries_and_hits(places: Places, unicode_index: Path) -> None:
    query = places["here"] / "画像" / UNICODE[3]
    succeed("search", unicode_index, query, "--html", places["out"])
    page = Page(places["out"].read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert f"query {query.parent.name}/{query.name}" in text  # many folders have a 0001.jpg
    for name in UNICODE:
        assert name in text
    assert "b" not in page.tags  # names are escaped


def test_the_page_shows_an_image_that_is_gone_as_missing(places: Places, copy: Copy) -> None:
    gallery = copy("gallery")
    succeed("index", "build", gallery, "--model", places["model"], "--out", places["here"] / "index")
    shutil.rmtree(gallery)
    result = succeed("search", places["here"] / "index", places["query"], "-k", 3, "--html", places["out"])
    assert result.err == (
        f"wrote {places['out']}\nwarning: 3 of the 4 images of the page are not shown: their files are not there, or "
        "cannot be read\n"
    )
    page = Page(places["out"].read_text(encoding="utf-8"))
    assert len(page.references) == 1
    assert [text for text in page.text if text == "no image"] == ["no image"] * 3


def test_json_is_printed_beside_the_page_where_both_are_asked_for(places: Places) -> None:
    answers = search(places["index"], places["query"], "--html", places["out"])
    assert answers == search(places["index"], places["query"])
    assert places["out"].is_file()


def test_overwrite_replaces_the_page(places: Places) -> None:
    places["out"].write_text("older", encoding="utf-8")
    succeed("search", places["index"], places["query"], "--html", places["out"], "--overwrite")
    assert places["out"].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_labels_of_the_gallery_are_its_folders(workspace: Places) -> None:
    (answer,) = search(workspace["index"], workspace["query"], "-k", GALLERY_SIZE)
    assert {hit["label"] for hit in answer["hits"]} == set(CLASSES)
