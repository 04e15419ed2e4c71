"""A small index and a server of it in a process of its own, for the benchmarks of the server."""

import io
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image

from benchmarks.index_kills import draw_picture, make_model
from indistill.data.sets import open_folder
from indistill.export.session import EmbeddingSession
from indistill.retrieval.store.build import build_index

TOKEN = "a-token-for-the-benchmarks"


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        url: its address, without a slash at the end.
        process: it.
        log: the file that has its standard error.
    """

    url: str
    process: psutil.Popen
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def read_rss_mb(self) -> float:
        """Returns the resident memory of the process."""
        return float(self.process.memory_info().rss) / 1e6

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and returns the exit code; fails if that takes ten seconds."""
        self.process.send_signal(number)
        return int(self.process.wait(10))


def write_pictures(folder: Path, start: int, count: int, seed: int = 0) -> list[Path]:
    """Writes pictures that all differ, named by their number, and returns their paths in that order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06}.png" for number in range(start, start + count)]
    for number, path in enumerate(paths, start):
        path.write_bytes(draw_picture(random.Random(seed + number)))
    return paths


def make_index(folder: Path, images: int) -> Path:
    """Writes a gallery, a model of random weights and an index of them, and returns the index."""
    write_pictures(folder / "gallery", 0, images)
    model = make_model(folder)
    build_index(open_folder(folder / "gallery", "gallery"), EmbeddingSession(model, 1), folder / "index")
    return folder / "index"


def encode_flat(width: int, height: int, kind: str = "PNG") -> bytes:
    """Returns an image file of one colour, which is small however many pixels it has."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    return stream.getvalue()


@contextmanager
def run_server(index: Path, *options: str) -> Iterator[Served]:
    """Runs `indistill serve` on a free port until the end of the block."""
    command = [sys.executable, "-m", "indistill.cli.main", "serve", str(index), "--port", "0", *options]
    log = index.parent / "log.txt"
    with log.open("w") as errors:
        process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            url = process.stdout.readline().strip().rstrip("/")
            if not url:
                raise RuntimeError(log.read_text())
            yield Served(url, process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
