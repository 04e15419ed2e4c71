"""Building an index on a Ray cluster: the same index as a build in one process makes, or one in shards."""

import shutil
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indistill.data.sets import ImageSet
from indistill.errors import DataError, ExistsError, IndexFolderError, InputError, describe_os_error
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.files.durable import name_aside
from indistill.files.locking import LOCK, hold_lock
from indistill.images import SkippedImage
from indistill.retrieval.cluster.chunks import Chunk, count_embedded, gather_chunks, plan_chunks, require_own_chunks
from indistill.retrieval.cluster.embedding import Work, embed_chunks
from indistill.retrieval.cluster.runtime import count_cpus, fetch, require_ray, start_ray
from indistill.retrieval.cluster.sharded import add_up_manifests
from indistill.retrieval.cluster.shards import GENERATION, list_generations, list_shards, write_shards
from indistill.retrieval.embed import EmbeddedImages
from indistill.retrieval.index_types.types import FaissIndex, can_filter, find_ivf, train_faiss
from indistill.retrieval.store.build import BuildOptions, IndexPart, IndexType, check_index_output, write_index
from indistill.retrieval.store.generations import (
    PENDING,
    PENDING_CHUNKS,
    SHARDS,
    Manifest,
    discard_unfinished,
    lock_index,
    require_text,
)
from indistill.retrieval.store.segments import Ids

SAMPLE = 1_000_000  # vectors on which the type is chosen and trained, of galleries that have more
NEXT_IDS = 2**40  # how far the ids of images that are added to two shards later lie apart


@dataclass(frozen=True)
class Spread:
    """How a build is spread over a cluster.

    Attributes:
        address: of the cluster, see `start_ray`.
        shards: how many indexes it makes; None for one that is no folder of shards.
        embeddings: where the embeddings go and stay; None for a folder in the index that goes when that is complete.
        chunk_images: images that an actor is given at once.
        part_vectors: vectors that a task adds to FAISS at once.
    """

    address: str | None = None
    shards: int | None = None
    embeddings: Path | None = None
    chunk_images: int = 1024
    part_vectors: int = 2**17


def build_on_cluster(
    gallery: ImageSet,
    session: EmbeddingSession,
    out: Path,
    options: BuildOptions,
    spread: Spread,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Manifest, list[SkippedImage], Work]:
    """Embeds a gallery on a Ray cluster and writes its index, or its shards; see `build_index`.

    Args:
        gallery: the images, which must lie at the same path on each node.
        session: the model.
        out: the folder to write, by this process alone.
        options: as of a build in one process; its workers are actors here.
        spread: how.
        on_progress: called with the number of images just done.

    Returns:
        The manifest of the index, or of all shards together; the images that were skipped; what was embedded.

    Raises:
        DataError: no image can be read, or a node does not have them.
        ExistsError: the folder exists.
        IndexFolderError: another process writes there, or the embeddings are of another model or gallery.
        InputError: there is no cluster, Ray is not installed, the place cannot be written to, there are fewer images
            than shards, or too many for the limits of the type.
    """
    out = out.resolve()
    check_output(out, spread, overwrite=options.overwrite)
    _check_size(len(gallery.names), options, spread)
    with start_ray(spread.address):
        try:
            out.mkdir(parents=True, exist_ok=True)
            with (
                lock_index(out, create=True),
                _discard_unfinished(out),
                _open_embeddings(out, spread.embeddings) as folder,
            ):
                check_output(out, spread, overwrite=options.overwrite)  # another process may have been first
                chunks = plan_chunks(gallery, spread.chunk_images, options.source)
                if spread.embeddings is not None:
                    require_own_chunks(folder, chunks[0], session.sha256)
                with _explain_interruption(folder, len(chunks)):
                    work = embed_chunks(
                        gallery, chunks, session, folder, workers=options.workers, on_progress=on_progress
                    )
                source = _Source(gallery, session, folder, chunks, spread.part_vectors, options.source)
                manifest, skipped = _write(source, out, options, spread.shards)
                shutil.rmtree(out / PENDING_CHUNKS, ignore_errors=True)
                (out / PENDING).unlink(missing_ok=True)
                return manifest, skipped, work
        except OSError as error:
            raise InputError(f"the index {out} cannot be written: {describe_os_error(error)}") from error


@contextmanager
def _discard_unfinished(out: Path) -> Iterator[None]:
    """Removes a folder in which nothing was embedded or finished; shards in force stay."""
    with nullcontext() if (out / SHARDS).exists() else discard_unfinished(out):
        yield


@contextmanager
def _explain_interruption(folder: Path, chunks: int) -> Iterator[None]:
    """Notes on Ctrl-C what is kept, for the line that `cli/main.py` prints."""
    try:
        yield
    except KeyboardInterrupt as error:
        if kept := len(list(folder.glob("*.json"))):
            error.add_note(f"{kept:,} of {chunks:,} chunks are embedded and kept: the same command goes on from there")
        raise


@contextmanager
def _open_embeddings(out: Path, kept: Path | None) -> Iterator[Path]:
    folder = kept or out / PENDING_CHUNKS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the embeddings {folder} cannot be written: {describe_os_error(error)}") from error
    with nullcontext() if kept is None else hold_lock(folder, "folder of embeddings", IndexFolderError):
        try:
            yield folder
        finally:
            if folder.is_dir() and {path.name for path in folder.iterdir()} <= {LOCK}:
                shutil.rmtree(folder, ignore_errors=True)


def check_output(out: Path, spread: Spread, *, overwrite: bool) -> None:
    """Checks that a build may write its index, and the embeddings that it keeps.

    Raises:
        ExistsError: an index would be overwritten without being told to, or `out` is something else.
        InputError: the embeddings would lie in the index or around it, or it cannot be read.
    """
    if spread.embeddings is not None:
        kept, index = spread.embeddings.resolve(), out.resolve()
        if kept.is_relative_to(index) or index.is_relative_to(kept):
            raise InputError(
                f"--embeddings {spread.embeddings} and --out {out} lie in one another: choose two folders side by side"
            )
    (check_index_output if spread.shards is None else _check_shards_output)(out, overwrite=overwrite)


def _check_size(images: int, options: BuildOptions, spread: Spread) -> None:
    if images < (spread.shards or 1):
        raise InputError(f"{images} images cannot be in {spread.shards} shards: give fewer")
    if options.has_limits and images > SAMPLE:
        raise InputError(
            f"--max-memory and --max-latency are kept on {SAMPLE:,} images at most, and the gallery has {images:,}: "
            "leave them out, or name the type by --factory"
        )


def _check_shards_output(out: Path, *, overwrite: bool) -> None:
    require_text(out)
    try:
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise InputError(f"{out} cannot be read: {describe_os_error(error)}; choose another --out") from error
    ours = {SHARDS, name_aside(Path(SHARDS)).name, LOCK, PENDING_CHUNKS}
    others = [name for name in names - ours if not GENERATION.fullmatch(name)]
    if others or (names and not names & {SHARDS, LOCK}) or (out.exists() and not out.is_dir()):
        raise ExistsError(f"{out} exists and is not a folder of shards; choose another --out")
    if SHARDS in names and not overwrite:
        raise ExistsError(f"the index {out} exists; choose another --out, or replace it with --overwrite")


@dataclass(frozen=True)
class _Source:
    """What a build on a cluster has embedded, and is to be indexed."""

    gallery: ImageSet
    session: EmbeddingSession
    folder: Path
    chunks: Sequence[Chunk]
    part_vectors: int
    spec: str

    def gather(self, start: int = 0, stop: int | None = None) -> EmbeddedImages:
        """Returns images by their numbers among those with a vector; no chunk is read that has none of them."""
        counts = count_embedded(self.folder, self.chunks, self.session.sha256)
        ends = list(accumulate(counts))
        first = bisect_right(ends, start)
        last = len(ends) if stop is None else bisect_left(ends, stop) + 1
        offset = ends[first] - counts[first]
        stop = None if stop is None else stop - offset
        return gather_chunks(self.folder, self.chunks[first:last], self.session.sha256, start - offset, stop)

    def list_skipped(self) -> list[SkippedImage]:
        """Returns the images without a vector."""
        found = (gather_chunks(self.folder, [chunk], self.session.sha256) for chunk in self.chunks)
        return [image for part in found for image in part.skipped]

    def draw(self, total: int) -> Embeddings:
        """Returns the vectors that the type is chosen by: all, or a sample in the order of the gallery."""
        if total <= SAMPLE:
            return self.gather().vectors
        drawn = np.sort(np.random.default_rng(0).choice(total, SAMPLE, replace=False))
        offset, parts = 0, []
        for chunk in self.chunks:
            found = self.gather_chunk(chunk)
            here = drawn[np.searchsorted(drawn, offset) : np.searchsorted(drawn, offset + len(found))]
            parts.append(found[here - offset])
            offset += len(found)
        return np.concatenate(parts)

    def gather_chunk(self, chunk: Chunk) -> Embeddings:
        return gather_chunks(self.folder, [chunk], self.session.sha256).vectors


def _write(
    source: _Source, out: Path, options: BuildOptions, shards: int | None
) -> tuple[Manifest, list[SkippedImage]]:
    total, skipped = sum(count_embedded(source.folder, source.chunks, source.session.sha256)), source.list_skipped()
    if not total:
        raise DataError(f"none of the {len(skipped)} images can be read; {skipped[0].name}: {skipped[0].reason}")
    if total < (shards or 1):
        raise InputError(f"{total} images cannot be in {shards} shards: give fewer")
    sample = source.draw(total)
    kind = options.choose(sample)
    empty = train_faiss(kind.factory, sample)
    del sample
    if shards is None:
        embedded = replace(source.gather(), skipped=skipped)
        part = IndexPart(source.spec, make=partial(add_in_tasks, empty, source.part_vectors))
        return write_index(out, source.gallery, source.session, embedded, kind, part), skipped
    bounds = [total * i // shards for i in range(shards + 1)]
    return _write_shards(source, out, kind, empty, bounds, skipped), skipped


def _write_shards(
    source: _Source,
    out: Path,
    kind: IndexType,
    empty: FaissIndex,
    bounds: Sequence[int],
    skipped: list[SkippedImage],
) -> Manifest:
    """Writes the shards beside those in force, which stay for those who have them open, and puts them in force."""
    there = list_generations(out)
    try:
        before = {path.parent.name for path in list_shards(out) or ()}
    except IndexFolderError:  # damaged, which is why it is built again
        before = set(there)
    for name in there.keys() - before:  # of a build that was cut off, or of one before the last
        shutil.rmtree(out / name)
    generation = f"shards-{max(there.values(), default=0) + 1:08d}"
    names, manifests = [], []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        names.append(f"{generation}/{number:04d}")
        folder = out / names[-1]
        folder.mkdir(parents=True)
        embedded = replace(source.gather(start, stop), skipped=[] if number else skipped)  # the first keeps the list
        make = partial(add_in_tasks, empty, source.part_vectors)
        part = IndexPart(source.spec, start + 1, (number + 1) * NEXT_IDS, make)
        with lock_index(folder, create=True):
            manifests.append(write_index(folder, source.gallery, source.session, embedded, kind, part))
    write_shards(out, names)
    return add_up_manifests(out, manifests)


def add_in_tasks(empty: FaissIndex, part_vectors: int, factory: str, vectors: Embeddings, ids: Ids) -> FaissIndex:
    """Returns a trained index with vectors (N, D) added, byte for byte as if one process had added them.

    Tasks find the lists of parts of the vectors, which are merged in their order. Types without lists have nothing to
    find, and some of them cannot be merged: this process adds to them.
    """
    stored = faiss.serialize_index(empty)
    index = faiss.deserialize_index(stored)
    if find_ivf(index) is None or not can_filter(factory) or len(ids) <= part_vectors:
        index.add_with_ids(vectors, ids)
        return index
    ray = require_ray()
    add = ray.remote(num_cpus=1)(_add_part)
    reference = ray.put(stored)
    running: deque[Any] = deque()
    starts = deque(range(0, len(ids), part_vectors))
    while starts or running:
        while starts and len(running) < 2 * count_cpus():
            part = slice(starts[0], starts.popleft() + part_vectors)
            running.append(add.remote(reference, vectors[part], ids[part]))
        index.merge_from(faiss.deserialize_index(fetch(running.popleft()).copy()), 0)
    return index


def _add_part(empty: NDArray[np.uint8], vectors: Embeddings, ids: Ids) -> NDArray[np.uint8]:
    index = faiss.deserialize_index(empty.copy())
    index.add_with_ids(np.ascontiguousarray(vectors), np.ascontiguousarray(ids))
    content: NDArray[np.uint8] = faiss.serialize_index(index)
    return content
