"""The commands of `indistill index` that change an index and look after it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from indistill.export.session import EmbeddingSession
from tests.cli.calls import MAIN, STOP, assert_refused, fill, run_cli, run_process, run_with_input, snapshot, succeed
from tests.cli.files import list_files, write_digits

Places = dict[str, Path]


@pytest.fixture
def own(places: Places) -> Places:
    """Returns the places with a `mine`, a gallery, and a `living` index of it, that a test may change."""
    places["mine"] = write_digits(places["here"] / "mine", 0, 4)
    places["living"] = places["here"] / "living"
    result = succeed(*fill("index build {mine} --model {model} --out {living}", places))
    assert result.err.splitlines()[-1] == f"Next: indistill search {places['living']} IMAGE"
    return places


def change(places: Places, line: str) -> dict[str, Any]:
    return json.loads(succeed(*fill(f"index {line} --json", places)).out)


def test_a_folder_is_followed_and_the_counts_are_printed(own: Places) -> None:
    assert succeed(*fill("index sync {living}", own)).out == f"{own['living']}: 20 unchanged; 20 images, generation 1\n"
    first, second = list_files(own["mine"])[:2]
    first.unlink()
    second.rename(own["mine"] / "one" / "moved.png")
    write_digits(own["mine"], 4, 2)
    counts = change(own, "sync {living} {mine}")
    assert (counts["moved"], counts["items"], counts["generation"]) == (1, len(list_files(own["mine"])), 2)
    assert counts["skipped"] == []


def test_a_gallery_that_was_renamed_is_followed_at_its_new_place(own: Places) -> None:
    found = succeed(*fill("search {living} {query}", own)).out
    own["new"] = own["mine"].rename(own["here"] / "renamed")
    assert_refused(run_cli(*fill("index sync {living}", own)), "mine is not there: mount it", "--moved")
    assert_refused(run_cli(*fill("index sync {living} {new}", own)), "as a whole, add --moved")
    result = succeed(*fill("index sync {living} {new} --moved", own))
    assert result.out == f"{own['living']}: 20 unchanged; 20 images, generation 2\n"
    assert result.err == f"the gallery is {own['new']} now\n"
    assert succeed(*fill("search {living} {query}", own)).out == found
    assert succeed(*fill("index sync {living}", own)).out.startswith(f"{own['living']}: 20 unchanged")


def test_images_are_added_and_removed(own: Places) -> None:
    extra = write_digits(own["here"] / "extra", 8, 2)
    assert change(own, "add {living} {here}/extra")["added"] == 10
    assert change(own, "add {living} {here}/extra")["unchanged"] == 10
    assert change(own, "remove {living} --path {here}/extra/one")["removed"] == 2
    assert change(own, "remove {living} --id 1 --id 2")["items"] == 26
    condition = ["index", "remove", own["living"], "--where", "label = 'eight' and id > 20", "--json"]
    assert json.loads(succeed(*condition).out)["removed"] == 2
    shutil.rmtree(extra)
    assert change(own, "remove {living} --missing")["items"] == 18
    assert "whole" in succeed(*fill("index verify {living}", own)).out


def test_info_tells_of_images_outside_the_gallery(own: Places) -> None:
    assert "outside" not in succeed(*fill("index info {living}", own)).out
    write_digits(own["here"] / "extra", 8, 2)
    succeed(*fill("index add {living} {here}/extra", own))
    lines = succeed(*fill("index info {living}", own)).out.splitlines()
    assert lines[-1] == "outside 10 images lie outside the gallery: 'index sync' leaves them alone"
    assert "outside" not in json.loads(succeed(*fill("index info {living} --json", own)).out)


def test_delete_is_answered_by_remove(own: Places) -> None:
    before = snapshot(own["living"])
    for line in ("index delete", "index delete {living} --id 3"):
        assert_refused(run_cli(*fill(line, own)), "there is no 'index delete': 'index remove' takes images out")
    assert snapshot(own["living"]) == before


def test_a_damaged_index_is_found_and_mended(own: Places) -> None:
    (file,) = own["living"].rglob("index.faiss")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    result = run_cli(*fill("index verify {living}", own))
    assert_refused(result, "index.faiss is not as it was written; 'indistill index rebuild' mends")
    succeed(*fill("index rebuild {living}", own))
    assert "whole" in succeed(*fill("index verify {living}", own)).out
    assert json.loads(succeed(*fill("index compact {living} --json", own)).out)["generation"] == 3


def test_indexes_are_merged(own: Places) -> None:
    write_digits(own["here"] / "extra", 8, 2)
    succeed(*fill("index build {here}/extra --model {model} --out {here}/second", own))
    merged = json.loads(succeed(*fill("index merge {living} {here}/second --out {out} --json", own)).out)
    assert merged["items"] == 30
    (found,) = json.loads(succeed(*fill("search {out} {query} -k 30 --json", own)).out)["queries"]
    assert len(found["hits"]) == 30


def test_the_type_of_an_index_may_be_named_or_limited(own: Places) -> None:
    line = "index build {mine} --model {model} --out {living} --overwrite --json "
    made = json.loads(succeed(*fill(line + "--factory IVF2,SQ8", own)).out)
    assert (made["factory"], made["trials"]) == ("IVF2,SQ8", [])
    made = json.loads(succeed(*fill(line + "--recall 0.9 --max-memory 1MB --max-latency 1s", own)).out)
    assert made["factory"] == "IDMap,Flat"
    assert made["trials"][0]["recall"] == 1
    warned = succeed(*fill(line + "--factory HNSW8", own))
    assert "warning: images cannot be removed" in warned.err
    assert change(own, "remove {living} --id 1")["items"] == 19  # the index is made again


@pytest.mark.parametrize("separator", [b"\n", b"\0"])
def test_paths_are_read_from_standard_input(own: Places, separator: bytes) -> None:
    write_digits(own["mine"], 4, 2)
    paths = list_files(own["mine"])
    if separator == b"\0":
        paths[0] = paths[0].rename(paths[0].with_name("a\nb.png"))
    null = ["-0"] if separator == b"\0" else []

    def give(chosen: list[Path], *words: object) -> dict[str, Any]:
        return json.loads(
            run_with_input(separator.join(map(os.fsencode, chosen)), "index", *words, *null, "--json").stdout
        )

    made = give(paths[:8], "build", "-", "--model", own["model"], "--out", own["out"])
    assert (made["items"], made["skipped"], made["root"]) == (8, 0, os.path.commonpath(p.parent for p in paths[:8]))
    assert give(paths, "add", own["out"], "-")["added"] == len(paths) - 8
    assert give(paths[:6], "sync", own["out"], "-")["removed"] == len(paths) - 6
    assert ", paths from standard input" in succeed(*fill("index info {out}", own)).out


def test_threads_may_be_named_by_all_commands_that_embed(own: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    from indistill.retrieval import embed

    asked = []
    original = embed.map_ahead
    monkeypatch.setattr(embed, "map_ahead", lambda *a, **k: asked.append(k["workers"]) or original(*a, **k))
    write_digits(own["here"] / "extra", 8, 2)
    succeed(*fill("index add {living} {here}/extra --workers 3", own))
    write_digits(own["mine"], 4, 2)
    succeed(*fill("index sync {living} --workers 5", own))
    assert asked == [3, 5]


def test_labels_that_changed_are_counted(own: Places) -> None:
    assert "20 relabelled" in succeed(*fill("index add {living} {mine} --label x", own)).out
    assert change(own, "sync {living}")["relabelled"] == 20


def test_an_index_of_a_manifest_follows_it(own: Places) -> None:
    files = [path.relative_to(own["mine"]).as_posix() for path in list_files(own["mine"])]
    manifest = own["mine"] / "m.csv"
    manifest.write_text("\n".join(["path", *files[:5]]), encoding="utf-8")
    succeed(*fill("index build {mine}/m.csv --model {model} --out {out}", own))
    assert f", as {manifest} names it" in succeed(*fill("index info {out}", own)).out
    manifest.write_text("\n".join(["path", *files[1:6]]), encoding="utf-8")
    counts = change(own, "sync {out}")
    assert (counts["added"], counts["removed"], counts["items"]) == (1, 1, 5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--max-memory 1KB", "is too little: allow"),
        ("--max-memory much", "--max-memory much: give a number with B, KB, MB, GB, TB"),
        ("--factory IVF2,SQ8 --recall 0.9", "--factory names the type: leave --recall out"),
        ("--factory Nonsense", "is no index type of FAISS"),
    ],
)
def test_a_type_that_cannot_be_had_is_refused_and_the_old_index_stays(own: Places, options: str, words: str) -> None:
    line = f"index build {{mine}} --model {{model}} --out {{living}} --overwrite {options}"
    assert_refused(run_cli(*fill(line, own)), words)
    assert "whole" in succeed(*fill("index verify {living}", own)).out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("add {living} {none}", "there is no such file or folder"),
        ("remove {living}", "say what to remove"),
        ("remove {living} --id 99", "has no id 99"),
        ("sync {living} digits/test", "is no folder"),
        ("sync {living} {mine} -0", "--null-input is for paths from standard input: give - in place of"),
        ("build {mine} -0 --model {model} --out {out}", "--null-input is for paths from standard input"),
        ("merge {living} --out {out}", "name two indexes at least"),
        ("add {none} {mine}", "is not an index"),
        ("compact {mine}", "is not an index"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(own: Places, line: str, words: str) -> None:
    assert_refused(run_cli(*fill(f"index {line}", own)), words)
    assert not own["out"].exists()


@pytest.mark.parametrize("factory", ["Nonsense", "IDMap,IVF2,Flat"])
def test_a_type_is_looked_at_before_anything_is_embedded(
    own: Places, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddingSession, "embed_pixels", None)
    line = f"index build {{mine}} --model {{model}} --out {{out}} --factory {factory}"
    assert_refused(run_cli(*fill(line, own)), f"'{factory}' ")
    assert not own["out"].exists()


@pytest.mark.parametrize("change", ["add {mine} {mine}", "sync {mine}", "remove {mine} --id 1", "rebuild {mine}"])
def test_a_folder_that_is_named_by_mistake_is_left_as_it_is(own: Places, change: str) -> None:
    before = snapshot(own["mine"])
    assert_refused(run_cli(*fill(f"index {change}", own)), "is not an index")
    assert snapshot(own["mine"]) == before


def test_bytes_that_are_no_text_in_names_are_printed_escaped(own: Places) -> None:
    bad = os.fsdecode(b"\xff")
    gallery = write_digits(own["here"] / bad / "gallery", 0, 2)
    shutil.copyfile(list_files(gallery)[0], gallery / f"{bad}.png")
    command = ["index", "build", gallery, "--model", own["model"], "--out", own["out"], "--overwrite"]
    result = run_process(*command)
    assert (result.code, "1 image was skipped" in result.err) == (0, True), result.err
    assert "\\udcff/gallery" in result.out
    assert_refused(run_process("index", "verify", own["here"] / bad / "index"), "its path is not valid UTF-8")


def test_ctrl_c_tells_what_is_kept_and_the_next_build_goes_on(own: Places) -> None:
    line = "index build {mine} --model {model} --out {out}"
    code = "from indistill.retrieval import embed; embed.BATCH_SIZE = 4; " + MAIN
    interrupt = (
        f"{STOP}from indistill.retrieval.store.journal import Journal; keep = Journal.keep\n"
        "def keep_and_stop(*given): keep(*given); stop()\n"
        "Journal.keep = keep_and_stop\n"
    )
    cut = run_process(*fill(line, own), code=interrupt + code)
    assert (cut.code, cut.out) == (130, "")
    assert cut.err == "interrupted; 4 embeddings are kept: the same command goes on from there\n"
    done = succeed(*fill(line, own))
    assert done.err.splitlines()[0] == "going on: 4 embeddings of a command that was cut off are kept"
    assert "20 images" in done.out
    assert "going on" not in succeed(*fill(line + " --overwrite", own)).err


def test_ctrl_c_of_a_command_that_keeps_nothing_is_a_word(own: Places) -> None:
    interrupt = f"{STOP}from indistill.retrieval.index import Index\nIndex.search = stop\n"
    cut = run_process(*fill("search {living} {query}", own), code=interrupt + MAIN)
    assert (cut.code, cut.out, cut.err) == (130, "", "interrupted\n")
