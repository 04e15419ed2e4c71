"""A server under load for a long time, while its index grows: no failed request, flat memory, complete generations.

python -m benchmarks.soak --minutes 15

Clients send uploads and ids, each as soon as the answer before has come, and look at thumbnails and the catalogue.
Every half minute `indistill index add` adds images. Each answer says which generation it is of, and must hold what an
exact search among the images of that generation finds, which is computed here before. The memory is that of the
server's process, the mean of each minute; generations that were replaced stay open for a minute.
"""

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import httpx
import numpy as np

from benchmarks.machine import describe_machine, report_machine
from benchmarks.served import Served, make_index, run_server, write_pictures
from indistill.export.session import Embeddings, EmbeddingSession

FIRST, ADDED, K = 200, 20, 10
WARM_UP = 2  # minutes
ALLOWED_GROWTH = 0.05
CLOSE = 1e-4  # between scores; the last digits depend on the size of a batch


@dataclass
class Soak:
    """What is asked, what must come, and what came."""

    paths: list[Path]  # of id 1, 2, ...
    vectors: Embeddings
    counts: Counter[str] = field(default_factory=Counter)
    generations: set[int] = field(default_factory=set)
    slowest_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def check_answer(self, query: int, answer: dict[str, object]) -> None:
        """Compares an answer with an exact search among the images of its generation."""
        generation, hits = answer["generation"], answer["hits"]
        assert isinstance(generation, int)
        assert isinstance(hits, list)
        self.generations.add(generation)
        scores = self.vectors[: FIRST + ADDED * (generation - 1)] @ self.vectors[query]
        expected = np.sort(scores)[::-1][:K]
        found = [scores[hit["id"] - 1] if hit["id"] <= len(scores) else -2.0 for hit in hits]
        if len(hits) != K or np.abs(np.array(found) - expected).max() > CLOSE:
            self.problems.append(f"an answer of generation {generation} to query {query} is not the exact one: {hits}")


async def ask(soak: Soak, client: httpx.AsyncClient, source: random.Random) -> None:
    """Sends one request of a random kind and looks at its answer."""
    kind = source.choices(("upload", "id", "thumbnail", "items"), (70, 20, 8, 2))[0]
    known = FIRST + ADDED * (max(soak.generations, default=1) - 1)
    query = source.randrange(min(known, len(soak.paths)))
    started = monotonic()
    try:
        if kind == "upload":
            files = {"image": ("query.png", soak.paths[query].read_bytes())}
            response = await client.post("/search", params={"k": K}, files=files)
        elif kind == "id":
            response = await client.post("/search", params={"k": K}, json={"id": query + 1})
        elif kind == "thumbnail":
            response = await client.get(f"/images/{query + 1}")
        else:
            response = await client.get("/items", params={"after": query, "limit": 50})
    except httpx.HTTPError as error:
        soak.problems.append(f"{kind}: {error!r}")
        return
    soak.counts[kind] += 1
    soak.slowest_s = max(soak.slowest_s, monotonic() - started)
    if response.status_code != 200:
        soak.problems.append(f"{kind}: {response.status_code} {response.text}")
    elif kind in ("upload", "id"):
        soak.check_answer(query, response.json())


async def keep_asking(soak: Soak, url: str, end: float, seed: int) -> None:
    source = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while monotonic() < end:
            await ask(soak, client, source)


async def keep_adding(soak: Soak, index: Path, end: float, every_s: float) -> None:
    """Adds the images that are not in the index yet, some at a time, as a user would."""
    start, due = FIRST, monotonic() + every_s
    while due < end and start < len(soak.paths):
        await asyncio.sleep(due - monotonic())
        command = [sys.executable, "-m", "indistill.cli.main", "index", "add", str(index)]
        names = [str(path) for path in soak.paths[start : start + ADDED]]
        added = await asyncio.create_subprocess_exec(*command, *names, stdout=subprocess.DEVNULL)
        if await added.wait() != 0:
            soak.problems.append(f"index add of image {start} ended with {added.returncode}")
            return
        start, due = start + ADDED, max(due + every_s, monotonic())


async def keep_weighing(soak: Soak, served: Served, end: float) -> list[float]:
    """Returns the mean memory of each minute in MB, and prints a line for each."""
    minutes: list[float] = []
    print("minute  memory MB  requests  generation")
    while (begun := monotonic()) < end - 1:
        samples = []
        while monotonic() < min(begun + 60, end):
            await asyncio.sleep(2)
            samples.append(served.read_rss_mb())
        minutes.append(sum(samples) / len(samples))
        newest = max(soak.generations, default=1)
        print(f"{len(minutes):6}  {minutes[-1]:9.1f}  {soak.counts.total():8}  {newest:10}", flush=True)
    return minutes


async def run_soak(soak: Soak, served: Served, index: Path, arguments: argparse.Namespace) -> list[float]:
    end = monotonic() + 60 * arguments.minutes
    asking = [keep_asking(soak, served.url, end, seed) for seed in range(arguments.clients)]
    adding = keep_adding(soak, index, end, arguments.add_every)
    weighed, *_ = await asyncio.gather(keep_weighing(soak, served, end), adding, *asking)
    return weighed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--add-every", type=float, default=30, metavar="SECONDS")
    arguments, machine = parser.parse_args(), describe_machine()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        index = make_index(folder, FIRST)
        more = ADDED * int(60 * arguments.minutes / arguments.add_every)
        write_pictures(folder / "gallery", FIRST, more)
        paths = sorted((folder / "gallery").iterdir())
        vectors = EmbeddingSession(folder / "model.onnx", 1).embed_images([path.read_bytes() for path in paths])
        soak = Soak(paths, vectors)
        with run_server(index) as served:
            minutes = asyncio.run(run_soak(soak, served, index, arguments))
            code = served.stop()
    settled = minutes[WARM_UP:] or minutes
    growth = max(settled) / settled[0] - 1
    print(f"{soak.counts.total()} requests ({dict(soak.counts)}), slowest {soak.slowest_s:.2f} s")
    print(f"{len(soak.problems)} failed or wrong; {len(soak.generations)} generations answered; ended with {code}")
    print(f"memory after {WARM_UP} minutes: {settled[0]:.1f} MB, at most {100 * growth:+.1f}%")
    report_machine(machine)
    for problem in soak.problems[:20]:
        print(problem)
    sys.exit(bool(soak.problems or growth > ALLOWED_GROWTH or code != 143))


if __name__ == "__main__":
    main()
