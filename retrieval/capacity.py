"""The arithmetic of scale: what a gallery of N images needs, from formulas and rates that are measured where this runs.

docs/scaling.md derives each formula. All work is counted in core-seconds: on C cores it takes 1/C of the time at best.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import faiss
import numpy as np

from indistill.data.sets import ImageSet
from indistill.errors import DataError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index_types.choose import EXACT_VALUES, LISTS_PER_ROOT
from indistill.retrieval.index_types.trials import ID_BYTES, one_thread
from indistill.retrieval.index_types.types import EXACT, POINTS_PER_LIST, Vectors
from indistill.retrieval.store.catalogue import NewItem, edit_catalogue

CODE_BYTES = {"SQ8": 1, "SQfp16": 2, "Flat": 4}  # of a value of a vector
ITERATIONS = 10  # of k-means, FAISS's default for IVF
FLOAT_BYTES = 4
ROWS, LISTS, SCANNED, QUERIES = 4096, 1024, 50_000, 20  # of the vectors that rates are measured with
PATH = "photographs/2024/{:09d}.jpg"  # of a catalogue's row

Unit = Literal["core-s", "s", "bytes", "1/s", ""]


@dataclass(frozen=True)
class Probing:
    """What reached a recall among 1,000,000 vectors: see `PROBINGS`."""

    recall: float
    code: str
    lists: int
    probed: int


@dataclass(frozen=True)
class Rates:
    """What one core of this machine does.

    Attributes:
        embed_s: core-seconds to read, decode, resize and embed an image.
        file_bytes: of an image file, mean.
        item_bytes: of an image in the catalogue.
        products_per_s: products of a value of a vector with one of a centroid, when lists are trained and filled.
        scan_bytes_per_s: codes that a search compares a query with.
        images: number of images that `embed_s` was measured with.
    """

    embed_s: float
    file_bytes: float
    item_bytes: float
    products_per_s: float
    scan_bytes_per_s: float
    images: int


@dataclass(frozen=True)
class Need:
    """One line of a plan: a value, or its least and most where it depends on the vectors, and what it comes from."""

    name: str
    least: float
    most: float
    unit: Unit
    formula: str


@dataclass(frozen=True)
class Plan:
    """What a gallery needs.

    Attributes:
        factory: FAISS's name of the type of index.
        needs: lines, in the order of the work.
    """

    factory: str
    needs: tuple[Need, ...]


# The smallest code and nprobe that reached each recall with the fewest lists, of 1,000,000 clustered vectors of 128
# values: python -m benchmarks.index_types --recall 0.9 (0.95, 0.99)
MEASURED_ON = 1_000_000
PROBINGS = (
    Probing(0.90, "SQ8", 2048, 7),
    Probing(0.95, "SQ8", 2048, 36),
    Probing(0.99, "SQfp16", 2048, 80),
)


def measure_rates(
    session: EmbeddingSession, images: ImageSet, code: str, on_progress: Callable[[int], None] = lambda _: None
) -> Rates:
    """Returns what one core of this machine does; takes some seconds.

    Args:
        session: the model, of one thread.
        images: a sample of the gallery.
        code: of `CODE_BYTES`.
        on_progress: called with the number of images just embedded.

    Raises:
        DataError: no image of the sample can be read.
    """
    started = time.process_time()
    embedded = embed_files(images, session, on_progress, workers=1)
    embed_s = time.process_time() - started
    if not embedded.files:
        raise DataError(f"none of the {len(images.names)} images of '{images.name}' can be read: name other ones")
    return Rates(
        embed_s / len(embedded.files),
        sum(file.size_bytes for file in embedded.files) / len(embedded.files),
        _measure_catalogue(),
        measure_products(session.artefact.embedding_dim),
        _measure_scan(session.artefact.embedding_dim, code),
        len(embedded.files),
    )


def plan_gallery(count: int, dimension: int, recall: float, rates: Rates, cores: int, memory_bytes: float) -> Plan:
    """Returns what a gallery needs, from its images to the machines that answer.

    Args:
        count: N, images.
        dimension: D of the vectors.
        recall: share of the ten nearest that a search must find; 1 for an exact search.
        rates: of a core of the machines in question.
        cores: over all machines.
        memory_bytes: of one machine.

    Raises:
        InputError: the recall is none that was measured.
    """
    probing = choose_probing(count, dimension, recall)
    searching = (
        _plan_exact(count, dimension, rates) if probing is None else _plan_lists(count, dimension, probing, rates)
    )
    stored = count * (FLOAT_BYTES * dimension + ID_BYTES)
    memory = next(need for need in searching.needs if need.name == "index in memory").most
    query_s = next(need for need in searching.needs if need.name == "one query, one core")
    return Plan(
        searching.factory,
        (
            Need("image files read", *_twice(count * rates.file_bytes), "bytes", f"N x {rates.file_bytes:,.0f} bytes"),
            Need(
                "embedding",
                *_twice(count * rates.embed_s),
                "core-s",
                f"N x {1e3 * rates.embed_s:.2f} ms, measured on {rates.images} images",
            ),
            Need("time of embedding", *_twice(count * rates.embed_s / cores), "s", f"the same / {cores:,} cores"),
            Need(
                "embeddings on disk", *_twice(stored), "bytes", f"N x ({FLOAT_BYTES} x {dimension} + {ID_BYTES}) bytes"
            ),
            Need(
                "catalogue on disk",
                *_twice(count * rates.item_bytes),
                "bytes",
                f"N x {rates.item_bytes:.0f} bytes, measured",
            ),
            *searching.needs,
            Need(
                "queries, all cores",
                cores / query_s.most,
                cores / query_s.least,
                "1/s",
                f"{cores:,} cores / one query, without embedding the query",
            ),
            Need(
                "machines that hold it",
                *_twice(math.ceil(memory / memory_bytes)),
                "",
                f"index in memory / {memory_bytes / 1e9:,.0f} GB, rounded up",
            ),
        ),
    )


def find_probing(recall: float) -> Probing:
    """Returns the measured setting that reaches a recall.

    Raises:
        InputError: none does.
    """
    for probing in PROBINGS:
        if recall <= probing.recall:
            return probing
    raise InputError(f"no setting for a recall of {recall:g} was measured: give at most {PROBINGS[-1].recall}, or 1")


def choose_probing(count: int, dimension: int, recall: float) -> Probing | None:
    """Returns the measured setting for N vectors of D values; None where they are searched exactly.

    Raises:
        InputError: no setting for this recall was measured.
    """
    return find_probing(recall) if count * dimension > EXACT_VALUES and recall < 1 else None


def choose_code(count: int, dimension: int, recall: float) -> str:
    """Returns how N vectors of D values are stored in an index that reaches a recall: a key of `CODE_BYTES`.

    Raises:
        InputError: no setting for this recall was measured.
    """
    probing = choose_probing(count, dimension, recall)
    return "Flat" if probing is None else probing.code


def count_lists(count: int) -> int:
    """Returns the lists of an IVF index of N vectors: the least that `choose_type` would try."""
    return int(2 ** round(math.log2(LISTS_PER_ROOT[0] * math.sqrt(count))))


def _plan_exact(count: int, dimension: int, rates: Rates) -> Plan:
    codes = count * FLOAT_BYTES * dimension
    return Plan(
        EXACT,
        (
            Need(
                "index on disk", *_twice(codes + count * ID_BYTES), "bytes", f"N x (4 x {dimension} + {ID_BYTES}) bytes"
            ),
            Need(
                "index in memory",
                *_twice(codes + count * ID_BYTES),
                "bytes",
                "the same; less where it is mapped",
            ),
            Need(
                "one query, one core",
                *_twice(codes / rates.scan_bytes_per_s),
                "s",
                f"all vectors, {rates.scan_bytes_per_s / 1e9:.1f} GB/s, measured",
            ),
        ),
    )


def _plan_lists(count: int, dimension: int, probing: Probing, rates: Rates) -> Plan:
    lists, code = count_lists(count), CODE_BYTES[probing.code] * dimension
    per_list = count / lists * code
    centroids = FLOAT_BYTES * dimension * lists
    training = ITERATIONS * POINTS_PER_LIST * lists**2 * dimension / rates.products_per_s
    filling = count * lists * dimension / rates.products_per_s
    size = count * (code + ID_BYTES) + centroids
    least, most = sorted((probing.probed, probing.probed * lists / probing.lists))
    query_s = [(centroids + probed * per_list) / rates.scan_bytes_per_s for probed in (least, most)]
    shown = f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
    rate = f"{rates.products_per_s / 1e9:.0f} x 10^9 products/s, measured"
    return Plan(
        f"IVF{lists},{probing.code}",
        (
            Need(
                "training the lists",
                *_twice(training),
                "core-s",
                f"{ITERATIONS} x {POINTS_PER_LIST} x lists^2 x {dimension} products, {rate}",
            ),
            Need("filling the lists", *_twice(filling), "core-s", f"N x lists x {dimension} products, {rate}"),
            Need("index on disk", *_twice(size), "bytes", f"N x ({code} + {ID_BYTES}) + 4 x {dimension} x lists bytes"),
            Need(
                "index in memory", *_twice(size), "bytes", "the same; less where it is mapped and not all is searched"
            ),
            Need(
                "one query, one core",
                query_s[0],
                query_s[1],
                "s",
                f"centroids and {shown} lists, {rates.scan_bytes_per_s / 1e9:.1f} GB/s, measured",
            ),
        ),
    )


def _twice(value: float) -> tuple[float, float]:
    return value, value


def _measure_catalogue() -> float:
    """Returns the bytes of an image in a catalogue."""
    rows = [NewItem(PATH.format(i), "label", f"{i:064x}", 50_000, i) for i in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalogue.sqlite"
        with edit_catalogue(path) as catalogue:
            catalogue.add(rows)
        return path.stat().st_size / len(rows)


def measure_products(dimension: int) -> float:
    """Returns the products of values per second of assigning vectors (N, D) to centroids, on one thread."""
    centroids = faiss.IndexFlatIP(dimension)
    vectors = _draw_vectors(dimension)
    centroids.add(vectors[:LISTS])
    with one_thread():
        return ROWS * LISTS * dimension / _time(lambda: centroids.search(vectors[:ROWS], 1))


def _measure_scan(dimension: int, code: str) -> float:
    """Returns the bytes of codes per second that single queries are compared with, on one thread."""
    scanned = faiss.index_factory(dimension, code, faiss.METRIC_INNER_PRODUCT)
    vectors = _draw_vectors(dimension)
    scanned.train(vectors)
    scanned.add(vectors)
    with one_thread():
        scan_s = _time(lambda: [scanned.search(vectors[i : i + 1], 10) for i in range(QUERIES)]) / QUERIES
    return SCANNED * CODE_BYTES[code] * dimension / scan_s


def _draw_vectors(dimension: int) -> Vectors:
    vectors = np.random.default_rng(0).standard_normal((SCANNED, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _time(work: Callable[[], object], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
