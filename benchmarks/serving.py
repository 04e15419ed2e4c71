"""Searches per second of `serve` with clients at once, beside the bare session that it runs.

bare        `EmbeddingSession.embed_images` over the same encoded JPEG files in batches: decoding, resizing, inference
one         one client that waits for each answer before it sends the next: the latency of a search
saturated   16 such clients: as many searches as the server can answer. By Little's law their mean latency is 16 divided
            by the throughput, whatever the server does, so it is shown and not judged
paced       16 clients that together send a share of that rate at regular times: the latency under load

The server is a process of its own on loopback; the clients share the machine with it. Ratios are of one round.
"""

import argparse
import asyncio
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.data.sets import open_folder
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.store.build import build_index

WIDTH, HEIGHT, COARSE = 500, 375, 12
TARGET_THROUGHPUT, TARGET_P95 = 0.8, 4.0


def make_photographs(count: int) -> list[bytes]:
    """Returns JPEG files of 500 x 375 pixels, smooth with some noise."""
    generator = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (COARSE, COARSE, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
        noisy = (smooth + generator.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=85)
        files.append(stream.getvalue())
    return files


def measure_bare(session: EmbeddingSession, files: list[bytes], batch: int) -> float:
    """Returns images per second of the session alone."""
    started = perf_counter()
    for start in range(0, len(files), batch):
        session.embed_images(files[start : start + batch])
    return len(files) / (perf_counter() - started)


async def search(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post("/search", files={"image": ("q.jpg", content)})
    answer.raise_for_status()


async def measure_clients(
    url: str, files: list[bytes], clients: int, rate: float | None = None
) -> tuple[float, list[float]]:
    """Returns searches per second and the seconds of each; with a rate, from the moment that it was due."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        waiting = list(enumerate(files))[::-1]
        seconds: list[float] = []
        begin = perf_counter()

        async def work() -> None:
            while waiting:
                position, content = waiting.pop()
                due = perf_counter() if rate is None else begin + position / rate
                await asyncio.sleep(max(0.0, due - perf_counter()))
                await search(client, content)
                seconds.append(perf_counter() - due)

        await asyncio.gather(*(work() for _ in range(clients)))
        return len(files) / (perf_counter() - begin), seconds


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet18", help="of random weights (torchvision:resnet18)")
    parser.add_argument("--image-size", type=int, default=224, help="of its input (224)")
    parser.add_argument("--clients", type=int, default=16, help="at once (16)")
    parser.add_argument("--searches", type=int, default=128, help="in each measurement of a round (128)")
    parser.add_argument("--share", type=float, default=0.6, help="of the saturated rate, when paced (0.6)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    files = make_photographs(arguments.searches)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = Path(temporary)
        (folder / "gallery").mkdir()
        for i, content in enumerate(files):
            (folder / "gallery" / f"{i:04}.jpg").write_bytes(content)
        size = arguments.image_size
        torch.manual_seed(0)
        pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
        export_onnx(load_network(arguments.model), Preprocessing(size), pixels, folder / "student.onnx")
        session = EmbeddingSession(folder / "student.onnx")
        build_index(open_folder(folder / "gallery", "gallery"), session, folder / "index")
        command = [sys.executable, "-m", "indistill.cli.main", "serve", str(folder / "index"), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                asyncio.run(measure_clients(url, files[:16], arguments.clients))  # to warm up
                for _ in range(arguments.rounds):
                    rounds.append(measure_round(session, url, files, arguments))
            finally:
                server.terminate()
    ratios = {name: measure_spread([figures[name] for figures in rounds]) for name in rounds[0]}
    print(f"{arguments.model} at {size}, {arguments.clients} clients, {arguments.rounds} rounds (min / median / max)")
    for name, spread in ratios.items():
        print(f"  {name:<32}{format_spread(spread)}")
    print(f"  targets: throughput_to_bare {TARGET_THROUGHPUT} or more, paced_p95_to_one below {TARGET_P95:g}")
    report_machine(machine)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    write_figures(arguments.json, machine, {"benchmark": "serving", "settings": settings, **ratios, "rounds": rounds})


def measure_round(
    session: EmbeddingSession, url: str, files: list[bytes], arguments: argparse.Namespace
) -> dict[str, float]:
    """Returns all figures of one round."""
    bare = measure_bare(session, files, arguments.clients)
    _, one = asyncio.run(measure_clients(url, files[: len(files) // 2], 1))
    rate, saturated = asyncio.run(measure_clients(url, files, arguments.clients))
    _, paced = asyncio.run(measure_clients(url, files, arguments.clients, arguments.share * rate))
    latency = float(np.median(one))
    return {
        "bare_per_second": bare,
        "served_per_second": rate,
        "throughput_to_bare": rate / bare,
        "one_client_ms": 1e3 * latency,
        "saturated_p95_to_one": float(np.quantile(saturated, 0.95)) / latency,
        "paced_p95_to_one": float(np.quantile(paced, 0.95)) / latency,
    }


if __name__ == "__main__":
    main()
