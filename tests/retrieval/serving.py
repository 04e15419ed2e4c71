"""A small index, and servers of it on free ports, for the tests of the service and of its page."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from indistill.data.sets import open_folder
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.opening import Location
from indistill.retrieval.ranking import Hit
from indistill.retrieval.serve.app import make_app
from indistill.retrieval.serve.server import make_server, open_socket
from indistill.retrieval.serve.settings import Settings
from indistill.retrieval.store.build import BuildOptions, build_index
from tests.cli.calls import MAIN, make_environment

TOKEN = "a-token-for-the-tests"
SETTINGS = Settings(poll_s=0.05, threads=1)
SEARCH = "POST /search HTTP/1.1\r\nHost: localhost\r\n"
LABELS = ("cat", "döner")
PER_LABEL = 20


@dataclass(frozen=True)
class Server:
    """A server that runs: its URL, and a client for it."""

    url: str
    client: httpx.Client


def write_gallery(folder: Path, seed: int = 0) -> Path:
    """Writes 20 images of each label, of coarse random colours, and returns the folder."""
    rng = np.random.default_rng(seed)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for i in range(PER_LABEL):
            colours = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
            colours.resize((64, 48), Image.Resampling.BICUBIC).save(folder / label / f"{i:03}.png")
    return folder


def export_model(path: Path) -> EmbeddingSession:
    """Writes a tiny network with random weights and returns it."""
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, path)
    return EmbeddingSession(path)


def build_small_index(gallery: Path, session: EmbeddingSession, out: Path, *, overwrite: bool = False) -> Path:
    build_index(open_folder(gallery, "gallery"), session, out, BuildOptions(overwrite=overwrite))
    return out


@contextmanager
def serve_index(index: Location, settings: Settings) -> Iterator[Server]:
    """Serves an index in a thread on a free port of this machine, and stops in good order."""
    with open_socket("127.0.0.1", 0) as listener:
        server = make_server(make_app(index, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        headers = {} if settings.token is None else {"Authorization": f"Bearer {settings.token}"}
        try:
            with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
                yield Server(url, client)
        finally:
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive()


def upload(client: httpx.Client, content: bytes, **parameters: str | float) -> httpx.Response:
    return client.post("/search", files={"image": ("secret name.png", content)}, params=parameters)


def connect(server: Server) -> socket.socket:
    """Returns a connection of bare bytes."""
    return socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), timeout=20)


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
