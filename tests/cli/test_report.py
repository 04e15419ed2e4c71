"""`report` and the page that `compress` ends with."""

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
import yaml
from PIL import Image

from indistill.cli.closeness import FIGURES as LABELS
from indistill.cli.closeness import find_shortfall
from tests.cli.calls import assert_refused, fill, run_cli, snapshot, succeed
from tests.cli.files import list_files, write_digits

Places = dict[str, Path]
Copy = Callable[[str], Path]
COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --data {data} --recipe digits --epochs 2 --out {out}"
FIGURES = {
    "neighbour_overlap",
    "rank_correlation",
    "linear_cka",
    "cosine_correlation",
    "cosine_difference",
    "rotated_cosine",
    "mapped_cosine",
}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read_closeness(run: Path) -> dict[str, Any]:
    return json.loads((run / "closeness.json").read_text(encoding="utf-8"))


def change_config(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def test_a_trained_run_says_how_close_its_student_is(workspace: Places) -> None:
    figures = read_closeness(workspace["run"])
    assert (figures["data"], figures["own_data"], figures["images"]) == ("digits/train", True, 1000)
    assert figures["images_available"] == 1352
    for column in ("student", "untrained", "moved"):
        assert figures[column].keys() == FIGURES
    for name in FIGURES - {"cosine_difference"}:
        assert figures["untrained"][name] < figures["student"][name] < 1
    assert figures["retrieval"]["gallery_images"] == figures["retrieval"]["queries"] == 500
    scores = [figures["retrieval"][name]["cosine"]["map"] for name in ("teacher", "student", "untrained")]
    assert scores == sorted(scores, reverse=True)


def test_the_page_of_a_trained_run_holds_curves_figures_and_pictures(workspace: Places) -> None:
    page = Page(workspace["run"] / "report.html")
    for words in ("Schedule", "How close the student is to its teacher", "linear CKA", "Retrieval, by labels"):
        assert words in page.text
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 8 * 2 * (1 + 6)
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).size == (32, 32)
    worst = read_closeness(workspace["run"])["worst_queries"]
    assert [query["overlap"] for query in worst] == sorted(query["overlap"] for query in worst)
    for query in worst:
        shared = len(set(query["teacher"]) & set(query["student"]))
        assert f"{query['name']}: {shared} of 10 shared, by the teacher" in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe"})


def test_other_images_are_measured_and_the_report_says_which(places: Places, copy: Copy) -> None:
    run = copy("run")
    before = snapshot(run)
    result = succeed("report", run, "--data", places["queries"], "--gallery", places["gallery"], "--json")
    figures = json.loads(result.out)
    assert figures == read_closeness(run)
    assert (figures["data"], figures["own_data"], figures["images"]) == (str(places["queries"]), False, 20)
    assert (figures["retrieval"]["gallery_images"], figures["retrieval"]["queries"]) == (40, 20)
    assert "(not the data of the run)" in Page(run / "report.html").text
    after = snapshot(run)
    assert {name for name in after if after[name] != before.get(name)} == {"closeness.json", "report.html"}


def test_the_metrics_are_those_of_evaluate(places: Places, copy: Copy) -> None:
    sets = ("--gallery", places["gallery"], "--json")
    figures = json.loads(succeed("report", copy("run"), "--data", places["queries"], *sets).out)
    for name, model in (("student", "run"), ("teacher", "teacher")):
        expected = json.loads(succeed("evaluate", "--model", places[model], "--queries", places["queries"], *sets).out)
        for metric in ("cosine", "euclidean"):
            assert figures["retrieval"][name][metric] == pytest.approx(expected[metric])


def test_a_report_of_the_same_images_is_the_same(places: Places, copy: Copy) -> None:
    run = copy("run")
    succeed("report", run)
    assert (run / "closeness.json").read_bytes() == (places["run"] / "closeness.json").read_bytes()
    assert (run / "report.html").read_bytes() == (places["run"] / "report.html").read_bytes()


def test_the_table_has_a_row_for_each_figure(copy: Copy, places: Places) -> None:
    result = succeed("report", copy("run"), "--data", places["loose"])
    lines = [re.split(r"\s{2,}", line.strip()) for line in result.out.splitlines()[3:]]
    assert len(lines) == len(FIGURES)
    assert "Retrieval" not in Page(places["copied_run"] / "report.html").text  # no labels
    assert f"Without labels, on 20 images of {places['loose']}" in result.err


def test_names_of_files_are_escaped(places: Places) -> None:
    places["data"] = write_digits(places["here"] / "data", 0, 5, classes=False)
    for number, path in enumerate(list_files(places["data"])):
        path.rename(path.with_name(f"<img src=x onerror=alert({number})> & \"'{path.suffix}"))
    succeed(*fill(COMPRESS, places))
    page = Page(places["out"] / "report.html")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 8 * 2 * (1 + 6)
    assert all(set(attributes) == {"src", "alt"} for attributes in images)
    assert all((attributes["src"] or "").startswith("data:") for attributes in images)
    assert "<img src=x onerror=alert(" in page.text


def test_names_that_are_not_text_are_shown_as_far_as_they_can_be(places: Places) -> None:
    places["data"] = write_digits(places["here"] / "data", 0, 5, classes=False)
    for number, path in enumerate(list_files(places["data"])):
        try:
            path.rename(path.with_name(f"\udcff {number}{path.suffix}"))
        except OSError:
            pytest.skip("the file system takes text alone")
    succeed(*fill(COMPRESS, places))
    assert "\\udcff" in Page(places["out"] / "report.html").text
    assert read_closeness(places["out"])["worst_queries"][0]["name"].startswith("\udcff")


def test_compress_leaves_the_report_out_where_told_to(places: Places) -> None:
    places["data"] = places["loose"]
    succeed(*fill(COMPRESS + " --no-report", places))
    assert not (places["out"] / "closeness.json").exists()
    assert "How close" not in Page(places["out"] / "report.html").text


def test_too_few_images_are_a_warning_after_training_and_an_error_of_report(places: Places) -> None:
    places["data"] = write_digits(places["here"] / "few", 0, 3, classes=False)
    result = succeed(*fill(COMPRESS, places))
    assert "warning: the report does not say how close the student is: 20 readable images" in result.err
    assert_refused(run_cli("report", places["out"]), "20 readable images at least are needed to say how close, not 15")


def test_overwriting_a_run_leaves_no_older_figures(places: Places, copy: Copy) -> None:
    run = copy("run")
    (run / "evaluation-0123.json").write_text("{}", encoding="utf-8")
    places |= {"data": places["loose"], "out": run}
    succeed(*fill(COMPRESS + " --no-report --overwrite", places))
    assert {path.suffix for path in run.iterdir()} == {".yaml", ".html", ".jsonl", ".safetensors", ".json", ""}
    assert [path.name for path in run.glob("*.json")] == ["environment.json"]


def test_a_run_without_a_teacher_needs_one_named(places: Places, copy: Copy) -> None:
    run = copy("teacher")
    assert_refused(
        run_cli("report", run), f"{run} was not written by 'compress', so it has no teacher: name one with --teacher"
    )
    succeed("report", run, "--data", places["loose"], "--teacher", places["run"])
    assert read_closeness(run)["teacher"] == str(places["run"])


def test_a_teacher_whose_weights_are_gone_is_named_and_may_be_pointed_at(places: Places, copy: Copy) -> None:
    run, gone = copy("run"), places["here"] / "gone.safetensors"
    change_config(run, lambda config: config["teacher"].update(weights=str(gone), source=str(places["none"])))
    assert_refused(
        run_cli("report", run, "--data", places["loose"]),
        f"the weights of the teacher of {run} are gone: there is no file {gone}; put them back, or say where",
    )
    shutil.copy(places["run"] / "student.safetensors", gone)
    assert_refused(run_cli("report", run), f"{gone} is not what {run} was distilled from (SHA-256")
    succeed("report", run, "--data", places["loose"], "--teacher-weights", places["teacher"] / "model.safetensors")


def test_a_teacher_with_random_weights_cannot_be_had_again(places: Places) -> None:
    places["data"] = places["loose"]
    succeed(*fill(COMPRESS.replace("{teacher}", "paper:cnn-a"), places))
    assert read_closeness(places["out"])["teacher"] == "paper:cnn-a"  # measured while it was there
    assert_refused(run_cli("report", places["out"]), "'paper:cnn-a', had random weights, which are not kept")


def test_a_gallery_needs_labels_on_both_sides(places: Places, copy: Copy) -> None:
    run = copy("run")
    line = f"report {run} --data {{loose}} --gallery {{gallery}}"
    assert_refused(run_cli(*fill(line, places)), "has no classes; report with --gallery needs a sub-folder")


def test_a_run_that_is_not_there_or_not_complete_is_refused(places: Places, copy: Copy) -> None:
    assert_refused(run_cli("report", places["none"]), f"{places['none']} is not a run folder")
    run = copy("run")
    (run / "metrics.jsonl").unlink()
    assert_refused(run_cli("report", run), f"{run / 'metrics.jsonl'} is missing or damaged")
    (run / "student.safetensors").unlink()
    assert_refused(run_cli("report", run), f"{run} is not complete")


def test_compress_ends_with_the_figures_and_names_the_page(places: Places) -> None:
    places["data"] = places["gallery"]
    result = succeed(*fill(COMPRESS, places))
    assert result.out == f"{places['out']}\n"
    figures = read_closeness(places["out"])
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.err.splitlines()]
    for name, label in LABELS.items():
        assert [label, *(f"{figures[column][name]:.4f}" for column in ("student", "untrained", "moved"))] in rows
    assert f"wrote {places['out'] / 'report.html'}" in result.err.splitlines()
    assert "Retrieval, by labels" not in result.err


def spoil_closeness(run: Path) -> None:
    figures = read_closeness(run)
    figures["student"], figures["untrained"] = figures["untrained"], figures["student"]
    (run / "closeness.json").write_text(json.dumps(figures), encoding="utf-8")


@pytest.mark.slow
def test_a_student_that_is_no_closer_than_an_untrained_one_is_warned_of(places: Places, copy: Copy) -> None:
    run = copy("run")
    warning = "warning: the student is no closer to its teacher than an untrained network of its kind"
    export = ("export", run, "--onnx", "--out", places["here"] / "a.onnx", "--data", places["loose"])
    assert warning not in succeed(*export).err
    spoil_closeness(run)
    assert succeed(*export, "--overwrite").err.count(warning) == 1
    line = "compress --teacher {teacher} --student paper:cnn-s --data digits/train --recipe digits --epochs 5 --resume"
    assert warning in succeed(*fill(f"{line} --out {run}", places)).err
    assert warning not in succeed("report", run).err


@pytest.mark.parametrize(
    ("better", "closer"),
    [
        (set(), False),
        ({"neighbour_overlap"}, True),
        ({"rank_correlation", "linear_cka", "cosine_difference"}, False),
        ({"rank_correlation", "linear_cka", "cosine_difference", "mapped_cosine"}, True),
    ],
)
def test_a_student_is_closer_by_its_neighbours_or_by_most_figures(better: set[str], closer: bool) -> None:
    lower = {"cosine_difference"}
    student = {name: 0.4 + 0.2 * ((name in better) != (name in lower)) for name in FIGURES}
    untrained = dict.fromkeys(FIGURES, 0.5)
    assert (find_shortfall({"student": student, "untrained": untrained}) is None) is closer
    assert find_shortfall({"student": untrained, "untrained": untrained}) is not None
