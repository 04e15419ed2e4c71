"""What the service answers, over real HTTP."""

import io
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Index
from indistill.retrieval.where import parse_where
from tests.retrieval.serving import (
    SETTINGS,
    Server,
    assert_error,
    assert_hits,
    build_small_index,
    serve_index,
    upload,
    write_gallery,
)


def test_an_upload_finds_what_the_index_finds(
    server: Server, index: Path, session: EmbeddingSession, gallery: Path
) -> None:
    content = (gallery / "cat" / "007.png").read_bytes()
    with Index(index) as opened:
        (expected,) = opened.search(session.embed_images([content]), 7)
    assert_hits(upload(server.client, content, k=7), expected)


def test_an_id_finds_what_its_image_finds(server: Server, index: Path) -> None:
    with Index(index) as opened:
        (expected,) = opened.search(opened.find_vectors([13]), 10)
    assert expected[0].id == 13
    assert_hits(server.client.post("/search", json={"id": 13}), expected)


def test_a_filter_and_a_threshold_are_those_of_the_index(server: Server, index: Path) -> None:
    where = "label = 'döner'"
    with Index(index) as opened:
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


def test_the_description_has_both_forms_of_a_search_and_one_error(server: Server) -> None:
    described = server.client.get("/openapi.json").json()
    search = described["paths"]["/search"]["post"]
    assert set(search["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert search["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SearchAnswer")
    for path in described["paths"].values():
        for operation in path.values():
            errors = {code: answer for code, answer in operation["responses"].items() if code >= "4"}
            assert {"400", "408", "421", "500", "503", "504"} <= set(errors)
            for error in errors.values():
                assert error["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
    assert {"401", "403", "404", "413", "415", "422", "429"} <= set(search["responses"])


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
        stop, codes = False, set()

        def ask_on() -> set[int]:
            with httpx.Client(base_url=running.url) as client:
                while not stop:
                    codes.add(client.post("/search", json={"id": 1}, params={"k": 3}).status_code)
            return codes

        asking = pool.submit(ask_on)
        until = time.monotonic() + 20
        while not codes:
            assert time.monotonic() < until
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
