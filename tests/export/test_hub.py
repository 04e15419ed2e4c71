"""`push` and `pull` against a Hub on this machine, by real HTTP: the same bytes come back; refusals are one line."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from indistill.export.folder import pack_folder
from tests.cli.calls import MAIN, Result, assert_refused, run_cli, run_process, snapshot
from tests.export.hub_server import TOKEN, Hub, Repository, serve_hub

WITHOUT_HUB = "import sys; sys.modules['huggingface_hub'] = None\n" + MAIN
WITHOUT_TORCH = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules))\n{MAIN}"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Yields a Hub that this process and its children use, logged in, and with no other login to be found."""
    home = tmp_path_factory.mktemp("home")
    with serve_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{template}")
        for name in ("HF_TOKEN_PATH", "HF_HUB_CACHE", "AGENT_HARNESSES_PATH"):
            if hasattr(constants, name):
                monkeypatch.setattr(constants, name, str(home / name))
        yield server
        huggingface_hub.close_session()


@pytest.fixture
def packed(exports: dict[str, Path], tmp_path: Path) -> Path:
    pack_folder([exports["tensor"], exports["tensor16"]], tmp_path / "packed", license_id="mit")
    return tmp_path / "packed"


def read_files(repository: Repository, branch: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in repository.branches[branch].items() if name != ".gitattributes"}


def push(folder: Path, *options: str) -> Result:
    return run_cli("push", folder, "me/shoes", *options)


def fill(hub: Hub, folder: Path) -> dict[str, bytes]:
    """Puts a folder's files into me/shoes, without `push`, and returns them."""
    repository = hub.repositories["me/shoes"] = Repository()
    files = repository.branches["main"]
    files |= {path.name: path.read_bytes() for path in folder.iterdir()}
    return files


def test_what_is_pushed_is_pulled_byte_for_byte(hub: Hub, packed: Path, tmp_path: Path) -> None:
    pushed = run_process("push", packed, "me/shoes", "--message", "A first one")
    assert (pushed.code, pushed.err) == (0, "")
    assert pushed.out.startswith(f"{hub.url}/me/shoes/commit/")
    assert read_files(hub.repositories["me/shoes"]) == snapshot(packed)
    assert hub.repositories["me/shoes"].messages == ["A first one"]
    assert not hub.repositories["me/shoes"].private
    pulled = run_process("pull", "me/shoes", "--out", tmp_path / "pulled")
    assert pulled.code == 0, pulled.err
    assert pulled.out.splitlines()[0] == str(tmp_path / "pulled")
    assert snapshot(tmp_path / "pulled") == snapshot(packed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "pulled"]


def test_a_second_push_replaces_what_is_no_longer_in_the_folder(
    hub: Hub, packed: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    files = fill(hub, packed)
    files["LICENSE"] = b"theirs"
    pack_folder([exports["other"]], packed, overwrite=True)
    assert push(packed).code == 0
    assert read_files(hub.repositories["me/shoes"]) == snapshot(packed) | {"LICENSE": b"theirs"}


def test_a_revision_is_a_branch_that_is_made(hub: Hub, packed: Path, tmp_path: Path) -> None:
    hub.repositories["me/shoes"] = Repository()
    for _ in range(2):
        assert push(packed, "--revision", "v1").code == 0
    assert read_files(hub.repositories["me/shoes"]) == {}
    assert read_files(hub.repositories["me/shoes"], "v1") == snapshot(packed)
    result = run_cli("pull", "me/shoes", "--out", tmp_path / "pulled", "--revision", "v1", "--json")
    assert result.code == 0, result.err
    assert {file["file"] for file in json.loads(result.out)["files"]} == set(snapshot(packed))


def test_a_private_repository_is_made_and_a_public_one_is_not_written_to(hub: Hub, packed: Path) -> None:
    assert push(packed, "--private").code == 0
    assert hub.repositories["me/shoes"].private
    hub.repositories["me/shoes"] = Repository()
    assert_refused(push(packed, "--private"), "'me/shoes' is there already and is public: nothing was sent")
    assert read_files(hub.repositories["me/shoes"]) == {}


def test_only_files_of_the_folder_are_sent(hub: Hub, packed: Path) -> None:
    (packed / ".env").write_text("SECRET=1")
    result = push(packed)
    assert result.code == 0
    assert "not sent, as they are no part of a model folder: .env" in result.err
    assert ".env" not in hub.repositories["me/shoes"].branches["main"]


def test_a_dry_run_says_what_would_be_sent_and_uses_neither_network_nor_torch(hub: Hub, packed: Path) -> None:
    result = run_process("push", packed, "me/shoes", "--dry-run", "--private", code=WITHOUT_TORCH)
    assert result.code == 0, result.err
    first, *files, torch = result.out.splitlines()
    assert first == f"would send to me/shoes, private, at {hub.url}:"
    assert {line.split()[0]: line.split()[1] for line in files} == {
        name: f"{len(data or b''):,}" for name, data in snapshot(packed).items()
    }
    assert torch == "False"
    assert (hub.requests, hub.repositories) == ([], {})


def test_pull_replaces_an_older_folder_when_told_to(hub: Hub, packed: Path, exports: dict[str, Path]) -> None:
    fill(hub, packed)
    pulled = pack_folder([exports["other"]], packed.parent / "pulled").path
    refused = run_cli("pull", "me/shoes", "--out", pulled)
    assert_refused(refused, "replace it with --overwrite")
    assert hub.requests == []
    assert run_cli("pull", "me/shoes", "--out", pulled, "--overwrite").code == 0
    assert snapshot(pulled) == snapshot(packed)


SPOILT = {
    "no model": ("model.onnx", None, "'me/shoes' is no model folder, as 'indistill push' sends it: no model.onnx"),
    "a damaged model": ("model.onnx", b"x" * 99, "me/shoes: model.onnx is not an ONNX file that can be run"),
    "another kind": ("config.json", b"{}", "me/shoes: config.json is of another kind of model"),
    "a large text": ("README.md", bytes(2**20 + 1), "'me/shoes': README.md has 1,048,577 bytes"),
}


@pytest.mark.parametrize(("name", "data", "reason"), SPOILT.values(), ids=SPOILT)
def test_a_repository_that_is_no_model_folder_is_refused_and_leaves_nothing(
    hub: Hub, packed: Path, name: str, data: bytes | None, reason: str
) -> None:
    files = fill(hub, packed)
    del files[name]
    if data is not None:
        files[name] = data
    before = snapshot(packed.parent)
    assert_refused(run_cli("pull", "me/shoes", "--out", packed.parent / "pulled"), reason)
    assert snapshot(packed.parent) == before


def test_other_files_of_a_repository_are_not_fetched(hub: Hub, packed: Path) -> None:
    fill(hub, packed)["setup.py"] = b"import os"
    assert run_cli("pull", "me/shoes", "--out", packed.parent / "pulled").code == 0
    assert snapshot(packed.parent / "pulled") == snapshot(packed)
    assert not any("setup.py" in request for request in hub.requests)


def test_without_a_login_both_say_how_to_log_in(hub: Hub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(push(packed), f"{hub.url} does not let you do this with 'me/shoes'", "hf auth login")
    hub.repositories["me/shoes"] = Repository(private=True)
    refused = run_cli("pull", "me/shoes", "--out", packed.parent / "pulled")
    assert_refused(refused, "there is no repository 'me/shoes'", "hf auth login")


def test_what_is_not_there_is_refused(hub: Hub, packed: Path) -> None:
    out = packed.parent / "pulled"
    assert_refused(run_cli("pull", "me/boots", "--out", out), f"there is no repository 'me/boots' at {hub.url}")
    fill(hub, packed)
    refused = run_cli("pull", "me/shoes", "--out", out, "--revision", "v9")
    assert_refused(refused, f"'me/shoes' at {hub.url} has no such revision")


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/sho es", "../x", "-x", "me/shoes.git"])
def test_what_cannot_be_a_repository_is_refused_without_the_network(hub: Hub, packed: Path, repo_id: str) -> None:
    for line in (["push", packed, "--dry-run"], ["push", packed], ["pull", "--out", packed.parent / "pulled"]):
        assert_refused(run_cli(*line, "--", repo_id), f"'{repo_id}' is no repository")
    assert hub.requests == []


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_fails_is_our_failure(hub: Hub, packed: Path, status: int) -> None:
    hub.failing = status
    for line in (["push", packed, "me/shoes"], ["pull", "me/shoes", "--out", packed.parent / "pulled"]):
        result = run_cli(*line)
        assert result.code == 1
        (text,) = result.err.splitlines()
        assert text.startswith(f"indistill: error: {hub.url} failed (status {status}: ")


def test_a_hub_that_is_not_there_is_our_failure(hub: Hub, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", url := f"http://127.0.0.1:{free.getsockname()[1]}")
        for line in (["push", packed, "me/shoes"], ["pull", "me/shoes", "--out", packed.parent / "pulled"]):
            result = run_cli(*line)
            assert result.code == 1
            (text,) = result.err.splitlines()
            assert text.startswith(f"indistill: error: {url} cannot be reached, or broke off: ")
    assert [path.name for path in packed.parent.iterdir()] == ["packed"]


def test_without_the_package_both_say_what_to_install(packed: Path) -> None:
    for line in (["push", packed, "me/shoes", "--dry-run"], ["pull", "me/shoes", "--out", packed / "x"]):
        assert_refused(run_process(*line, code=WITHOUT_HUB), "pip install 'indistill[hub]'")


def test_a_folder_that_was_spoilt_is_not_sent(hub: Hub, packed: Path) -> None:
    model, card = packed / "model.onnx", packed / "README.md"
    whole = model.read_bytes()
    model.write_bytes(whole[:-9])
    assert_refused(push(packed), "model.onnx is not an ONNX file that can be run")
    model.write_bytes(whole)
    card.write_text(card.read_text().replace("model-index:\n- name:", "model-index:\n- title:"))
    assert_refused(push(packed), "README.md is no model card for the Hub")
    assert hub.requests == []
