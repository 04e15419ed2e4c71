"""Who is answered, what each answer carries, and what is logged."""

import logging
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.retrieval.serving import (
    SETTINGS,
    TOKEN,
    Server,
    assert_error,
    connect,
    serve_index,
    start_command,
    upload,
)


def test_with_a_token_only_the_page_and_the_health_are_open(guarded: Server) -> None:
    paths = ["/search", "/images/1", "/items", "/items/1", "/index", "/metrics", "/openapi.json", "/nothing"]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        with httpx.Client(base_url=guarded.url, headers=headers) as stranger:
            for path in paths:
                response = stranger.get(path)
                assert_error(response, 401, "token_needed", "Authorization: Bearer")
                assert response.headers["www-authenticate"] == "Bearer"
            for path in ("/", "/static/page.js", "/healthz", "/readyz"):
                assert stranger.get(path).status_code == 200
    assert guarded.client.get("/images/1").status_code == 200
    assert guarded.client.post("/search", json={"id": 1}).status_code == 200


def test_only_the_servers_own_names_are_answered(index: Path) -> None:
    with serve_index(index, replace(SETTINGS, allow_hosts=("Photos.example",))) as running:
        for host in ("localhost", "127.0.0.1:1234", "[::1]:80", "photos.example:443", "LOCALHOST"):
            assert running.client.get("/healthz", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1@evil.example", "localhost:x:y", "", "[::1"):
            response = running.client.get("/healthz", headers={"Host": host})
            assert_error(response, 421, "unknown_host", "--allow-host")


def test_another_sites_page_cannot_search(server: Server) -> None:
    own = server.url
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": own, "Sec-Fetch-Site": "cross-site"},
    ):
        response = server.client.post("/search", json={"id": 1}, headers=headers)
        assert_error(response, 403, "refused", "another site")
    for headers in ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        assert server.client.post("/search", json={"id": 1}, headers=headers).status_code == 200


def test_every_answer_carries_the_security_headers(server: Server) -> None:
    for path in ("/", "/static/page.css", "/index", "/images/1", "/nothing"):
        headers = server.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
        assert "cache-control" in headers


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    page = server.client.get("/").text
    assert "<style" not in page
    assert not re.search(r"<script(?![^>]* src=)", page)
    for path in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert path.startswith("/static/") or path in ("/", "#results"), path
        assert server.client.get(path).status_code == 200
    for text in (page, *(server.client.get(f"/static/page.{kind}").text for kind in ("js", "css"))):
        assert not re.search(r"https?://(?!www\.w3\.org)", text)


def test_the_log_holds_nothing_of_the_users(index: Path, gallery: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve_index(index, SETTINGS) as running:
        caplog.clear()
        upload(running.client, (gallery / "cat" / "007.png").read_bytes(), where="label = 'private'")
        running.client.get("/images/17")
        running.client.get("/private-path")
        until = time.monotonic() + 5  # a request is logged after its answer
        while "GET unmatched" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)
        lines = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    text = "\n".join(lines)
    assert re.search(r"^POST /search 200 [\d.]+ ms$", text, re.MULTILINE)
    assert re.search(r"^GET unmatched 404 ", text, re.MULTILINE)
    assert not re.search(r"secret|private|007|17|\.png", re.sub(r"[\d.]+ ms", "", text))


def test_the_log_of_the_command_quotes_nothing_of_an_upload_or_a_refused_request(index: Path) -> None:
    with start_command(index, "--port", 0) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=20) as client:
            kind = {"Content-Type": "multipart/form-data; boundary=b"}
            assert client.post("/search", content=b"secret body", headers=kind).status_code == 400
            assert client.get("/index?token=secret", headers={"X-Forwarded-For": "8.8.4.4"}).status_code == 200
            assert client.get("/secret", headers={"Host": "secret.example"}).status_code == 421
            with connect(Server(url.rstrip("/"), client)) as connection:
                connection.sendall(b"secret\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    lines = [re.sub(r"^\S+ \S+ |[\d.]+ ms$", "", line) for line in errors.splitlines()]
    assert lines == [
        "INFO POST /search 400 ",
        "INFO GET /index 200 ",
        "INFO GET unmatched 421 ",
        "WARNING Invalid HTTP request received.",
    ]
