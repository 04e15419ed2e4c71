"""The options of `indistill search`, and `indistill dedupe`."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from indistill.errors import InputError
from indistill.retrieval.index import Index
from indistill.retrieval.search import SearchOptions, search_images
from indistill.retrieval.store.generations import read_manifest
from indistill.retrieval.where import parse_where
from tests.cli.calls import MAIN, assert_refused, run_cli, run_process, run_with_input, succeed
from tests.cli.files import CLASSES, list_files

Places = dict[str, Path]
GALLERY_SIZE = 40
PER_CLASS = 8


def search(index: Path, *arguments: object) -> list[dict[str, Any]]:
    return json.loads(succeed("search", index, *arguments, "--json").out)["queries"]


def list_ids(answer: dict[str, Any]) -> list[int]:
    return [hit["id"] for hit in answer["hits"]]


def test_an_id_is_searched_by_its_stored_vector(workspace: Places) -> None:
    by_path, by_id, other = search(workspace["index"], list_files(workspace["gallery"])[6], "--id", 7, "--id", 20)
    assert (by_id["query"], other["query"]) == (7, 20)
    assert list_ids(by_id)[0] == 7
    assert list_ids(other)[0] == 20
    assert list_ids(by_id) == list_ids(by_path)


def test_a_search_by_id_alone_needs_no_model(places: Places, copy: Callable[[str], Path]) -> None:
    index = copy("index")
    for model in index.rglob("*.onnx"):
        model.unlink()
    assert search(index, "--id", 3) == search(places["index"], "--id", 3)


def test_an_id_that_is_not_there_is_refused(workspace: Places) -> None:
    result = run_cli("search", workspace["index"], "--id", 41)
    assert_refused(result, f"id 41 is not in the index {workspace['index']}, which holds 40 images")


def test_the_queries_combined_are_the_mean_of_their_vectors(workspace: Places) -> None:
    query = workspace["query"]
    (answer,) = search(workspace["index"], query, "--id", 5, "--id", 30, "--combine", "-k", 5)
    assert answer["query"] == [str(query), 5, 30]
    with Index(workspace["index"]) as opened:
        ids, vectors, _ = opened.read_vectors()
    from indistill.retrieval.index import open_model

    mean = np.mean([open_model(workspace["index"]).embed_images([query])[0], vectors[4], vectors[29]], axis=0)
    scores = vectors @ (mean / np.linalg.norm(mean))
    order = np.lexsort((ids, -scores))[:5]
    assert list_ids(answer) == ids[order].tolist()
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx(scores[order].tolist(), abs=1e-5)


def test_a_threshold_is_the_least_cosine_of_a_hit(workspace: Places) -> None:
    (all_of_them,) = search(workspace["index"], workspace["query"], "-k", GALLERY_SIZE)
    least = all_of_them["hits"][6]["score"] - 1e-4
    (answer,) = search(workspace["index"], workspace["query"], "-k", GALLERY_SIZE, "--threshold", least)
    assert answer["hits"] == [hit for hit in all_of_them["hits"] if hit["score"] >= least]
    (none,) = search(workspace["index"], "--id", 1, "--threshold", 1, "--where", "id != 1")
    assert none["hits"] == []


@pytest.mark.parametrize("label", CLASSES)
def test_a_condition_gives_k_hits_that_meet_it_if_there_are_as_many(workspace: Places, label: str) -> None:
    (all_of_them,) = search(workspace["index"], workspace["query"], "-k", GALLERY_SIZE)
    expected = [hit["id"] for hit in all_of_them["hits"] if hit["label"] == label]
    (answer,) = search(workspace["index"], workspace["query"], "-k", PER_CLASS, "--where", f"label = '{label}'")
    assert list_ids(answer) == expected
    assert [hit["rank"] for hit in answer["hits"]] == list(range(1, PER_CLASS + 1))


def test_a_condition_that_no_image_meets_gives_no_hits(workspace: Places) -> None:
    (answer,) = search(workspace["index"], workspace["query"], "--where", "label = 'whale'")
    assert answer["hits"] == []
    assert succeed("search", workspace["index"], "--id", 1, "--where", "id < 0", "--format", "paths").out == ""


def test_a_condition_that_is_none_is_refused(workspace: Places) -> None:
    result = run_cli("search", workspace["index"], workspace["query"], "--where", "lable = 'one'")
    assert_refused(result, "where: at character 1: there is no field 'lable'", "Did you mean 'label'?")


def test_an_id_is_excluded_by_its_id_and_k_hits_remain(workspace: Places) -> None:
    (whole,) = search(workspace["index"], "--id", 7, "-k", 6)
    (answer,) = search(workspace["index"], "--id", 7, "-k", 5, "--exclude-self")
    assert list_ids(answer) == [i for i in list_ids(whole) if i != 7]
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4, 5]


@pytest.fixture
def index_of_copies(places: Places) -> Path:
    """Returns an index whose gallery holds the first image seven times, and a near-duplicate of it."""
    gallery = places["here"] / "copies"
    shutil.copytree(places["gallery"], gallery)
    first = list_files(gallery)[0]
    for i in range(6):
        shutil.copyfile(first, first.with_name(f"zz copy {i}.png"))
    near = Image.open(first)
    near.putpixel((0, 0), (9, 9, 9))
    near.save(first.with_name("zz near.png"))
    succeed("index", "build", gallery, "--model", places["model"], "--out", places["here"] / "index")
    return places["here"] / "index"


def test_a_file_is_excluded_by_its_content_however_often_it_is_there(places: Places, index_of_copies: Path) -> None:
    query = places["here"] / "asked.png"
    shutil.copyfile(list_files(places["here"] / "copies")[0], query)
    (whole,) = search(index_of_copies, query, "-k", 12)
    (answer,) = search(index_of_copies, query, "-k", 5, "--exclude-self")
    copies = {1, *(hit["id"] for hit in whole["hits"] if "copy" in hit["path"])}
    assert len(copies) == 7
    assert list_ids(answer) == [i for i in list_ids(whole) if i not in copies]
    assert "zz near.png" in answer["hits"][0]["path"]
    (content,) = search_images(
        index_of_copies, [query.read_bytes()], k=5, options=SearchOptions(exclude_self=True)
    ).queries
    assert [hit.id for hit in content[1]] == list_ids(answer)


def test_combined_queries_are_all_excluded(workspace: Places) -> None:
    first = list_files(workspace["gallery"])[0]
    (answer,) = search(workspace["index"], first, "--id", 2, "--combine", "--exclude-self", "-k", GALLERY_SIZE)
    assert sorted(list_ids(answer)) == list(range(3, GALLERY_SIZE + 1))


def test_a_rerank_keeps_the_hits_of_an_exact_index(workspace: Places) -> None:
    (plain,) = search(workspace["index"], workspace["query"], "-k", 5)
    (reranked,) = search(workspace["index"], workspace["query"], "-k", 5, "--rerank", 20)
    assert list_ids(plain) == list_ids(reranked)


def test_many_queries_are_answered_as_each_alone(workspace: Places) -> None:
    queries = [*list_files(workspace["queries"]), *list_files(workspace["gallery"])]
    assert len(queries) > 32  # more than a batch
    answers = search(workspace["index"], *queries, "-k", 3)
    for position in (0, 31, 32, 59):
        (alone,) = search(workspace["index"], queries[position], "-k", 3)
        assert list_ids(alone) == list_ids(answers[position])


def test_paths_are_of_files_that_exist_one_a_line(workspace: Places) -> None:
    (answer,) = search(workspace["index"], workspace["query"], "-k", 4)
    result = succeed("search", workspace["index"], workspace["query"], "-k", 4, "--format", "paths")
    assert result.out.splitlines() == [str(workspace["gallery"] / hit["path"]) for hit in answer["hits"]]
    assert all(Path(line).is_file() for line in result.out.splitlines())
    null = succeed("search", workspace["index"], workspace["query"], "-k", 4, "--format", "paths0")
    assert null.out == result.out.replace("\n", "\0")
    assert result.err == null.err == ""


ODD = '=HYPERLINK(1)\x1b[31m\nred, "quoted"\u202e.png'


@pytest.fixture
def odd_index(places: Places) -> Path:
    """Returns an index of two images, one with a name that would steer a terminal, a spreadsheet and a page."""
    gallery = places["here"] / "odd"
    gallery.mkdir()
    first, second = list_files(places["gallery"])[:2]
    Image.open(first).save(gallery / ODD)
    Image.open(second).save(gallery / "plain.png")
    succeed("index", "build", gallery, "--model", places["model"], "--out", places["here"] / "index")
    return places["here"] / "index"


def test_a_table_shows_no_escapes_of_file_names(places: Places, odd_index: Path) -> None:
    query = places["here"] / "odd" / ODD
    for result in (succeed("search", odd_index, query), succeed("dedupe", odd_index, "--threshold", 0.0001)):
        assert r"=HYPERLINK(1)\x1b[31m\nred" in result.out
        assert r"\u202e" in result.out
        assert all(line.isprintable() for line in result.out.splitlines())


def test_names_are_whole_and_told_apart_where_null_ends_them(places: Places, odd_index: Path) -> None:
    result = succeed("search", odd_index, "--id", 1, "--format", "paths0")
    assert result.out.split("\0")[0] == str(places["here"] / "odd" / ODD)
    broken = succeed("search", odd_index, "--id", 1, "--format", "paths")
    assert broken.err == "warning: 1 of the paths hold a newline: --format paths0 ends each by NUL instead\n"


def test_csv_is_read_back_and_holds_no_formula(places: Places, odd_index: Path) -> None:
    result = run_process("search", odd_index, "--id", 1, "--format", "csv")
    assert result.err == ""
    rows = list(csv.DictReader(io.StringIO(result.out, newline="")))
    assert list(rows[0]) == ["query", "rank", "id", "path", "label", "score"]
    assert [(row["query"], row["rank"], row["id"], row["label"]) for row in rows] == [
        ("id 1", "1", "1", ""),
        ("id 1", "2", "2", ""),
    ]
    (answer,) = search(odd_index, "--id", 1)
    assert rows[0]["path"] == "'" + ODD
    assert answer["hits"][0]["path"] == ODD
    assert [float(row["score"]) for row in rows] == [hit["score"] for hit in answer["hits"]]


def test_csv_lines_end_as_the_rfc_says(workspace: Places) -> None:
    done = run_with_input(b"", "search", workspace["index"], workspace["query"], "-k", 2, "--format", "csv")
    assert done.stdout.count(b"\r\n") == done.stdout.count(b"\n") == 3


def test_jsonl_has_a_query_on_each_line(workspace: Places) -> None:
    queries = list_files(workspace["queries"])[:3]
    lines = succeed("search", workspace["index"], *queries, "--format", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == search(workspace["index"], *queries)


def test_html_is_printed_or_written(places: Places) -> None:
    result = succeed("search", places["index"], "--id", 3, "-k", 2, "--format", "html")
    assert (result.out.startswith("<!doctype html>"), result.out.count("data:image/jpeg"), result.err) == (True, 3, "")
    succeed("search", places["index"], "--id", 3, "-k", 2, "--html", places["out"])
    assert places["out"].read_text(encoding="utf-8") == result.out
    both = succeed("search", places["index"], "--id", 3, "--html", places["out"], "--overwrite", "--format", "paths")
    assert len(both.out.splitlines()) == 10


def test_a_page_of_combined_queries_shows_each(places: Places) -> None:
    arguments = (places["query"], "--id", 3, "--combine", "-k", 2)
    page = succeed("search", places["index"], *arguments, "--format", "html").out
    assert page.count('class="query"') == 2
    assert page.count("data:image/jpeg") == 4


def test_json_beside_another_format_is_refused(workspace: Places) -> None:
    result = run_cli("search", workspace["index"], "--id", 1, "--json", "--format", "csv")
    assert_refused(result, "--json and --format csv: choose one")


@pytest.mark.parametrize(("options", "separator"), [(["-"], b"\n"), (["-", "-0"], b"\0"), (["--null-input"], b"\0")])
def test_queries_are_read_from_standard_input(workspace: Places, options: list[str], separator: bytes) -> None:
    queries = list_files(workspace["queries"])[:3]
    given = separator.join(os.fsencode(query) for query in queries) + separator
    done = run_with_input(given, "search", workspace["index"], *options, "--json")
    assert json.loads(done.stdout)["queries"] == search(workspace["index"], *queries)


def test_queries_of_standard_input_stand_where_the_dash_stands(workspace: Places) -> None:
    first, second, third = list_files(workspace["queries"])[:3]
    done = run_with_input(os.fsencode(second), "search", workspace["index"], first, "-", third, "--json")
    assert [answer["query"] for answer in json.loads(done.stdout)["queries"]] == [str(first), str(second), str(third)]


def test_empty_standard_input_is_refused(workspace: Places) -> None:
    done = run_with_input(b"\n\n", "search", workspace["index"], "-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"indistill: error: standard input holds no path\n"


def test_found_paths_can_be_searched_again(workspace: Places) -> None:
    found = run_with_input(b"", "search", workspace["index"], workspace["query"], "-k", 3, "--format", "paths0").stdout
    done = run_with_input(found, "search", workspace["index"], "-0", "-k", 1, "--format", "paths0")
    assert done.stdout == found


def test_a_search_imports_neither_tables_nor_pages_nor_scipy(workspace: Places) -> None:
    report = f"""
import sys
try:
    {MAIN}
finally:
    heavy = ("rich.table", "rich.progress", "scipy", "jinja2", "torch")
    print("IMPORTED", *(name for name in heavy if name in sys.modules), file=sys.stderr)
"""
    for options in (["--json"], ["--where", "id > 3", "--exclude-self", "--format", "paths"]):
        result = run_process("search", workspace["index"], workspace["query"], *options, code=report)
        assert (result.code, result.err) == (0, "IMPORTED\n")
    assert "jinja2" in run_process("search", workspace["index"], "--id", 1, "--format", "html", code=report).err


def test_the_python_call_takes_paths_bytes_images_and_ids(workspace: Places) -> None:
    path = list_files(workspace["gallery"])[6]
    queries = [path, str(path), path.read_bytes(), Image.open(path), 7]
    results = search_images(workspace["index"], queries, k=3, options=SearchOptions(where=parse_where("id > 2")))
    assert [asked for asked, _ in results.queries] == queries
    first = [hit.id for hit in results.queries[0][1]]
    assert first[0] == 7
    assert all([hit.id for hit in hits] == first for _, hits in results.queries)
    assert results.root == workspace["gallery"]
    assert results.paths == {7: path.relative_to(workspace["gallery"]).as_posix()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": float("nan")}, "the threshold is a cosine, from -1 to 1, not nan"),
        ({"threshold": 1.5}, "from -1 to 1, not 1.5"),
        ({"rerank": -1}, "rerank is a number of hits from 0 on, not -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        SearchOptions(**options)


def test_a_search_that_finds_nothing_says_so(workspace: Places) -> None:
    line = ("search", workspace["index"], workspace["query"], workspace["query"], "-k", 2)
    impossible = "no image of the index meets the condition of --where\n"
    for form in ("table", "json", "paths"):
        assert succeed(*line, "--where", "path like '*one*'", "--format", form).err == impossible
        assert succeed(*line, "--where", "path like '%one%'", "--format", form).err == ""
    none = f"{workspace['query']}: no hits\n"
    assert succeed(*line, "--threshold", 1, "--where", "label = 'one'").err == 2 * none


def test_dedupe_lists_planted_copies_and_no_others(places: Places, index_of_copies: Path) -> None:
    result = succeed("dedupe", index_of_copies, "--threshold", 0.9999, "--json")
    (group,) = json.loads(result.out)["groups"]
    assert [list(image) for image in group["images"]] == [["id", "path", "label", "size_bytes", "score", "copy_of"]] * 8
    paths = [Path(image["path"]).name for image in group["images"]]
    assert paths == [list_files(places["gallery"])[0].name, *(f"zz copy {i}.png" for i in range(6)), "zz near.png"]
    assert [image["copy_of"] for image in group["images"]] == [None, *[1] * 6, None]
    images = read_manifest(index_of_copies).items
    assert result.err == (
        f"1 group of near-duplicates: 8 of {images} images, each with a cosine of 0.9999 (--threshold) or more to the "
        "first of its group\n"
    )


def test_dedupe_finds_the_groups_of_brute_force(workspace: Places) -> None:
    with Index(workspace["index"]) as opened:
        ids, vectors, _ = opened.read_vectors()
    close = vectors @ vectors.T
    threshold = float(np.sort(close[np.triu_indices(len(ids), 1)])[-12]) - 1e-4
    found = json.loads(succeed("dedupe", workspace["index"], "--threshold", threshold, "--json").out)["groups"]
    groups: list[list[int]] = []
    for row in range(len(ids)):
        own = next((group for group in groups if close[row, group[0]] >= threshold), None)
        if own is None:
            groups.append([row])
        else:
            own.append(row)
    expected = {frozenset(ids[group].tolist()) for group in groups if len(group) > 1}
    assert {frozenset(image["id"] for image in group["images"]) for group in found} == expected
    assert len(expected) > 1
    assert all(image["score"] >= threshold - 1e-6 for group in found for image in group["images"])


def test_dedupe_prints_the_same_groups_in_every_format(places: Places, index_of_copies: Path) -> None:
    arguments = ("dedupe", index_of_copies, "--threshold", 0.9999)
    groups = json.loads(succeed(*arguments, "--json").out)["groups"]
    assert [json.loads(line) for line in succeed(*arguments, "--format", "jsonl").out.splitlines()] == groups
    rows = list(csv.DictReader(io.StringIO(succeed(*arguments, "--format", "csv").out)))
    assert [row["path"] for row in rows] == [image["path"] for image in groups[0]["images"]]
    assert {row["group"] for row in rows} == {"1"}
    lines = succeed(*arguments).out.splitlines()
    assert lines[0].split() == ["cosine", "id", "label", "path"]
    assert lines[1] == "group 1: 8 images"
    assert len(lines) == 10
    assert lines[3].endswith("zz copy 0.png  (same file as 1)")
    written = succeed(*arguments, "--html", places["out"])
    assert written.out == ""
    page = places["out"].read_text(encoding="utf-8")
    assert page == succeed(*arguments, "--format", "html").out
    assert page.count("data:image/jpeg") == 8


def test_dedupe_without_duplicates_prints_nothing(workspace: Places) -> None:
    result = succeed("dedupe", workspace["index"], "--threshold", 1)
    assert (result.out, result.err.split(":")[0]) == ("", "0 groups of near-duplicates")


def test_dedupe_refuses_a_threshold_that_is_no_likeness(workspace: Places) -> None:
    result = run_cli("dedupe", workspace["index"], "--threshold", 0)
    assert_refused(result, "the threshold of near-duplicates is a cosine above 0 and up to 1, not 0.0")
