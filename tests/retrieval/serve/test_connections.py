"""Connections that are slow, too many, broken off, or speak no good HTTP."""

import json
import logging
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.retrieval.serving import (
    SEARCH,
    SETTINGS,
    Server,
    connect,
    read_answer,
    serve_index,
    upload,
)

QUICK = replace(SETTINGS, head_limit_s=0.3, stall_limit_s=0.3)


@pytest.fixture(scope="module")
def quick(index: Path) -> Server:
    with serve_index(index, QUICK) as running:
        yield running


def read_to_end(connection: socket.socket) -> bytes:
    """Returns all that comes until the server closes, which it must."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def test_a_head_that_does_not_come_is_not_waited_for(quick: Server) -> None:
    with connect(quick) as idle, connect(quick) as slow, connect(quick) as answered:
        slow.sendall(b"GET /index HTTP/1.1\r\nHost: local")
        answered.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(answered).startswith("HTTP/1.1 200 ")
        answered.sendall(b"GET /he")
        assert read_to_end(idle) == b""
        for connection in (slow, answered):
            head, _, body = read_to_end(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 ")
            assert json.loads(body)["error"]["code"] == "too_slow"


def test_a_client_that_does_not_take_its_answers_is_dropped(quick: Server) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        connection.connect(("127.0.0.1", int(quick.url.rsplit(":", 1)[1])))
        connection.settimeout(0.1)
        deadline = time.monotonic() + 20
        while is_open(connection):
            assert time.monotonic() < deadline


def is_open(connection: socket.socket) -> bool:
    """Asks for much and reads nothing; returns whether the server still has the connection."""
    try:
        connection.sendall(b"GET /static/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    return True


def test_the_connection_that_waited_longest_makes_room(index: Path) -> None:
    settings = replace(SETTINGS, connections=2)
    with serve_index(index, settings) as running, connect(running) as first, connect(running) as second:
        assert running.client.get("/healthz").status_code == 200
        assert read_to_end(first) == b""
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(second).startswith("HTTP/1.1 200 ")


def test_a_connection_too_many_is_told_so_when_all_others_are_at_work(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, connections=1)) as running, connect(running) as working:
        working.sendall(f"{SEARCH}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n".encode())
        time.sleep(0.2)
        with connect(running) as refused:
            answer = read_to_end(refused)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        working.sendall(b'{"id": 1}')
        assert read_answer(working).startswith("HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 9\r\nTransfer-Encoding: chunked",
        "Content-Length: 9\r\nContent-Length: 8",
        "Content-Length: +9",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
    ],
)
def test_what_two_readers_could_split_differently_is_refused_and_nothing_after_it_is_read(
    quick: Server, framing: str
) -> None:
    with connect(quick) as connection:
        smuggled = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(f"{SEARCH}{framing}\r\n\r\n0\r\n\r\n{smuggled}".encode())
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"x-content-type-options: nosniff" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_an_upload_that_is_broken_off_is_a_line_in_the_log_and_no_failure(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serve_index(index, SETTINGS) as running:
        with connect(running) as connection:
            head = f"{SEARCH}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 60000\r\n\r\n"
            connection.sendall(head.encode() + b"--b\r\n")
        deadline = time.monotonic() + 20
        while "POST /search 499" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert 'code="499"' in running.client.get("/metrics").text
        assert upload(running.client, b"x").status_code == 422
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text
