"""One engine in a process of its own, timed on request. Started by `EngineProcess`; speaks JSON lines.

The first line on standard input says what to load; the answer is the time to the first result. Each further line asks
either for a number of calls with one batch, and the answer is their durations, or for the vectors of some images.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
EXAMINED_BATCH = 32


def list_encoded(folder: Path) -> list[Path]:
    """Returns the images of a folder that `write_encoded` of `indistill.export.bench` wrote, in their order."""
    return sorted(folder.iterdir())


def read_peak_memory_mb() -> float | None:
    """Returns the largest resident size of this process, where the system tells (`getrusage` counts the parent too)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def measure_turn(call: Callable[[], object], order: dict[str, Any]) -> list[float]:
    """Returns the duration of each call in ms: after the warm-up, as many as were asked for, and as long as that."""
    latencies_ms: list[float] = []
    for _ in range(order["warmup"]):
        call()
    started = time.perf_counter()
    while len(latencies_ms) < order["iterations"] or time.perf_counter() - started < order["min_seconds"]:
        begin = time.perf_counter()
        call()
        latencies_ms.append((time.perf_counter() - begin) * 1e3)
    return latencies_ms


def main() -> None:
    """Answers orders until standard input ends."""
    import numpy as np

    from indistill.errors import IndistillError
    from indistill.export.bench_engines import load_engine
    from indistill.images import decode_image
    from indistill.preprocess import PixelArray, Preprocessing

    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not end up among the answers

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    preprocessing = Preprocessing.from_dict(order["preprocessing"])
    try:
        engine = load_engine(order)
    except IndistillError as error:
        answer({"error": str(error), "exit_code": error.exit_code})
        return

    def resize(contents: list[bytes]) -> PixelArray:
        return np.stack([preprocessing.resize(decode_image(content)) for content in contents])

    encoded = [path.read_bytes() for path in list_encoded(Path(order["images"]))]
    engine.embed(resize(encoded[:1]))
    first_result_s = time.perf_counter() - STARTED
    decoded = [decode_image(content) for content in encoded]
    pixels = np.stack([preprocessing.resize(image) for image in decoded])
    answer({"first_result_s": first_result_s, "parameters": engine.parameters, "size_bytes": engine.size_bytes})

    def make_call(positions: list[int]) -> Callable[[], object]:
        if order["include"] == "decode":
            contents = [encoded[p] for p in positions]
            return lambda: engine.embed(resize(contents))
        if order["include"] == "resize":
            images = [decoded[p] for p in positions]
            return lambda: engine.embed(np.stack([preprocessing.resize(image) for image in images]))
        batch = pixels[positions]
        return lambda: engine.embed(batch)

    def embed_folder(folder: Path) -> Iterator[PixelArray]:
        paths = list_encoded(folder)
        for start in range(0, len(paths), EXAMINED_BATCH):
            yield resize([path.read_bytes() for path in paths[start : start + EXAMINED_BATCH]])

    seen: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "examine" in request:
            vectors = [np.array(engine.embed(part)) for part in embed_folder(Path(request["examine"]))]
            np.save(request["vectors"], np.concatenate(vectors))
            answer({})
            continue
        call = make_call([i % len(pixels) for i in range(request["batch"])])
        if request["batch"] not in seen:  # the first call with a size may compile or allocate, with any warm-up
            call()
            seen.add(request["batch"])
        answer({"latencies_ms": measure_turn(call, request), "peak_rss_mb": read_peak_memory_mb()})


if __name__ == "__main__":
    main()
