"""What an output would replace is kept, unless it may be replaced."""

import pytest

from tests.cli.calls import fill, run_cli, snapshot
from tests.cli.files import (
    CLASSES,
    write_note,
)
from tests.cli.lines import BUILD, COMPRESS, TRAIN, Copy, Places, Refuse

OUTPUTS = {
    "train": (TRAIN.replace("{out}", "{copied_teacher}"), "teacher"),
    "compress": (COMPRESS.replace("{out}", "{copied_run}"), "run"),
    "export": ("export {copied_run} --onnx", "run"),
    "export --out": ("export {run} --onnx --out {copied_run}/student.onnx", "run"),
    "index build": (BUILD.replace("{out}", "{copied_index}"), "index"),
    "search --html": ("search {index} {query} --html {copied_run}/report.html", "run"),
}


@pytest.mark.parametrize(("line", "name"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_exists_is_kept_without_overwrite(refuse: Refuse, copy: Copy, line: str, name: str) -> None:
    copy(name)
    refuse(line, f"{{copied_{name}}}", "exists; choose another --", "or replace it with --overwrite")


def test_a_demo_is_kept_without_overwrite(places: Places, refuse: Refuse) -> None:
    places["out"].mkdir()
    for name in (".indistill-demo", "report.html"):
        (places["out"] / name).write_text("made before", encoding="utf-8")
    refuse("demo --out {out}", "{out} exists; choose another --out, or replace it with --overwrite")


def test_runs_that_have_the_names_of_a_demos_are_kept_even_with_overwrite(places: Places, refuse: Refuse) -> None:
    for name in ("teacher", "student"):
        (places["out"] / name).mkdir(parents=True)
        (places["out"] / name / "config.yaml").write_text("mine", encoding="utf-8")
    refuse("demo --out {out} --overwrite", "{out} exists and is not a demo")


@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml"])
@pytest.mark.parametrize(
    "line", [TRAIN, COMPRESS, BUILD, "demo --out {out}"], ids=["train", "compress", "index build", "demo"]
)
def test_a_folder_of_the_users_own_is_kept_even_with_overwrite(
    places: Places, refuse: Refuse, line: str, name: str
) -> None:
    places["out"].mkdir()
    (places["out"] / name).write_text("title: my thesis\n", encoding="utf-8")
    refuse(line + " --overwrite", "{out} exists and ", "choose another --out")


LINKED_OUTPUTS = {"train": (TRAIN, "teacher"), "index build": (BUILD, "index")}


@pytest.mark.parametrize(("line", "name"), LINKED_OUTPUTS.values(), ids=LINKED_OUTPUTS)
def test_a_link_as_output_is_replaced_or_refused_but_not_half_done(
    places: Places, copy: Copy, line: str, name: str
) -> None:
    places["out"].symlink_to(copy(name))
    before = snapshot(places["here"])
    result = run_cli(*fill(line + " --overwrite", places))
    assert result.code in (0, 2), result.err
    assert not [path.name for path in places["here"].iterdir() if path.name.startswith(".")]
    if result.code == 2:
        assert snapshot(places["here"]) == before


FAILURES = {
    "train": (TRAIN.replace("{out}", "{copied_teacher}").replace("{gallery}", "{bad}"), "teacher"),
    "compress": (COMPRESS.replace("{out}", "{copied_run}").replace("{loose}", "{bad}"), "run"),
    "export": ("export {copied_run} --onnx --data {bad}", "run"),
    "index build": (BUILD.replace("{out}", "{copied_index}").replace("{gallery}", "{bad}"), "index"),
}


@pytest.mark.parametrize(("line", "name"), FAILURES.values(), ids=FAILURES)
def test_an_older_output_outlives_a_command_that_fails_with_overwrite(
    places: Places, refuse: Refuse, copy: Copy, line: str, name: str
) -> None:
    copy(name)
    places["bad"] = places["here"] / "bad"
    for label in CLASSES:
        (places["bad"] / label).mkdir(parents=True)
        write_note(places["bad"] / label / "note.png")
    refuse(line + " --overwrite")


def test_a_teacher_is_not_overwritten_by_its_own_student(refuse: Refuse, copy: Copy) -> None:
    copy("teacher")
    refuse(
        COMPRESS.replace("{teacher}", "{copied_teacher}").replace("{out}", "{copied_teacher}") + " --overwrite",
        "{copied_teacher}",
    )


BELOW_A_FILE = {
    "train": TRAIN.replace("{out}", "{file}/out"),
    "compress": COMPRESS.replace("{out}", "{file}/out"),
    "export": "export {run} --onnx --out {file}/student.onnx",
    "index build": BUILD.replace("{out}", "{file}/out"),
    "search --html": "search {index} {query} --html {file}/hits.html",
}


@pytest.mark.parametrize("line", BELOW_A_FILE.values(), ids=BELOW_A_FILE)
def test_a_place_that_cannot_be_written_to_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["file"] = write_note(places["here"] / "file.txt")
    refuse(line, "{file}")
