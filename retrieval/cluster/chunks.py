"""The embeddings of a build that runs on a cluster: a Parquet file and a manifest for each chunk of the gallery.

000000.parquet    a row for each image of the chunk: position in the gallery, path, sha256, label, vector, size_bytes,
                  modified_ns, and for one that cannot be read `skipped`, the reason, instead of content and vector
000000.json       which model, gallery and images these are, the node that embedded them, the Parquet file's SHA-256

The manifest is written last. A chunk without one, or whose Parquet file differs from it, is embedded again.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from indistill.data.huggingface import SavedSet
from indistill.data.sets import ArraySet, FolderSet, ImageSet, SampledSet
from indistill.data.shards import ShardSet
from indistill.data.urls import UrlSet
from indistill.errors import IndexFolderError, InputError
from indistill.export.session import Embeddings
from indistill.files.bounded import read_bounded, require_regular
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.files.formats import CHUNKS, require_format
from indistill.images import SkippedImage
from indistill.retrieval.embed import EmbeddedImages, ImageFile
from indistill.retrieval.store.build import list_labels
from indistill.retrieval.store.catalogue import is_text
from indistill.retrieval.store.generations import NO_SOURCE, refuse_links

TEXTS, NUMBERS = ("path", "sha256", "label", "skipped"), ("position", "size_bytes", "modified_ns")
FILE = re.compile(r"\d{6,}\.(json|parquet)(\.partial)?")


@dataclass(frozen=True)
class Chunk:
    """The images from `start` up to `stop` of a gallery, the hash of their names and labels, and the gallery's spec."""

    number: int
    start: int
    stop: int
    fingerprint: str
    source: str


@dataclass(frozen=True)
class ChunkManifest:
    """What a chunk's file holds.

    Attributes:
        model_sha256: of the model that made the vectors.
        fingerprint: of the chunk.
        start: its first position in the gallery.
        images: how many images.
        embedded: how many of them have a vector.
        node: the id of the Ray node that embedded them.
        sha256: of the Parquet file.
        source: the gallery's data spec, or its root.
        format: of both files.
    """

    model_sha256: str
    fingerprint: str
    start: int
    images: int
    embedded: int
    node: str
    sha256: str
    source: str
    format: int = CHUNKS.version


def plan_chunks(gallery: ImageSet, size: int, source: str = "") -> list[Chunk]:
    """Returns the chunks of a gallery, of `size` images but for the last.

    Args:
        gallery: the images.
        size: of a chunk.
        source: the gallery's data spec; its root stands for one that is not known, or names no place.
    """
    names, labels = gallery.names, list_labels(gallery)
    source = gallery.root if source in ("", NO_SOURCE) else source.rstrip("/")
    chunks = []
    for number, start in enumerate(range(0, len(names), size)):
        stop = min(start + size, len(names))
        described = json.dumps([gallery.root, list(names[start:stop]), labels[start:stop]])
        chunks.append(Chunk(number, start, stop, hashlib.sha256(described.encode()).hexdigest(), source))
    return chunks


def cut_images(images: ImageSet, start: int, stop: int) -> ImageSet:
    """Returns the images from `start` up to `stop`, as little as it takes to send them to another machine."""
    names, labels = images.names[start:stop], images.labels[start:stop]
    if isinstance(images, FolderSet):
        return replace(images, folder=images.folder.resolve(), names=names, labels=labels)
    if isinstance(images, ShardSet):
        return replace(images, members=images.members[start:stop], names=names, labels=labels)
    if isinstance(images, UrlSet):
        modified, sizes = images.modified[start:stop], images.sizes[start:stop]
        return replace(images, modified=modified, sizes=sizes, names=names, labels=labels)
    if isinstance(images, ArraySet):
        return replace(images, images=images.images[start:stop], names=names, labels=labels)
    if isinstance(images, SavedSet):
        table = images.table.select(range(start, stop))
        return replace(images, folder=images.folder.resolve(), table=table, names=names, labels=labels)
    return SampledSet(images, range(start, stop))


def write_chunk(
    folder: Path, chunk: Chunk, images: ImageSet, embedded: EmbeddedImages, *, model_sha256: str, node: str
) -> ChunkManifest:
    """Writes the embeddings of a chunk.

    Args:
        folder: where its files go.
        chunk: which it is.
        images: its images, see `cut_images`.
        embedded: what was made of them.
        model_sha256: of the model.
        node: where that was.

    Raises:
        OSError: it cannot be written.
    """
    content = _encode(chunk, images, embedded)
    sha256 = hashlib.sha256(content).hexdigest()
    count = len(embedded.files)
    manifest = ChunkManifest(
        model_sha256, chunk.fingerprint, chunk.start, chunk.stop - chunk.start, count, node, sha256, chunk.source
    )
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    for path, written in ((_name(folder, chunk, "parquet"), content), (_name(folder, chunk, "json"), text.encode())):
        with write_aside(path) as stream:
            stream.write(written)
        move_into_place(name_aside(path), path)
    return manifest


def read_chunk(folder: Path, chunk: Chunk, model_sha256: str) -> EmbeddedImages | None:
    """Returns the embeddings of a chunk by a model, None where they are not there, or not as they were written."""
    manifest = _read_manifest(_name(folder, chunk, "json"))
    if not _is_of(manifest, chunk, model_sha256):
        return None
    try:
        require_regular(_name(folder, chunk, "parquet"))
        content = _name(folder, chunk, "parquet").read_bytes()
    except OSError:
        return None
    if manifest.get("sha256") != hashlib.sha256(content).hexdigest():
        return None
    try:
        return _decode(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError):  # whoever wrote it, not we
        return None


def count_embedded(folder: Path, chunks: Sequence[Chunk], model_sha256: str) -> list[int]:
    """Returns how many images of each chunk have a vector, without reading these.

    Raises:
        InputError: the embeddings of a chunk are gone.
    """
    counts = []
    for chunk in chunks:
        manifest = _read_manifest(_name(folder, chunk, "json"))
        count = manifest.get("embedded")
        if not _is_of(manifest, chunk, model_sha256) or not isinstance(count, int):
            raise InputError(_describe_change(folder, chunk))
        counts.append(count)
    return counts


def require_own_chunks(folder: Path, chunk: Chunk, model_sha256: str) -> None:
    """Raises IndexFolderError for chunks of another model, gallery or format in a folder, or links in their place.

    Args:
        folder: of the chunks.
        chunk: one of the gallery.
        model_sha256: of the model.
    """
    found = [path for path in folder.iterdir() if FILE.fullmatch(path.name)]
    refuse_links(folder, found)
    for path in found:
        manifest = _read_manifest(path) if path.suffix == ".json" else {}
        require_format(CHUNKS, manifest.get("format", CHUNKS.version), f"the embeddings {folder}", IndexFolderError)
        for name, value in (("model_sha256", model_sha256), ("source", chunk.source)):
            other = manifest.get(name, value)
            if other != value:
                what = "another model" if name == "model_sha256" else f"another gallery, {other}"
                raise IndexFolderError(f"the embeddings {folder} are of {what}: choose another --embeddings")


def _read_manifest(path: Path) -> dict[str, object]:
    """Returns the manifest of a chunk, an empty one where there is none that can be read."""
    try:
        content = json.loads(read_bounded(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_of(manifest: Mapping[str, object], chunk: Chunk, model_sha256: str) -> bool:
    wanted = {"format": CHUNKS.version, "model_sha256": model_sha256, "fingerprint": chunk.fingerprint}
    return all(manifest.get(name) == value for name, value in wanted.items())


def _describe_change(folder: Path, chunk: Chunk) -> str:
    return f"the embeddings {_name(folder, chunk, 'parquet')} have changed: give the command again"


def gather_chunks(
    folder: Path, chunks: Sequence[Chunk], model_sha256: str, start: int = 0, stop: int | None = None
) -> EmbeddedImages:
    """Returns the images from the `start`-th up to the `stop`-th that have a vector, and all that were skipped.

    Raises:
        InputError: the embeddings of a chunk are gone.
    """
    files: list[ImageFile] = []
    vectors: list[Embeddings] = []
    skipped: list[SkippedImage] = []
    offset = 0
    for chunk in chunks:
        found = read_chunk(folder, chunk, model_sha256)
        if found is None:
            raise InputError(_describe_change(folder, chunk))
        part = slice(max(0, start - offset), None if stop is None else max(0, stop - offset))
        offset += len(found.files)
        files += found.files[part]
        vectors.append(found.vectors[part])
        skipped += found.skipped
    return EmbeddedImages(files, np.concatenate(vectors), skipped)


def _name(folder: Path, chunk: Chunk, suffix: str) -> Path:
    return folder / f"{chunk.number:06d}.{suffix}"


def _encode(chunk: Chunk, images: ImageSet, embedded: EmbeddedImages) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    files, skipped = iter(embedded.files), iter(embedded.skipped)
    waiting = next(files, None)
    rows: list[dict[str, object]] = []
    for position, (name, label) in enumerate(zip(images.names, list_labels(images), strict=True), start=chunk.start):
        if waiting is not None and waiting.name == name:
            row = {"path": name, "sha256": waiting.sha256, "size_bytes": waiting.size_bytes}
            row |= {"modified_ns": waiting.modified_ns, "skipped": None}
            waiting = next(files, None)
        else:
            passed = next(skipped)
            row = {"path": passed.name, "skipped": passed.reason.encode(errors="backslashreplace").decode()}
        rows.append(row | {"position": position, "label": label if label is None or is_text(label) else None})
    columns = [*((name, pa.int64()) for name in NUMBERS), *((name, pa.string()) for name in TEXTS)]
    table = pa.Table.from_pylist(rows, pa.schema(columns))
    missing = np.array([row["skipped"] is not None for row in rows])
    vectors = np.zeros((len(rows), embedded.vectors.shape[1]), dtype=np.float32)
    vectors[~missing] = embedded.vectors
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1], mask=pa.array(missing))
    table = table.append_column("vector", column)
    stream = io.BytesIO()
    parquet.write_table(table, stream, use_dictionary=["label", "skipped"])  # vectors and hashes do not repeat
    return stream.getvalue()


def _decode(content: bytes) -> EmbeddedImages:
    import pyarrow as pa
    from pyarrow import compute, parquet

    table = parquet.read_table(io.BytesIO(content))
    types = dict.fromkeys(NUMBERS, pa.int64()) | dict.fromkeys(TEXTS, pa.string())
    if any(table.schema.field(name).type != kind for name, kind in types.items()):
        raise ValueError("a column is of another type")
    good = table.filter(compute.is_null(table["skipped"]))
    bad = table.filter(compute.is_valid(table["skipped"]))
    columns = (good[name].to_pylist() for name in ("path", "sha256", "size_bytes", "modified_ns"))
    dimension = table.schema.field("vector").type.list_size
    flat = pa.concat_arrays([part.flatten() for part in good["vector"].chunks] or [pa.array([], pa.float32())])
    return EmbeddedImages(
        [ImageFile(*values) for values in zip(*columns, strict=True)],
        flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dimension),
        [SkippedImage(*values) for values in zip(bad["path"].to_pylist(), bad["skipped"].to_pylist(), strict=True)],
    )
