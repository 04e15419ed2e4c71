"""`evaluate` as deployed, with its protocols, intervals, comparisons, ground truth and page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indistill.retrieval.index import Index
from tests.cli.calls import Result, fill, succeed
from tests.cli.files import list_files

Places = dict[str, Path]
Refuse = Callable[..., None]
Copy = Callable[[str], Path]


def run(places: Places, line: str) -> Result:
    return succeed(*fill(f"evaluate {line}", places))


def read(places: Places, line: str) -> dict[str, Any]:
    return json.loads(run(places, f"{line} --json").out)


def test_an_exact_index_at_full_depth_is_as_good_as_exact_search(workspace: Places) -> None:
    figures = read(workspace, "{index} --queries {queries}")
    deployed = figures["deployed"]
    with Index(workspace["index"]) as opened:
        manifest = opened.manifest
    assert deployed["depth"] == deployed["items"] == 40
    assert (deployed["type"], deployed["model_sha256"]) == (manifest.factory, manifest.model_sha256)
    assert deployed["denominator"].startswith("all relevant images of the gallery (R)")
    returned = deployed["returned"]["mean"]
    assert returned["map"] == returned["map of the first 40"]
    for name, value in returned.items():
        assert value == pytest.approx(figures["cosine"].get(name, figures["cosine"]["map"]), abs=1e-4)
        assert deployed["difference"]["mean"][name] == pytest.approx(0, abs=1e-4)
    assert set(deployed["search_recall"]["mean"].values()) == {1}


def test_the_depth_cuts_the_ranking_and_the_whole_is_what_it_is_divided_by(workspace: Places) -> None:
    whole = read(workspace, "{index} --queries {queries}")
    deployed = read(workspace, "{index} --queries {queries} --depth 4 -k 2 -k 9")["deployed"]
    assert list(deployed["returned"]["mean"]) == ["map", "map of the first 4", "precision@2", "recall@2"]
    assert list(deployed["search_recall"]["mean"]) == ["search recall@2", "search recall@4"]
    returned, exact = deployed["returned"]["mean"], deployed["exact"]["mean"]
    assert returned["map"] <= 4 / 8  # at most four of the eight relevant images
    assert returned["map of the first 4"] == pytest.approx(exact["map of the first 4"], abs=1e-4)
    assert exact["map"] == pytest.approx(whole["cosine"]["map"], abs=1e-9)
    assert deployed["difference"]["mean"]["map"] == pytest.approx(returned["map"] - exact["map"])


def test_the_table_says_what_was_searched_and_how(workspace: Places) -> None:
    result = run(workspace, "{index} --queries {queries} --depth 4")
    with Index(workspace["index"]) as opened:
        factory = opened.manifest.factory
    assert f"\nAs deployed: {factory}, 40 images, the first 4 for each query; map is divided by all" in result.out
    assert "map of the first 4" in result.out
    assert "search recall@4" in result.out
    assert "100.00 to 100.00" in result.out


def test_intervals_hold_the_mean_and_are_the_same_each_time(workspace: Places) -> None:
    line = "--model {model} --gallery {gallery} --queries {queries}"
    first, second = read(workspace, line), read(workspace, line)
    assert first == second
    assert "deployed" not in first
    for metric in ("cosine", "euclidean"):
        for name, value in first[metric].items():
            low, high = first["intervals"][metric][name]
            assert low - 1e-9 <= value <= high + 1e-9
    assert first["bootstrap"]["level"] == 0.95


def test_leave_one_out_is_the_model_on_every_image_without_itself(workspace: Places) -> None:
    by_index = read(workspace, "{index} --leave-one-out")
    by_model = read(workspace, "--model {model} --gallery {gallery} --leave-one-out")
    with Index(workspace["index"]) as opened:
        _, vectors, labels = opened.read_vectors()
    values = []
    for query in range(40):
        others = [i for i in range(40) if i != query]
        ranking = sorted(others, key=lambda i: (-float(vectors[i] @ vectors[query]), i))
        hits = np.array([labels[i] == labels[query] for i in ranking])
        values.append(np.mean([hits[: i + 1].mean() for i in np.flatnonzero(hits)]))
    assert by_index["queries"] == by_model["queries"] == 40
    assert by_index["cosine"]["map"] == pytest.approx(np.mean(values), abs=1e-4)
    assert by_index["deployed"]["returned"]["mean"]["map"] == pytest.approx(np.mean(values), abs=1e-4)
    assert by_model["cosine"]["map"] == pytest.approx(np.mean(values), abs=1e-3)
    assert by_index["protocol"]["leave_one_out"] is True
    (other,) = read(workspace, "{index} --leave-one-out --gallery {gallery} --also {model}")["also"]
    low, high = other["difference"]["interval"]["map"]  # paired: the index and the folder have the same names
    assert -1e-3 < low <= high < 1e-3


def test_junk_is_neither_a_query_nor_found(workspace: Places) -> None:
    result = run(workspace, "{index} --queries {queries} --junk one")
    assert result.err == (
        "16 queries; 0 without a match in the gallery were skipped; 8 images of the class 'one' are ignored\n"
    )
    ignored, whole = (read(workspace, f"{{index}} --queries {{queries}} {end}") for end in ("--junk one", ""))
    assert ignored["cosine"]["recall@100"] == 1
    assert ignored["cosine"]["map"] != whole["cosine"]["map"]
    assert ignored["deployed"]["difference"]["mean"]["map"] == pytest.approx(0, abs=1e-4)


def test_queries_without_a_match_are_skipped_count_as_zero_or_are_refused(
    places: Places, copy: Copy, refuse: Refuse
) -> None:
    (copy("queries") / "one").rename(places["copied_queries"] / "eleven")
    line = "{index} --queries {copied_queries}"
    skipped, zero = read(places, line), read(places, f"{line} --empty zero")
    assert (skipped["queries"], skipped["skipped"], skipped["empty"]) == (16, 4, 4)
    assert (zero["queries"], zero["skipped"], zero["empty"]) == (20, 0, 4)
    assert zero["cosine"]["map"] == pytest.approx(skipped["cosine"]["map"] * 16 / 20)
    deployed = (figures["deployed"]["returned"]["mean"]["map"] for figures in (zero, skipped))
    assert next(deployed) == pytest.approx(next(deployed) * 16 / 20)
    assert "20 queries; 4 without a match in the gallery count as zero\n" in run(places, f"{line} --empty zero").err
    refuse(f"evaluate {line} --empty error", "4 queries have no relevant image", "of class 'eleven'", "--empty skip")


def test_each_class_has_its_own_figures(workspace: Places) -> None:
    figures = read(workspace, "{index} --queries {queries} --per-class")
    classes = figures["per_class"]
    assert set(classes) == {"eight", "four", "one", "seven", "zéro"}
    assert {(found["queries"], found["gallery"]) for found in classes.values()} == {(4, 8)}
    mean = np.mean([found["map"] for found in classes.values()])
    assert mean == pytest.approx(figures["cosine"]["map"])
    table = run(workspace, "{index} --queries {queries} --per-class").out.split("By class")[1]
    worst = min(classes, key=lambda label: classes[label]["map"])
    assert table.splitlines()[4].split()[:3] == [worst, "4", "8"]


def test_models_and_indexes_stand_side_by_side_with_paired_differences(workspace: Places) -> None:
    line = "{index} --queries {queries} --gallery {gallery} --also {model} --also {teacher} --also {index}"
    figures = read(workspace, line)
    teacher = read(workspace, "--model {teacher} --gallery {gallery} --queries {queries}")
    same, better, again = figures["also"]
    assert same["name"].endswith("student.onnx")
    assert same["difference"]["mean"]["map"] == pytest.approx(0, abs=1e-3)
    assert better["cosine"]["map"] == teacher["cosine"]["map"]
    expected = teacher["cosine"]["map"] - figures["cosine"]["map"]
    assert better["difference"]["mean"]["map"] == pytest.approx(expected)
    low, high = better["difference"]["interval"]["map"]
    assert low <= expected <= high
    assert again["deployed"] == figures["deployed"]
    assert set(again["difference"]["mean"].values()) == {0}
    out = run(workspace, line).out
    assert "Side by side, by cosine; differences to the first" in out
    assert "map, returned" in out


def make_truth(places: Places) -> Places:
    """Writes a ground truth in which each query's class is positive: the first three easy, three hard, two junk."""
    gallery = [path.relative_to(places["gallery"]).as_posix() for path in list_files(places["gallery"])]
    truth = {}
    for path in list_files(places["queries"])[:-1]:
        same = [name for name in gallery if name.split("/")[0] == path.parent.name]
        truth[path.relative_to(places["queries"]).as_posix()] = {
            "easy": same[:3],
            "hard": same[3:6],
            "junk": same[6:],
        }
    places["truth"] = places["here"] / "truth.json"
    places["truth"].write_text(json.dumps(truth), encoding="utf-8")
    return places


def test_ground_truth_is_measured_in_three_setups_and_by_what_is_returned(places: Places) -> None:
    line = "--queries {queries} --ground-truth {truth}"
    figures = read(make_truth(places), f"{{index}} {line}")
    by_model = read(places, f"--model {{model}} --gallery {{gallery}} {line}")
    assert (figures["queries"], figures["skipped"]) == (19, 1)
    exact, returned = figures["cosine"], figures["deployed"]["returned"]["mean"]
    setups = ("easy", "medium", "hard")
    assert list(exact) == [f"{name}_{setup}" for setup in setups for name in ("map", "mp@1", "mp@5", "mp@10")]
    assert all(0.2 < exact[f"map_{setup}"] <= 1 for setup in setups)
    for name, value in exact.items():
        assert returned[name] == pytest.approx(value, abs=1e-4)
        assert by_model["cosine"][name] == pytest.approx(value, abs=1e-3)
    result = run(places, f"{{index}} {line} --depth 3")
    assert "map_medium" in result.out
    assert result.err == "19 queries; 1 without ground truth was skipped\n"


def test_ground_truth_needs_no_classes(places: Places) -> None:
    names = [path.name for path in list_files(places["loose"])]
    truth = {names[0]: {"easy": [names[0]], "hard": names[1:2]}, names[1]: {"easy": names[:1]}}
    places["truth"] = places["here"] / "truth.json"
    places["truth"].write_text(json.dumps(truth), encoding="utf-8")
    line = "--model {model} --gallery {loose} --queries {loose} --ground-truth {truth}"
    skipped, zero = read(places, line), read(places, f"{line} --empty zero")
    assert skipped["cosine"]["map_hard"] == 2 * zero["cosine"]["map_hard"]  # one of two queries has no hard image
    assert zero["cosine"]["mp@1_easy"] == 0.5


def test_a_setup_without_any_positive_image_is_a_dash_and_no_warning(places: Places) -> None:
    names = [path.name for path in list_files(places["loose"])]
    places["truth"] = places["here"] / "truth.json"
    places["truth"].write_text(json.dumps({names[0]: {"easy": [names[1]]}}), encoding="utf-8")
    result = run(places, "--model {model} --gallery {loose} --queries {loose} --ground-truth {truth}")
    (line,) = [line for line in result.out.splitlines() if "map_hard" in line]
    assert line.split() == ["map_hard", "-", "-"]
    assert result.err == f"1 query; {len(names) - 1} without ground truth were skipped\n"


def test_what_works_without_classes_is_said(places: Places, refuse: Refuse) -> None:
    succeed(*fill("index build {loose} --model {model} --out {here}/bare", places))
    shown = ("without classes, name what is alike with --queries and --ground-truth FILE", "'indistill report RUN'")
    refuse("evaluate {here}/bare", "name either --queries", *shown)
    refuse("evaluate {here}/bare --leave-one-out", "the gallery has no classes", *shown)
    refuse("evaluate {here}/bare --queries {queries}", "the gallery has no classes", *shown)
    refuse("evaluate {index} --queries {loose}", "has no classes; evaluate without --ground-truth needs")


def test_the_table_has_the_chance_level_and_unit_vectors_once(places: Places) -> None:
    result = run(places, "{index} --queries {queries}")
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    assert lines[0] == ["percent", "cosine", "=", "euclidean", "95", "%"]
    (chance,) = [words[-1] for words in lines if words[:3] == ["map,", "by", "chance"]]
    harmonic = sum(1 / i for i in range(1, 41))  # 8 of 40 images are relevant to each query
    assert float(chance) == pytest.approx(100 * (harmonic + 7 * (40 - harmonic) / 39) / 40, abs=0.005)
    network = run(places, "--model {teacher} --gallery {gallery} --queries {queries}").out
    assert network.split()[:7] == ["percent", "cosine", "95", "%", "euclidean", "95", "%"]


def test_the_page_holds_tables_and_pictures_of_the_best_and_the_worst_queries(places: Places, copy: Copy) -> None:
    copy("queries")
    for path in list_files(places["copied_queries"]):
        path.rename(path.with_name(f"<b>&amp;{path.name}"))
    result = run(places, "{index} --queries {copied_queries} --per-class --html {out}")
    assert f"wrote {places['out']}\n" in result.err
    page = places["out"].read_text(encoding="utf-8")
    assert page.count('<figure class="query">') == 16
    assert page.count("<img ") == 16 * 7
    assert page.count('<figure class="right">') + page.count('<figure class="wrong">') == 16 * 6
    assert page.count("&lt;b&gt;&amp;amp;") >= 16
    assert "<b>" not in page
    assert "no image</div>" not in page
    for text in ("Best queries", "Worst queries", "By class", "As deployed", "map_paper11", "search recall@10"):
        assert text in page
    assert "http:" not in page
    assert "https:" not in page


@pytest.mark.parametrize(
    "line",
    [
        "--model {model} --gallery digits/test --queries digits/test",
        "--model {model} --gallery {gallery} --leave-one-out",
        "{index} --leave-one-out --junk one",
    ],
    ids=["images that are no files", "model, leave one out", "index, leave one out, junk"],
)
def test_the_page_has_pictures_whatever_the_images_are(places: Places, line: str) -> None:
    run(places, f"{line} --html {{out}}")
    page = places["out"].read_text(encoding="utf-8")
    assert page.count("<img ") == 16 * 7
    assert "no image</div>" not in page
    if "leave-one-out" in line:
        assert "1. 1.000" not in page  # no query finds itself


def test_a_page_of_ground_truth_has_hits_that_are_neither_right_nor_wrong(places: Places) -> None:
    run(make_truth(places), "{index} --queries {queries} --ground-truth {truth} --html {out}")
    page = places["out"].read_text(encoding="utf-8")
    assert page.count('<figure class="hit">') == 16 * 6
    assert "map_medium" in page


REFUSED = {
    "nothing to look for": ("{index}", "name either --queries, or --leave-one-out"),
    "queries twice": ("{index} --queries {queries} --leave-one-out", "name either --queries, or --leave-one-out"),
    "also without gallery": ("{index} --queries {queries} --also {model}", "name them with --gallery"),
    "depth of a model": ("--model {model} --gallery {gallery} --queries {queries} --depth 3", "--depth 3 is how many"),
    "no such junk": ("{index} --queries {queries} --junk nine", "--junk 'nine': the gallery has no such class"),
    "truth and junk": ("{index} --queries {queries} --ground-truth {none} --junk one", "stands in for classes"),
    "no truth": ("{index} --queries {queries} --ground-truth {none}", "cannot be read: No such file"),
    "truth of other names": ("{index} --queries {queries} --ground-truth {run}/config.yaml", "is not JSON"),
    "page exists": ("{index} --queries {queries} --html {query}", "--overwrite"),
    "page of no folder": ("{index} --queries {queries} --html {none}/page.html", "cannot be written"),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_fit_are_refused(refuse: Refuse, line: str, words: str) -> None:
    refuse(f"evaluate {line}", words)
