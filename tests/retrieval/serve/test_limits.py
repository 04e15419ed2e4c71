"""How much may be asked of the service, and how long it may take."""

import io
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image

from indistill.retrieval.serve import service
from indistill.retrieval.serve.limits import MAX_CLIENTS, RateLimit, Room
from indistill.retrieval.serve.problems import Refusal
from tests.retrieval.serving import (
    SEARCH,
    SETTINGS,
    Server,
    assert_error,
    connect,
    read_answer,
    serve_index,
    upload,
)


def test_an_upload_above_the_limit_is_refused_before_it_is_read(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, max_upload_bytes=50_000)) as running:
        port = int(running.url.rsplit(":", 1)[1])
        head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"{head}Content-Length: 60000\r\n\r\n".encode())  # and not one byte of it
            answer = read_answer(connection)
            assert answer.startswith("HTTP/1.1 413 ")
            assert '"code":"too_large"' in answer
            assert "limit of 0.05 MB" in answer
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:  # no length given
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            chunk = start + bytes(30_000)
            for _ in range(2):
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            assert read_answer(connection).startswith("HTTP/1.1 413 ")


def test_an_image_of_too_many_pixels_is_refused(index: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (200, 100)).save(stream, "PNG")
    with serve_index(index, replace(SETTINGS, max_pixels=19_999)) as running:
        assert_error(upload(running.client, stream.getvalue()), 422, "invalid", "200x100 pixels, more than the limit")


def test_a_request_that_takes_too_long_is_ended(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, time_limit_s=0.3)) as running:
        port = int(running.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())
            answer = read_answer(connection)
        assert answer.startswith("HTTP/1.1 504 ")
        assert "longer than 0.3 s" in answer


def test_searches_beyond_the_queue_are_told_to_come_back(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, queue_size=1)) as running, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> httpx.Response:
            return running.client.post("/search", json={"id": 1})

        deadline = time.monotonic() + 20
        seen: dict[int, httpx.Response] = {}
        while set(seen) != {200, 503}:
            seen |= {response.status_code: response for response in pool.map(ask, range(8))}
            assert time.monotonic() < deadline, seen
        assert_error(seen[503], 503, "busy", "try again")
        assert seen[503].headers["retry-after"] == "1"
        assert ask(0).status_code == 200


def test_a_slow_upload_keeps_no_place_from_others(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, queue_size=1)) as running, connect(running) as connection:
        connection.sendall(f"{SEARCH}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode())
        for _ in range(3):
            assert running.client.post("/search", json={"id": 1}).status_code == 200
        connection.sendall(b'{"id": 1}')
        assert read_answer(connection).startswith("HTTP/1.1 200 ")


def test_uploads_share_a_budget_of_memory(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, uploads_bytes=50_000)) as running:
        with connect(running) as connection:
            head = f"{SEARCH}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 60000\r\n\r\n"
            part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            connection.sendall(head.encode() + part + bytes(40_000))
            deadline = time.monotonic() + 20
            while (response := upload(running.client, bytes(20_000))).status_code != 503:
                assert time.monotonic() < deadline
            assert_error(response, 503, "busy", "too many uploads at once")
            assert upload(running.client, bytes(2000)).status_code == 422
        while upload(running.client, bytes(20_000)).status_code != 422:  # the first one is gone
            assert time.monotonic() < deadline


def test_no_upload_touches_a_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert_error(upload(server.client, bytes(3_000_000)), 422, "invalid", "not an image")


def test_a_client_that_sends_all_before_it_reads_learns_that_it_was_too_much(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, max_upload_bytes=50_000)) as running:
        assert_error(upload(running.client, bytes(30_000_000)), 413, "too_large", "limit of 0.05 MB")
        assert_error(running.client.post("/search", json={"id": "9" * 2000}), 413, "too_large", "1000 bytes")


def test_images_of_very_many_pixels_have_a_thread_and_places_of_their_own(
    index: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.new("1", (100, 100)).save(stream, "PNG")
    monkeypatch.setattr(service, "GIANT", 64 * 48)
    with serve_index(index, SETTINGS) as running:
        assert upload(running.client, stream.getvalue()).status_code == 200
    monkeypatch.setattr(service, "GIANTS_WAITING", 0)
    with serve_index(index, SETTINGS) as running:
        assert upload(running.client, stream.getvalue()).status_code == 503
        assert upload(running.client, (gallery / "cat" / "000.png").read_bytes()).status_code == 200


def test_a_slow_server_lets_fewer_searches_in_until_it_is_fast_again() -> None:
    now = 0.0
    room = Room(8, patience_s=5, clock=lambda: now)

    def fill(seconds: float) -> int:
        """Lets in as many as there are places, all for some time, and returns how many those were."""
        nonlocal now
        with ExitStack() as inside:
            entered = 0
            with suppress(Refusal):
                while entered < 9:
                    inside.enter_context(room.enter())
                    entered += 1
            now += seconds
        return entered

    assert fill(1) == 8
    crowds = [fill(6) for _ in range(10)]
    assert crowds == sorted(crowds, reverse=True)
    assert crowds[-1] == 1
    assert [fill(1) for _ in range(40)][-1] == 8


def test_a_client_above_its_rate_is_told_when_to_come_back(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, rate=0.2)) as running:
        assert running.client.post("/search", json={"id": 1}).status_code == 200
        response = running.client.post("/search", json={"id": 1})
        assert_error(response, 429, "too_many_requests", "too many requests")
        assert 1 <= int(response.headers["retry-after"]) <= 6
        assert running.client.get("/healthz").status_code == 200


def test_a_bucket_refills_with_time_and_is_each_clients_own() -> None:
    now = 0.0
    limit = RateLimit(2, lambda: now)
    assert [limit.take("a") for _ in range(10)] == [0] * 10  # five seconds' worth at once
    assert limit.take("a") == pytest.approx(0.5)
    assert limit.take("b") == 0
    now = 0.5
    assert limit.take("a") == 0
    assert limit.take("a") > 0
    for number in range(2 * MAX_CLIENTS):
        limit.take(str(number))
    assert len(limit._buckets) == MAX_CLIENTS
    unlimited = RateLimit(0)
    assert not any(unlimited.take("a") for _ in range(1000))
