"""Tables: Parquet manifests, the chunks of a build on a cluster, and saved data sets, changed in bytes and in types."""

import hashlib
import io
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from benchmarks.fuzz.damage import ODD_TEXTS, damage, damage_json, require_line
from benchmarks.fuzz.originals import provide
from indistill.data.specs import open_images
from indistill.errors import DataError
from indistill.retrieval.cluster.chunks import Chunk, count_embedded, read_chunk


def prepare() -> None:
    """Makes the tables that are damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Opens a changed table of any of the three kinds."""
    random.choice((_try_manifest, _try_chunk, _try_saved))(folder, random)


def _try_manifest(folder: Path, generator: random.Random) -> None:
    path = folder / "manifest.parquet"
    if generator.random() < 0.6:
        path.write_bytes(damage(provide("manifest.parquet").read_bytes(), generator))
    else:
        path.write_bytes(_make_table(generator))
    _read_images(path)


def _make_table(generator: random.Random) -> bytes:
    """Returns a Parquet file whose columns have types that no manifest has."""
    texts = [text.replace("\ud800", "?") for text in generator.choices(ODD_TEXTS, k=4)]
    columns = {
        "texts": pa.array(texts),
        "numbers": pa.array([1, 2, 3, 4]),
        "floats": pa.array([1.5, float("nan"), float("inf"), 1e300]),
        "bytes": pa.array([b"\xff", b"a", b"", b"../x"]),
        "structs": pa.array([{"a": 1}] * 4),
        "lists": pa.array([[1], [], None, [2]]),
        "times": pa.array([-(2**62), 0, 1, 2**62], pa.timestamp("ns")),
        "long times": pa.array([-(2**52), 0, 1, 2**52], pa.timestamp("s")),
        "decimals": pa.array([1, 2, 3, 4]).cast(pa.decimal128(38, 2)),
        "repeated": pa.DictionaryArray.from_arrays(pa.array([0, 0, 0, 0]), pa.array(["x" * 10**6])),
        "none": pa.nulls(4),
    }
    names = [generator.choice(("path", "file_name")), "label"]
    chosen = [columns[generator.choice(sorted(columns))] for _ in names]
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(chosen, names), stream)
    return stream.getvalue()


def _try_chunk(folder: Path, generator: random.Random) -> None:
    """Reads a chunk whose manifest fits its Parquet file, which is another."""
    chunk = Chunk(0, 0, 8, "f" * 64, "source")
    content = generator.choice((_make_table(generator), damage(provide("manifest.parquet").read_bytes(), generator)))
    manifest = {"model_sha256": "m", "fingerprint": chunk.fingerprint, "start": 0, "images": 8, "embedded": 8}
    manifest |= {"node": "n", "sha256": hashlib.sha256(content).hexdigest(), "source": "source", "format": 1}
    (folder / "000000.parquet").write_bytes(content)
    text = json.dumps(manifest)
    (folder / "000000.json").write_text(text if generator.random() < 0.7 else damage_json(text, generator))
    read_chunk(folder, chunk, "m")
    count_embedded(folder, [chunk], "m")


def _try_saved(folder: Path, generator: random.Random) -> None:
    saved = folder / "saved"
    shutil.copytree(provide("saved"), saved)
    path = generator.choice(sorted(saved.iterdir()))
    if path.suffix == ".json" and generator.random() < 0.8:
        path.write_text(damage_json(path.read_text(encoding="utf-8"), generator), encoding="utf-8")
    else:
        path.write_bytes(damage(path.read_bytes(), generator))
    _read_images(saved)


def _read_images(path: Path) -> None:
    images = open_images(str(path))
    for position in range(min(len(images.names), 50)):
        try:
            images.read(position)
        except DataError as error:
            require_line(error)
