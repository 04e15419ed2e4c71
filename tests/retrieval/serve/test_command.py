"""`indistill serve` as a process."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from indistill.errors import InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.serve.settings import Settings
from tests.cli.calls import MAIN, make_environment
from tests.retrieval.serving import (
    SEARCH,
    TOKEN,
    read_answer,
    start_command,
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_the_command_stops_in_good_order_and_answers_what_has_begun(index: Path, number: int, code: int) -> None:
    with start_command(index, "--port", 0) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        port = int(url.rstrip("/").rsplit(":", 1)[1])
        assert httpx.get(f"{url}readyz", timeout=20).json() == {"status": "ready"}
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())
            time.sleep(0.2)
            process.send_signal(number)
            time.sleep(0.2)
            connection.sendall(b'{"id": 1}')
            assert read_answer(connection).startswith("HTTP/1.1 200 ")
        _, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert "POST /search 200" in errors


def test_the_command_stops_within_two_seconds_whatever_clients_do(index: Path) -> None:
    with start_command(index, "--port", 0) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(f"{SEARCH}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode())
            assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            answer = read_answer(connection)
            _, errors = process.communicate(timeout=20)
            seconds = time.monotonic() - begun
    assert answer.startswith("HTTP/1.1 503 ")
    assert "the server is stopping" in answer
    assert process.returncode == 143
    assert seconds < 4, errors  # two, and the load of other tests
    assert "Traceback" not in errors


@pytest.mark.slow
def test_the_command_refuses_what_would_be_open_to_all(index: Path, tmp_path: Path) -> None:
    short = tmp_path / "token"
    short.write_text("short\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, message in (
            ((index, "--host", "0.0.0.0"), "serving on 0.0.0.0 needs a token"),
            ((index, "--token-file", short), "the token must be 16 or more"),
            ((index, "--token-file", tmp_path / "none"), "cannot be read: No such file"),
            ((index, "--port", port), f"cannot listen on 127.0.0.1 port {port}: Address already in use"),
            ((tmp_path, "--port", 0), "is not an index"),
        ):
            with start_command(*arguments) as process:
                _, errors = process.communicate(timeout=30)
            assert process.returncode == 2, errors
            assert message in errors
            assert len(errors.splitlines()) == 1


def test_without_the_extra_one_line_says_what_to_install(index: Path) -> None:
    hide = "import sys; sys.modules['uvicorn'] = None\n"
    command = [sys.executable, "-c", hide + MAIN, "serve", str(index)]
    done = subprocess.run(command, env=make_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "indistill: error: serve needs uvicorn, which this installation lacks: pip install 'indistill[serve]'"
    ]


def test_settings_out_of_range_are_refused() -> None:
    for arguments in ({"rate": -1.0}, {"rate": float("nan")}, {"max_upload_bytes": 0}, {"token": "with a space in it"}):
        with pytest.raises(InputError):
            Settings(**arguments)  # type: ignore[arg-type]
    assert Settings(host="::1").is_local
    assert Settings(host="127.8.8.8").searches_per_second == 0
    assert Settings(host="0.0.0.0", token=TOKEN).searches_per_second == 10


def test_serving_needs_no_torch_and_tells_nobody_of_its_sessions(session: EmbeddingSession, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import indistill.retrieval.serve.server;"
        "from indistill.export.session import EmbeddingSession; EmbeddingSession(Path(sys.argv[1]));"
        "print('torch' in sys.modules)"
    )
    environment = make_environment() | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(session.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) is False
    assert list(tmp_path.iterdir()) == []  # ONNX Runtime 1.32 keeps an id and what it will send to its makers there
