"""Images that are missing, damaged or without labels: refused with the reason, or skipped and counted."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.calls import assert_refused, fill, run_cli, run_process, succeed
from tests.cli.files import (
    BAD_IMAGES,
    list_files,
    write_digits,
    write_empty,
    write_note,
    write_truncated_jpeg,
    write_truncated_tiff,
)
from tests.cli.lines import BUILD, COMPRESS, EVALUATE, TRAIN, Copy, Places, Refuse, find, read_records

FOLDERS_OF_IMAGES = {
    "train": TRAIN.replace("{gallery}", "{folder}"),
    "compress": COMPRESS.replace("{loose}", "{folder}"),
    "export": "export {run} --onnx --out {out} --data {folder}",
    "index build": BUILD.replace("{gallery}", "{folder}"),
    "evaluate, queries": EVALUATE.replace("{queries}", "{folder}"),
    "evaluate, gallery": EVALUATE.replace("{gallery}", "{folder}"),
}


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_an_empty_folder_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "empty"
    places["folder"].mkdir()
    refuse(line, "{folder} holds no images (.bmp, .gif,")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_without_images_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "notes"
    (places["folder"] / "one").mkdir(parents=True)
    write_note(places["folder"] / "one" / "note.txt")
    write_note(places["folder"] / "one" / ".hidden.png")
    refuse(line, "{folder} holds no images (.bmp, .gif,")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_of_damaged_images_is_refused_with_the_first_reason(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "damaged"
    for name in ("one", "two"):
        (places["folder"] / name).mkdir(parents=True)
        write_note(places["folder"] / name / "note.jpg")
        write_truncated_jpeg(places["folder"] / name / "truncated.jpg")
    refuse(line, "none of", "4 images can be read", "one/note.jpg: not an image that Pillow can read")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_an_image_in_place_of_a_folder_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["query"]
    refuse(line, "is a file, a folder of images is needed")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_of_splits_given_whole_is_refused_and_a_split_suggested(
    places: Places, refuse: Refuse, line: str
) -> None:
    places["folder"] = places["here"] / "photos"
    write_digits(places["folder"] / "train", 0, 1)
    write_digits(places["folder"] / "test", 1, 1)
    refuse(line, "{folder} holds the splits test, train: name one, as in {folder}/test")


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_as_query_is_refused_with_the_reason(
    places: Places, refuse: Refuse, bad_images: dict[str, Path], kind: str
) -> None:
    places["bad"] = bad_images[kind]
    refuse("search {index} {query} {bad} --json --html {out}", "query {bad}: " + BAD_IMAGES[kind][2])


def test_a_query_that_is_a_folder_is_not_called_damaged(places: Places) -> None:
    result = run_cli("search", places["index"], places["gallery"])
    assert_refused(result, f"query {places['gallery']}: ")
    assert "damaged" not in result.err


def test_what_an_image_library_warns_of_stays_off_the_screen(places: Places) -> None:
    damaged = write_truncated_tiff(places["here"] / "truncated.tif")
    assert_refused(run_process("search", places["index"], damaged), f"query {damaged}: ")


@pytest.mark.parametrize("options", ["--json", "--html {out}"])
def test_a_query_whose_name_is_not_utf8_is_no_failure_of_ours(places: Places, options: str) -> None:
    query = Path(os.fsdecode(os.fsencode(places["here"]) + b"/caf\xe9.png"))
    shutil.copyfile(places["query"], query)
    result = run_process("search", places["index"], query, "-k", 1, *fill(options, places))
    assert result.code in (0, 2), result.err
    assert len(result.err.splitlines()) <= 1
    assert result.code == 0 or not places["out"].exists()


UNLABELLED = {
    "train": (TRAIN.replace("{gallery}", "{loose}"), "no classes; train needs a sub-folder"),
    "train, one class": (TRAIN.replace("{gallery}", "{gallery}/one"), "no classes; train needs a sub-folder"),
    "evaluate an index": (
        "evaluate {index} --queries {loose}",
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, queries": (
        EVALUATE.replace("{queries}", "{loose}"),
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, gallery": (
        EVALUATE.replace("{gallery}", "{loose}"),
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, other classes": ("evaluate {index} --queries digits/test", "no query has a class of the gallery"),
}


@pytest.mark.parametrize(("line", "words"), UNLABELLED.values(), ids=UNLABELLED)
def test_labels_that_are_needed_and_not_there_are_asked_for(refuse: Refuse, line: str, words: str) -> None:
    refuse(line, words)


def test_compress_refuses_a_single_image_before_anything_is_written(places: Places, refuse: Refuse) -> None:
    (places["here"] / "single").mkdir()
    shutil.copy(places["query"], places["here"] / "single")
    refuse(COMPRESS.replace("{loose}", "{here}/single"), "{here}/single", "image")


def test_train_refuses_a_single_readable_image_before_anything_is_written(places: Places) -> None:
    for name, content in (("one", places["query"].read_bytes()), ("two", b"")):
        (places["here"] / "pair" / name).mkdir(parents=True)
        (places["here"] / "pair" / name / "image.png").write_bytes(content)
    result = run_cli(*fill(TRAIN.replace("{gallery}", "{here}/pair"), places))
    assert result.code == 2, result.err
    assert result.err.splitlines()[-1].startswith("indistill: error: ")
    assert not places["out"].exists()


@pytest.fixture
def spoilt_gallery(places: Places, copy: Copy, bad_images: dict[str, Path]) -> Path:
    """Returns a copy of the gallery with a bad image of each kind first, last and among the others."""
    folder = copy("gallery")
    for kind, (name, _, _) in BAD_IMAGES.items():
        shutil.copyfile(bad_images[kind], folder / name)
    return folder


def test_bad_images_of_a_gallery_are_skipped_counted_and_listed(places: Places, spoilt_gallery: Path) -> None:
    result = succeed("index", "build", spoilt_gallery, "--model", places["model"], "--out", places["out"])
    count = len(BAD_IMAGES)
    lines = [line.strip() for line in result.err.splitlines()]
    assert lines[0] == f"warning: {count} images were skipped:"
    expected = sorted((name, reason) for name, _, reason in BAD_IMAGES.values())
    for line, (name, reason) in zip(lines[1:-1], expected, strict=True):
        assert line.startswith(f"{name}: {reason}")
    assert f"40 images, 64 dimensions, IDMap,Flat, generation 1, {count} skipped" in result.out
    records = read_records(find(places["out"], "skipped.jsonl"))
    assert [record["name"] for record in records] == [name for name, _ in expected]
    assert all(record["reason"].startswith(reason) for record, (_, reason) in zip(records, expected, strict=True))
    assert [path.name for path in places["here"].iterdir() if path.name.startswith(".")] == []


def test_bad_images_of_a_gallery_do_not_shift_the_others(places: Places, spoilt_gallery: Path) -> None:
    succeed("index", "build", spoilt_gallery, "--model", places["model"], "--out", places["out"])
    bad = {name for name, _, _ in BAD_IMAGES.values()}
    good = [path for path in list_files(spoilt_gallery) if path.relative_to(spoilt_gallery).as_posix() not in bad]
    assert len(good) == 40
    found = json.loads(succeed("search", places["out"], *good, "-k", 1, "--json").out)["queries"]
    for number, (path, query) in enumerate(zip(good, found, strict=True), start=1):
        (hit,) = query["hits"]
        assert hit["score"] == pytest.approx(1, abs=1e-5)
        assert (hit["rank"], hit["id"]) == (1, number)
        assert (hit["path"], hit["label"]) == (path.relative_to(spoilt_gallery).as_posix(), path.parent.name)


def test_skipped_files_are_listed_by_their_exact_names(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    names = ("one/:cat:.png", "one/[red]a.png", "one/日本.png")
    for name in names:
        write_note(folder / name)
    result = succeed("index", "build", folder, "--model", places["model"], "--out", places["out"])
    for name in names:
        assert f"  {name}: not an image" in result.err


def test_more_skipped_files_than_are_worth_printing_are_counted(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    for number in range(8):
        write_empty(folder / "one" / f"empty {number}.png")
    result = succeed("index", "build", folder, "--model", places["model"], "--out", places["out"])
    assert result.err.splitlines()[0] == "warning: 8 images were skipped:"
    assert result.err.splitlines()[-2].strip() == "and 3 more"
    assert len(read_records(find(places["out"], "skipped.jsonl"))) == 8


def test_a_gallery_file_whose_name_is_not_utf8_does_not_stop_the_build(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    name = os.fsencode(folder) + b"/one/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(places["query"].read_bytes())
    result = run_process("index", "build", folder, "--model", places["model"], "--out", places["out"], "--json")
    assert result.code == 0, result.err
    manifest = json.loads(result.out)
    assert manifest["items"] + manifest["skipped"] == 41


TRAININGS = {
    "train": (TRAIN.replace("{gallery}", "{copied_gallery}"), "gallery", 40),
    "compress": (COMPRESS.replace("{loose}", "{copied_loose}"), "loose", 20),
}


@pytest.mark.parametrize(("line", "name", "count"), TRAININGS.values(), ids=TRAININGS)
def test_a_damaged_image_of_training_is_skipped_with_a_warning(
    places: Places, copy: Copy, line: str, name: str, count: int
) -> None:
    place = "one/one 01 damaged.jpg" if name == "gallery" else "damaged.jpg"
    write_truncated_jpeg(copy(name) / place)
    result = succeed(*fill(line, places))
    assert result.err.splitlines()[0] == "warning: 1 image was skipped:"
    assert result.err.splitlines()[1].startswith(f"  {place}: damaged image")
    environment = json.loads((places["out"] / "environment.json").read_text(encoding="utf-8"))
    assert environment["images"] == count


def test_a_damaged_image_among_the_queries_is_skipped_with_a_warning(places: Places, copy: Copy) -> None:
    write_truncated_jpeg(copy("queries") / "one" / "damaged.jpg")
    result = succeed(*fill("evaluate {index} --queries {copied_queries} --json", places))
    assert "warning: 1 image was skipped:\n  one/damaged.jpg: damaged image" in result.err
    assert json.loads(result.out)["queries"] == 20
