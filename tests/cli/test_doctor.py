"""`indistill doctor` tells what is broken, whatever it is, and never falls ill itself."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from indistill.cli.doctor import machine, packages
from indistill.cli.doctor.findings import Finding, look
from indistill.cli.doctor.packages import Requirement, list_requirements
from indistill.files import formats
from tests.cli.calls import run_cli, run_process, succeed
from tests.cli.test_formats import CHANGE, copy_fixture
from tests.fixtures.make import FOLDER, MADE, find

QUICK = dict.fromkeys(packages.FACTS, "facts = ['loads']")
ALL = "json.dumps(sorted(name for name in ('torch', 'onnx', 'faiss', 'numpy', 'onnxruntime') if name in sys.modules))"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processes that load packages load none."""
    monkeypatch.setattr(packages, "FACTS", QUICK)


def inspect(*options: str) -> dict[str, dict[str, str]]:
    result = run_cli("doctor", "--json", *options)
    return {finding["name"]: finding for finding in json.loads(result.out)}


@pytest.mark.slow
def test_all_is_well_here_and_the_whole_way_works() -> None:
    """Loads what is compiled, and embeds, indexes and searches."""
    result = succeed("doctor", "--test")
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert {"Python", "CPUs", "cache", "shared memory", "open files", "torch", "extra serve"} <= set(lines)
    assert "CPUExecutionProvider" in lines["onnxruntime"]
    assert "JPEG" in lines["pillow"]
    assert lines["self test"].endswith("embedded, indexed and searched 4 images: the right one has the score 1.000")


def test_doctor_itself_loads_nothing_that_is_heavy() -> None:
    code = (
        "import json, sys\nfrom indistill.cli.doctor import packages\n"
        "packages.FACTS = {name: \"facts = ['loads']\" for name in packages.FACTS}\n"
        "from indistill.cli.main import main\ntry:\n    main()\nfinally:\n    print(" + ALL + ", file=sys.stderr)"
    )
    result = run_process("doctor", "--json", code=code)
    assert json.loads(result.err.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("code", "state", "found"),
    [
        ("raise ImportError('undefined symbol: x')", "broken", "ImportError: undefined symbol: x"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "broken", "ends the process by SIGSEGV"),
        ("import sys; sys.exit(3)", "broken", "exit code 3"),
        ("import sys; print('compiled using NumPy 1.x', file=sys.stderr); facts = []", "warning", "NumPy 1.x"),
        ("import time; time.sleep(60)", "broken", "does not load within 1 seconds"),
        (r"raise RuntimeError('\x1b[31mred')", "broken", r"\x1b[31mred"),
    ],
    ids=["import error", "crash", "exit", "NumPy's interface", "hangs", "steers the terminal"],
)
def test_what_does_not_load_is_a_line(
    code: str, state: str, found: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "FACTS", QUICK | {"faiss-cpu": code})
    if "sleep" in code:
        monkeypatch.setattr(packages, "FACTS", {"faiss-cpu": code})
        monkeypatch.setattr(packages, "TIMEOUT_S", 1)
    finding = inspect()["faiss-cpu"]
    assert finding["state"] == state
    assert found in finding["found"]
    assert run_cli("doctor").code == (1 if state == "broken" else 0)


def test_torchvision_of_another_torch_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "raise RuntimeError('operator torchvision::nms does not exist')"
    monkeypatch.setattr(packages, "FACTS", QUICK | {"torchvision": code})
    assert inspect()["torchvision"]["hint"].startswith("pip install --upgrade torch torchvision, together")


def test_missing_and_old_packages_are_told_with_the_line_that_gets_them(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [
        Requirement("no-such-package", "1.0", ""),
        Requirement("numpy", "999.0", ""),
        Requirement("numpy", "999.0", "swift"),
        Requirement("typer", "0.1", "handy"),
    ]
    monkeypatch.setattr(packages, "list_requirements", lambda: needed)
    found = inspect()
    assert (found["no-such-package"]["state"], found["numpy"]["state"]) == ("broken", "broken")
    assert found["numpy"]["hint"] == "pip install --upgrade 'numpy>=999.0'"
    assert (found["extra swift"]["state"], found["extra swift"]["hint"]) == (
        "absent",
        "pip install 'indistill[swift]'",
    )
    assert found["extra handy"]["state"] == "ok"
    assert run_cli("doctor").code == 1
    monkeypatch.setattr(packages, "list_requirements", lambda: needed[2:])
    assert run_cli("doctor").code == 0


def test_requirements_are_those_of_the_project() -> None:
    found = list_requirements()
    assert len([line for line in metadata.requires("indistill") or [] if "extra" not in line]) == len(
        [requirement for requirement in found if not requirement.extra]
    )
    assert "milvus" in {requirement.extra for requirement in found}


def raise_it(error: BaseException) -> Callable[..., Finding]:
    def probe(*_: object) -> Finding:
        raise error

    return probe


@pytest.mark.parametrize("name", ["inspect_machine", "inspect_processors", "inspect_memory", "inspect_open_files"])
def test_a_look_that_fails_is_a_finding(name: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, name, raise_it(RuntimeError("ill\nsecond line")))
    result = run_cli("doctor")
    assert result.code == 1
    assert "broken   RuntimeError: ill" in result.out
    assert "self test" not in result.out
    assert len(result.out.splitlines()) > 30


def test_a_place_that_cannot_be_written_to_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine.inspect_place("cache", tmp_path / "file" / "cache")
    assert finding.state == "broken"
    assert machine.inspect_place("cache", tmp_path / "not" / "yet").state == "ok"
    assert not (tmp_path / "not").exists()


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.read_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.read_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert machine.read_quota(tmp_path) == 0.5
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.inspect_processors().found.endswith("usable (limit of the container)")
    assert machine.inspect_processors().found.startswith("0.5 of ")


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LITTLE_DISK", 10**18)
    monkeypatch.setattr(machine, "LITTLE_SHARED_MEMORY", 10**18)
    assert machine.inspect_working_folder().state == "warning"
    assert "--shm-size" in machine.inspect_shared_memory().hint


@pytest.mark.parametrize("name", MADE)
def test_a_path_is_named_with_its_format(name: str) -> None:
    known, folder = MADE[name][0], find(name, MADE[name][0])
    path = {"artefact": folder / "model.onnx", "bench": folder / "bench.json"}.get(name, folder)
    first, second = succeed("doctor", path).out.splitlines()
    version = formats.RUN.version if name == "checkpoint" else known.version
    assert first.split("  ")[0] == str(path)
    assert first.endswith(f", format {version}")
    assert second.split()[:3] == ["its", "content", "ok"]


@pytest.mark.parametrize("name", ["index", "run", "shards", "model-folder", "embeddings"])
def test_a_path_of_a_later_format_is_broken(name: str, tmp_path: Path) -> None:
    folder = copy_fixture(find(name, MADE[name][0]), tmp_path)
    CHANGE[name](folder, 99)
    result = run_cli("doctor", folder)
    assert result.code == 1
    assert "has format 99, of a later indistill" in result.out


@pytest.mark.parametrize(
    ("fixture", "file"),
    [
        ("index-2", "generations/00000001/index.faiss"),
        ("shards-1", "shards-00000001/0001/generations/00000001/index.faiss"),
        ("embeddings-1", "000001.parquet"),
        ("checkpoint-2", "checkpoint/*.pt"),
        ("run-1", "model.safetensors"),
        ("artefact-2", "model.onnx"),
        ("model-folder-1", "model.onnx"),
    ],
)
def test_damage_is_found(fixture: str, file: str, tmp_path: Path) -> None:
    folder = copy_fixture(FOLDER / fixture, tmp_path)
    (path,) = folder.glob(file)
    path.write_bytes(path.read_bytes()[:-9])
    result = run_cli("doctor", path if fixture.startswith("artefact") else folder)
    assert result.code == 1
    assert "  broken  " in result.out
    assert "Traceback" not in result.out + result.err


def test_images_are_counted() -> None:
    first, second = succeed("doctor", FOLDER / "images").out.splitlines()
    assert first.split()[1:] == ["ok", "5", "images", "in", "5", "classes"]
    assert "not read" in second


@pytest.mark.parametrize(
    ("name", "state"), [("none", "unknown"), ("note.txt", "broken"), ("empty", "unknown"), ("list.json", "broken")]
)
def test_what_is_nothing_of_ours_is_said_in_a_line(name: str, state: str, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    result = run_cli("doctor", tmp_path / name)
    assert (result.code, result.err, len(result.out.splitlines())) == (1, "", 1)
    assert result.out.split()[1] == state


def test_anything_that_a_look_raises_is_caught() -> None:
    assert look("a", raise_it(ValueError())) == Finding("a", "broken", "ValueError")
