"""The service over real HTTP."""

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from indistill.errors import InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Hit, Index
from indistill.retrieval.serve.limits import MAX_CLIENTS, RateLimit
from indistill.retrieval.serve.settings import Settings
from indistill.retrieval.where import parse_where
from tests.cli.calls import MAIN, make_environment
from tests.retrieval.serving import Server, build_small_index, export_model, serve_index, write_gallery

TOKEN = "a-token-for-the-tests"
SETTINGS = Settings(poll_s=0.05, threads=1)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    return export_model(tmp_path_factory.mktemp("model") / "student.onnx")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, gallery: Path, session: EmbeddingSession) -> Path:
    return build_small_index(gallery, session, tmp_path_factory.mktemp("built") / "index")


@pytest.fixture(scope="module")
def server(index: Path) -> Iterator[Server]:
    with serve_index(index, SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(index: Path) -> Iterator[Server]:
    with serve_index(index, replace(SETTINGS, token=TOKEN)) as running:
        yield running


def upload(client: httpx.Client, content: bytes, **parameters: str | float) -> httpx.Response:
    return client.post("/search", files={"image": ("secret name.png", content)}, params=parameters)


def read_answer(connection: socket.socket) -> str:
    """Returns an answer whole: its head and its body may come apart."""
    received = b""
    while not (head := re.search(rb"content-length: (\d+)\r\n.*?\r\n\r\n", received, re.DOTALL)) or (
        len(received) < head.end() + int(head[1])
    ):
        more = connection.recv(10_000)
        assert more, received
        received += more
    return received.decode()


def assert_hits(response: httpx.Response, expected: list[Hit]) -> None:
    """The same images in the same order; the last digits of a score depend on the size of a batch."""
    assert response.status_code == 200, response.text
    hits = response.json()["hits"]
    assert [(h["rank"], h["id"], h["path"], h["label"]) for h in hits] == [
        (h.rank, h.id, h.path, h.label) for h in expected
    ]
    assert np.allclose([h["score"] for h in hits], [h.score for h in expected], atol=1e-5)


def assert_error(response: httpx.Response, status: int, code: str, message: str) -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"]["code"] == code
    assert re.search(message, response.json()["error"]["message"]), response.text


def test_an_upload_finds_what_the_index_finds(
    server: Server, index: Path, session: EmbeddingSession, gallery: Path
) -> None:
    content = (gallery / "cat" / "007.png").read_bytes()
    (expected,) = Index(index).search(session.embed_images([content]), 7)
    assert_hits(upload(server.client, content, k=7), expected)


def test_an_id_finds_what_its_image_finds(server: Server, index: Path) -> None:
    opened = Index(index)
    (expected,) = opened.search(opened.find_vectors([13]), 10)
    assert expected[0].id == 13
    assert_hits(server.client.post("/search", json={"id": 13}), expected)


def test_a_filter_and_a_threshold_are_those_of_the_index(server: Server, index: Path) -> None:
    opened, where = Index(index), "label = 'döner'"
    (expected,) = opened.search(opened.find_vectors([3]), 5, where=parse_where(where))
    assert {hit.label for hit in expected} == {"döner"}
    assert_hits(server.client.post("/search", json={"id": 3}, params={"k": 5, "where": where}), expected)
    threshold = expected[1].score - 1e-4
    response = server.client.post("/search", json={"id": 3}, params={"k": 5, "where": where, "threshold": threshold})
    assert_hits(response, expected[:2])


def test_sixteen_clients_at_once_get_each_their_own_answer(index: Path, gallery: Path) -> None:
    names = [f"{label}/{i:03}.png" for label in ("cat", "döner") for i in range(20)]
    with serve_index(index, SETTINGS) as running:

        def ask(number: int) -> list[tuple[str, int, str | None]]:
            found = []
            with httpx.Client(base_url=running.url, timeout=20) as client:
                for turn in range(6):
                    name = names[(number * 7 + turn) % len(names)]
                    where = "label = 'cat'" if turn == 5 else ""
                    answer = upload(client, (gallery / name).read_bytes(), k=1 + number % 3, where=where).json()
                    found.append((name if turn != 5 else "", len(answer["hits"]), answer["hits"][0]["path"]))
            return found

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(16)))
        text = running.client.get("/metrics").text
    for number, found in enumerate(answers):
        for name, count, path in found:
            assert count == 1 + number % 3
            assert path == name or (name == "" and path is not None and path.startswith("cat/"))
    batches = float(re.findall(r"^indistill_batch_size_count (\S+)", text, re.MULTILINE)[0])
    searches = float(re.findall(r"^indistill_batch_size_sum (\S+)", text, re.MULTILINE)[0])
    assert searches == 96
    assert batches < 96  # some of them met
    assert 'indistill_requests_total{code="200",method="POST",route="/search"} 96.0' in text
    assert "indistill_generation 1.0" in text
    assert "indistill_items 40.0" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty file"), (b"some text", "not an image"), (None, "damaged image")],
    ids=["empty", "text", "truncated"],
)
def test_an_upload_that_is_no_image_is_told_why(
    server: Server, gallery: Path, content: bytes | None, message: str
) -> None:
    whole = (gallery / "cat" / "000.png").read_bytes()
    cut = whole[: len(whole) // 2] if content is None else content
    assert_error(upload(server.client, cut), 422, "invalid", f"the upload cannot be read: .*{message}")


def test_what_cannot_be_asked_has_an_error_in_one_form(server: Server) -> None:
    post, get = server.client.post, server.client.get
    assert_error(post("/search", json={"id": 999}), 404, "not_found", "no image 999")
    assert_error(post("/search", json={"url": "http://example.org/a.png"}), 422, "invalid", 'must be {"id": N}')
    assert_error(post("/search", json={"id": "1; DROP TABLE items"}), 422, "invalid", 'must be {"id": N}')
    assert_error(post("/search", content=b"{", headers={"content-type": "application/json"}), 422, "invalid", "body")
    assert_error(post("/search", content=b"x"), 415, "wrong_content_type", "multipart/form-data")
    assert_error(post("/search", files={"picture": b"x"}), 422, "invalid", "in the field image")
    assert_error(post("/search", files=[("image", b"x"), ("image", b"y")]), 400, "bad_request", "Too many files")
    assert_error(post("/search", data={"image": "x"}, files={"other": b""}), 422, "invalid", "one file")
    assert_error(post("/search", json={"id": 1}, params={"k": 0}), 422, "invalid", "^k: ")
    assert_error(post("/search", json={"id": 1}, params={"k": 1001}), 422, "invalid", "^k: ")
    assert_error(post("/search", json={"id": 1}, params={"threshold": "nan"}), 422, "invalid", "^threshold: ")
    assert_error(post("/search", json={"id": 1}, params={"where": "nonsense ="}), 400, "bad_request", "nonsense")
    assert_error(get("/items/999"), 404, "not_found", "no image 999")
    assert_error(get("/items/x"), 422, "invalid", "^id: ")
    assert_error(get("/images/999"), 404, "not_found", "no image 999")
    assert_error(get("/images/1", params={"size": 5000}), 422, "invalid", "^size: ")
    assert_error(get("/images/../../etc/passwd"), 404, "not_found", "Not Found")
    assert_error(get("/images/..%2f..%2fetc%2fpasswd"), 404, "not_found", "")
    assert_error(get("/static/..%2fapp.py"), 404, "not_found", "")
    assert_error(get("/search"), 405, "method_not_allowed", "")


def test_a_thumbnail_is_a_small_jpeg_that_is_not_sent_twice(server: Server, gallery: Path) -> None:
    response = server.client.get("/images/1", params={"size": 32})
    assert response.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == ("JPEG", (32, 24))
    with Image.open(gallery / "cat" / "000.png") as whole:
        expected = np.asarray(whole.convert("RGB").resize((32, 24)), dtype=int)
    assert np.abs(np.asarray(image, dtype=int) - expected).mean() < 8
    again = server.client.get("/images/1", params={"size": 32}, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_thumbnail_of_a_file_that_is_gone_or_replaced_by_a_pipe_is_not_found(
    tmp_path: Path, session: EmbeddingSession
) -> None:
    gallery = write_gallery(tmp_path / "gallery")
    build_small_index(gallery, session, tmp_path / "index")
    (gallery / "cat" / "000.png").unlink()
    (gallery / "cat" / "001.png").unlink()
    os.mkfifo(gallery / "cat" / "001.png")
    with serve_index(tmp_path / "index", SETTINGS) as running:
        for item in (1, 2):
            assert_error(running.client.get(f"/images/{item}"), 404, "not_found", "cannot be shown: no such file")


def test_the_catalogue_is_listed_page_by_page(server: Server, index: Path) -> None:
    seen, after = [], -1
    while after is not None:
        page = server.client.get("/items", params={"after": after, "limit": 15}).json()
        seen += page["items"]
        after = page["next_after"]
    assert [item["id"] for item in seen] == list(range(1, 41))
    assert seen[20]["path"] == "döner/000.png"
    assert server.client.get("/items/21").json() == seen[20]
    described = server.client.get("/index").json()
    assert (described["items"], described["generation"], described["dimension"]) == (40, 1, 64)


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
    with serve_index(index, replace(SETTINGS, queue_size=1)) as running:
        port = int(running.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            head = "POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 9\r\n\r\n".encode())
            deadline = time.monotonic() + 10
            while (response := running.client.post("/search", json={"id": 1})).status_code == 200:
                assert time.monotonic() < deadline
            assert_error(response, 503, "busy", "try again")
            assert response.headers["retry-after"] == "1"
            connection.sendall(b'{"id": 1}')
            assert read_answer(connection).startswith("HTTP/1.1 200 ")
        assert running.client.post("/search", json={"id": 1}).status_code == 200


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


def test_the_description_has_both_forms_of_a_search_and_one_error(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    search = described["paths"]["/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert search["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchAnswer")
    for path in described["paths"].values():
        for operation in path.values():
            error = operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"]
            assert error.endswith("/ErrorAnswer")


def wait_for(server: Server, items: int) -> None:
    deadline = time.monotonic() + 10
    while server.client.get("/index").json()["items"] != items:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_newer_generation_is_served_without_a_restart_and_a_broken_one_is_not(
    tmp_path: Path, gallery: Path, session: EmbeddingSession, caplog: pytest.LogCaptureFixture
) -> None:
    index = build_small_index(gallery / "cat", session, tmp_path / "index")
    with serve_index(index, SETTINGS) as running, ThreadPoolExecutor(1) as pool:
        assert running.client.get("/index").json()["items"] == 20
        stop = False

        def ask_on() -> set[int]:
            codes = set()
            with httpx.Client(base_url=running.url) as client:
                while not stop:
                    codes.add(client.post("/search", json={"id": 1}, params={"k": 3}).status_code)
            return codes

        asking = pool.submit(ask_on)
        build_small_index(gallery, session, index, overwrite=True)
        wait_for(running, 40)
        current = (index / "CURRENT").read_text()
        (index / "CURRENT").write_text("00000009\n")
        deadline = time.monotonic() + 10
        while "reload_failures_total 1.0" not in running.client.get("/metrics").text:
            assert time.monotonic() < deadline
        assert running.client.get("/index").json()["items"] == 40
        stop = True
        assert 200 in asking.result()
        assert asking.result() <= {200, 503}  # never a wrong answer, never a crash
        assert "the newer generation is not served" in caplog.text
        (index / "CURRENT").write_text(current)
        assert running.client.post("/search", json={"id": 40}).json()["hits"][0]["path"] == "döner/019.png"


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


@contextmanager
def start_command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Starts the command in a process of its own, which is gone at the end."""
    command = [sys.executable, "-c", MAIN, "serve", *map(str, arguments)]
    piped = subprocess.PIPE
    with subprocess.Popen(command, env=make_environment(), stdout=piped, stderr=piped, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"])
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


def test_serving_needs_no_torch() -> None:
    code = "import sys; import indistill.retrieval.serve.server; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=make_environment(), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.lower()) is False
