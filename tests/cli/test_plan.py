"""`indistill plan`: what a gallery needs, by formulas and rates measured here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from indistill.cli.commands.plan import format_need, read_count
from indistill.errors import InputError
from indistill.retrieval.capacity import Need
from tests.cli.calls import fill, succeed
from tests.cli.files import list_files


def test_a_plan_of_own_images_is_printed(places: dict[str, Path]) -> None:
    shown = succeed(*fill("plan --images 1e8 --model {model} --data {gallery} --cores 64 --memory 16GB", places)).out
    assert "100,000,000 images, IVF16384,SQ8" in shown
    for name in ("time of embedding", "catalogue on disk", "filling the lists", "queries, all cores"):
        assert name in shown
    assert f"measured on {len(list_files(places['gallery']))} images" in shown


def test_a_plan_is_given_as_json_and_without_images(places: dict[str, Path]) -> None:
    line = "plan --images 5000 --model {model} --recall 1 --cores 2 --json"
    made = json.loads(succeed(*fill(line, places)).out)
    assert (made["images"], made["cores"], made["memory_bytes"], made["factory"]) == (5000, 2, 64e9, "IDMap,Flat")
    needs = {need["name"]: need for need in made["needs"]}
    assert needs["embedding"]["least"] == pytest.approx(5000 * made["rates"]["embed_s"])
    assert made["rates"]["file_bytes"] > 20_000  # as a photograph's


def test_a_small_gallery_is_planned_with_the_rate_of_its_exact_search(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indistill.retrieval.capacity._measure_scan", lambda _, code: {"Flat": 4e9, "SQ8": 1e9}[code])
    for recall in ("1", "0.95"):
        made = json.loads(succeed(*fill(f"plan -n 10000 --model {{model}} --recall {recall} --json", places)).out)
        assert (made["factory"], made["rates"]["scan_bytes_per_s"]) == ("IDMap,Flat", 4e9)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--images many --model {model}", ["--images many", "give a whole number of images", "as 1e8"]),
        ("--images 0 --model {model}", ["--images 0"]),
        ("--images 1.5 --model {model}", ["--images 1.5"]),
        ("--images nan --model {model}", ["--images nan"]),
        ("--images 1e13 --model {model}", ["--images 1e13", "1e+12"]),
        ("--images 1e6 --model {none}", ["{none}"]),
        ("--images 1e6 --model {model} --recall 0.995", ["0.995", "give at most 0.99, or 1"]),
        ("--images 1e6 --model {model} --memory lots", ["--memory lots", "give a number with"]),
        ("--images 1e6 --model {model} --memory 0GB", ["--memory 0GB", "more than 0"]),
        ("--images 1e6 --model {model} --data {none}", ["{none}"]),
    ],
)
def test_bad_input_is_one_line(refuse: Callable[..., None], options: str, fragments: list[str]) -> None:
    refuse(f"plan {options}", *fragments)


@pytest.mark.parametrize(("text", "count"), [("1e8", 10**8), ("50,000", 50_000), ("2_000", 2000), ("7", 7)])
def test_a_count_may_be_written_short(text: str, count: int) -> None:
    assert read_count(text) == count
    with pytest.raises(InputError):
        read_count(text + "x")


@pytest.mark.parametrize(
    ("unit", "least", "most", "shown"),
    [
        ("s", 86_400 * 2.2801, 86_400 * 2.2801, "2.28 days"),
        ("s", 0.000958, 0.0045, "0.958 ms to 4.5 ms"),
        ("core-s", 3.6e6, 3.6e6, "1,000 core-hours"),
        ("bytes", 5.536e12, 5.536e12, "5.54 TB"),
        ("bytes", 10, 10, "0.01 KB"),
        ("1/s", 14_210, 66_800, "14,200/s to 66,800/s"),
        ("", 3, 3, "3"),
    ],
)
def test_values_are_shown_in_units_that_suit_them(unit: str, least: float, most: float, shown: str) -> None:
    assert format_need(Need("x", least, most, unit, "")) == shown  # type: ignore[arg-type]
