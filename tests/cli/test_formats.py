"""What was written by an earlier indistill opens or says what to run; what a later one wrote is refused in a line."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import yaml
from onnx import helper

from indistill import __version__
from indistill.errors import IndistillError, InputError
from indistill.export.bench_report import read_report
from indistill.files import formats
from indistill.files.formats import Format, require_format
from indistill.files.hashing import hash_file
from indistill.models.loading import load_network
from indistill.reports.comparison import group_runs
from indistill.run_folder import read_run
from tests.cli.calls import REPOSITORY, Result, assert_refused, run_cli
from tests.fixtures.make import FOLDER, IMAGES, MADE, TRAIN, find

IMAGE = IMAGES / "one" / "one.png"
# Formats without a fixture: what is made again whatever it is, is only printed, or lies on a server.
WITHOUT = {"TEACHER_CACHE", "CLOSENESS", "KEPT_EVALUATION", "EVALUATION_REPORT", "COLLECTION"}
NAMED = {name: value for name, value in vars(formats).items() if isinstance(value, Format)}


def attempt(read: Callable[[Path], object]) -> Callable[[Path], Result]:
    """Returns a function that ends as the command line would."""

    def run(folder: Path) -> Result:
        try:
            read(folder)
        except IndistillError as error:
            return Result(error.exit_code, "", f"indistill: error: {error}\n")
        return Result(0, "", "")

    return run


def read_embeddings(folder: Path) -> None:
    """Reads a chunk as a build on a cluster does that goes on."""
    from indistill.retrieval.cluster.chunks import Chunk, read_chunk, require_own_chunks

    manifest = json.loads((folder / "000000.json").read_text())
    chunk = Chunk(0, 0, manifest["images"], manifest["fingerprint"], manifest["source"])
    require_own_chunks(folder, chunk, manifest["model_sha256"])
    embedded = read_chunk(folder, chunk, manifest["model_sha256"])
    assert embedded is not None
    assert embedded.vectors.shape == (3, 8)


OPEN: dict[str, Callable[[Path], Result]] = {
    "run": attempt(lambda folder: load_network(str(folder))),
    "checkpoint": lambda folder: run_cli(*TRAIN, "--out", folder, "--resume"),
    "artefact": lambda folder: run_cli("info", folder / "model.onnx"),
    "model-folder": lambda folder: run_cli("push", folder, "someone/model", "--dry-run"),
    "index": lambda folder: run_cli("search", folder, IMAGE, "-k", 1),
    "shards": lambda folder: run_cli("search", folder, IMAGE, "-k", 1),
    "embeddings": attempt(read_embeddings),
    "bench": attempt(lambda folder: read_report(folder / "bench.json")),
}


def change_json(name: str, key: str = "format") -> Callable[[Path, int], None]:
    def change(folder: Path, version: int) -> None:
        for file in folder.glob(name):
            file.write_text(json.dumps(json.loads(file.read_text()) | {key: version}))

    return change


def change_run(folder: Path, version: int) -> None:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"format": version}))


def change_checkpoint(folder: Path, version: int) -> None:
    (file,) = (folder / "checkpoint").glob("*.pt")
    contents = torch.load(file, weights_only=True) | {"format": version}
    torch.save(contents, file)
    file.rename(file.with_name(f"{file.name.partition('-')[0]}-{hash_file(file)[:16]}.pt"))


def change_artefact(folder: Path, version: int) -> None:
    model = onnx.load(folder / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props} | {"indistill.format": str(version)}
    helper.set_model_props(model, metadata)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


CHANGE: dict[str, Callable[[Path, int], None]] = {
    "run": change_run,
    "checkpoint": change_checkpoint,
    "artefact": change_artefact,
    "model-folder": change_json("config.json"),
    "index": change_json("generations/*/manifest.json"),
    "shards": change_json("shards.json"),
    "embeddings": change_json("*.json"),
    "bench": change_json("bench.json", "schema_version"),
}
OLDER = sorted(
    (place.name, name)
    for name, (known, _) in MADE.items()
    for place in FOLDER.glob(f"{name}-[0-9]*")
    if place != find(name, known)
)
OPENS_AS_IT_IS = {"run-1-first"}


def copy_fixture(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place, tmp_path / place.name))


@pytest.mark.parametrize("name", MADE)
def test_what_is_written_now_has_a_fixture_that_opens(name: str, tmp_path: Path) -> None:
    """A format that was raised needs one: python -m tests.fixtures.make."""
    result = OPEN[name](copy_fixture(find(name, MADE[name][0]), tmp_path))
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", MADE)
def test_what_a_later_indistill_wrote_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    known = MADE[name][0].version
    folder = copy_fixture(find(name, MADE[name][0]), tmp_path)
    CHANGE[name](folder, known + 1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    result = OPEN[name](folder)
    assert_refused(
        result._replace(err="".join(line for line in result.err.splitlines(True) if "error: " in line)),
        f"has format {known + 1}, of a later indistill; this one ({__version__}) knows {known}: upgrade it by 'pip",
    )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("fixture", "name"), OLDER)
def test_what_an_earlier_indistill_wrote_opens_or_says_what_to_run(fixture: str, name: str, tmp_path: Path) -> None:
    result = OPEN[name](copy_fixture(FOLDER / fixture, tmp_path))
    if fixture in OPENS_AS_IT_IS:
        assert result.code == 0, result.err
        return
    assert (result.code, result.out) == (2, "")
    (line,) = [line for line in result.err.splitlines() if "error" in line]
    assert re.search(r"--overwrite|'indistill [a-z]+", line), line


def test_a_checkpoint_of_an_earlier_format_is_named() -> None:
    from indistill.training.checkpoint import Checkpoints

    with pytest.raises(InputError, match=r"has format 1, of an earlier indistill; .* start anew with --overwrite"):
        Checkpoints(FOLDER / "checkpoint-1" / "checkpoint", 60).read()


def test_a_run_that_states_no_format_is_compared_with_one_that_does() -> None:
    groups = group_runs([read_run(FOLDER / name) for name in ("run-1", "run-1-first")])
    assert len({group.name for group in groups}) == 2


@pytest.mark.parametrize("found", [None, "2", 2.0, True, 0, -1, [2]])
def test_a_format_that_is_no_number_is_damage(found: object) -> None:
    with pytest.raises(InputError, match=r"the thing is damaged: its format is .*; again"):
        require_format(Format(2, "again"), found, "the thing")


def test_the_page_of_upgrades_lists_every_format() -> None:
    page = (REPOSITORY / "docs" / "upgrades.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \|.*?\| (\d+) \|", page, re.MULTILINE))
    assert rows == {name: str(known.version) for name, known in NAMED.items()}
    assert {known for known, _ in MADE.values()} | {NAMED[name] for name in WITHOUT} == set(NAMED.values())


def test_fixtures_stay_small() -> None:
    """And as they were made: a fixture that is made anew shows nothing of the past."""
    sizes = {path: path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    assert max(sizes.values()) < 40_000
    assert hashlib.sha256((FOLDER / "index-1" / "model.onnx").read_bytes()).hexdigest().startswith("ce8da4b721dd")
