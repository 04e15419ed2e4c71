"""Embedding on a cluster: actors with one ONNX Runtime session each, which are given one chunk after the other.

Plain actors, not Ray Data: there is one stage, its result are files, and nothing flows on. Ray Data would bring a stage
of its own that reads, which never runs where actors have taken all CPUs (Ray issue 44687), and waits for a place to
start an actor again when its node is lost; here its chunk goes to another one at once.
"""

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from indistill.data.sets import FolderSet, ImageSet, SampledSet
from indistill.data.shards import ShardSet
from indistill.data.urls import UrlSet
from indistill.errors import DataError, IndistillError
from indistill.export.session import EmbeddingSession
from indistill.images import measure_file
from indistill.retrieval.cluster.chunks import Chunk, cut_images, read_chunk, write_chunk
from indistill.retrieval.cluster.runtime import count_cpus, fetch, require_ray
from indistill.retrieval.embed import EmbeddedImages, ImageFile, embed_files

ATTEMPTS = 3  # of a chunk whose process or node is lost
FETCHERS = 16  # threads of an actor that wait for an object store; they take little of its CPU
LOOK_S = 1.0  # how often nodes that have joined are looked for


@dataclass
class Work:
    """What an embedding has done: images that were embedded and that were there already, and chunks by node."""

    embedded: int = 0
    known: int = 0
    nodes: Counter[str] = field(default_factory=Counter)

    def add(self, images: int, node: str, *, embedded: bool) -> None:
        """Counts a chunk."""
        if embedded:
            self.embedded += images
            self.nodes[node] += 1
        else:
            self.known += images


class Embedder:
    """A session in a process of its own; an actor.

    Args:
        model: the content of the `.onnx` file, which need not be on each node.
    """

    def __init__(self, model: bytes) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            path.write_bytes(model)
            self._session = EmbeddingSession(path, threads=1)

    def get_node(self) -> str:
        """Returns the id of the node."""
        return str(require_ray().get_runtime_context().get_node_id())

    def embed(self, images: ImageSet, stored: EmbeddedImages | None, *, seen: bool) -> EmbeddedImages | None:
        """Returns the embeddings of images; None where those that are stored are still right.

        Args:
            images: a chunk of the gallery.
            stored: what was made of it before, without vectors.
            seen: whether the machine that builds has any of its files.

        Raises:
            DataError: the images' folder is not on this node, or it has none of the files that were seen.
        """
        place = find_absent(images, seen=seen)
        if place is not None:
            node = require_ray().util.get_node_ip_address()
            raise DataError(f"the Ray node {node} has no {place}: images must lie at the same path on each node")
        if stored is not None and _is_unchanged(images, stored, self._session):
            return None
        return embed_files(images, self._session, workers=FETCHERS if isinstance(images, UrlSet) else 1)


def embed_chunks(
    gallery: ImageSet,
    chunks: Sequence[Chunk],
    session: EmbeddingSession,
    folder: Path,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Work:
    """Embeds the chunks that are not in a folder yet, or whose images have changed since.

    Args:
        gallery: the images, which each node can read.
        chunks: of the gallery.
        session: the model.
        folder: where the embeddings go; this process writes them.
        workers: how many actors at most; default one for each CPU of the cluster, also of nodes that join later.
        on_progress: called with the number of images just done.

    Raises:
        DataError: a node cannot reach the images.
        IndistillError: processes end again and again at the same chunk.
    """
    ray = require_ray()
    make = ray.remote(num_cpus=1)(Embedder).remote
    model = ray.put(session.path.read_bytes())
    waiting, left, lost, work = deque(chunks), len(chunks), Counter[int](), Work()
    actors: list[Any] = []
    idle: list[tuple[Any, str]] = []
    asked: dict[Any, tuple[Any, str, Chunk | None]] = {}  # actor, node and chunk; none for one that is starting

    try:
        while left:
            for _ in range(len(actors), min(workers or count_cpus(), left)):
                actors.append(make(model))
                asked[actors[-1].get_node.remote()] = actors[-1], "", None
            for reference in ray.wait(list(asked), num_returns=1, timeout=LOOK_S)[0]:
                actor, node, chunk = asked.pop(reference)
                try:
                    answer = fetch(reference)
                except ray.exceptions.RayTaskError:
                    raise
                except ray.exceptions.RayError as error:  # the process or its node is lost
                    actors.remove(actor)
                    waiting.extendleft([] if chunk is None else [chunk])
                    _count_loss(lost, chunk, error)
                    continue
                if chunk is not None:
                    left -= 1
                    part = cut_images(gallery, chunk.start, chunk.stop)
                    if answer is not None:
                        write_chunk(folder, chunk, part, answer, model_sha256=session.sha256, node=node)
                    work.add(len(part.names), node, embedded=answer is not None)
                    on_progress(len(part.names))
                idle.append((actor, answer if chunk is None else node))
            while waiting and idle:
                actor, node = idle.pop()
                chunk = waiting.popleft()
                stored = read_chunk(folder, chunk, session.sha256)
                if stored is not None:
                    stored = replace(stored, vectors=stored.vectors[:0])  # are not needed there
                part = cut_images(gallery, chunk.start, chunk.stop)
                seen = find_absent(part, seen=True) is None
                asked[actor.embed.remote(part, stored, seen=seen)] = actor, node, chunk
    finally:
        for actor in actors:
            ray.kill(actor)  # its CPU is free for what comes next
    return work


def _count_loss(lost: Counter[int], chunk: Chunk | None, error: Exception) -> None:
    number = -1 if chunk is None else chunk.number
    lost[number] += 1
    if lost[number] == ATTEMPTS:
        reason = " ".join(str(error).split())[:300]
        raise IndistillError(f"a process of the cluster has ended {ATTEMPTS} times at the same work: {reason}")


def find_absent(images: ImageSet, *, seen: bool) -> Path | None:
    """Returns what this machine lacks of images that lie in files, so that they cannot be read; None for nothing.

    Args:
        images: a chunk of the gallery.
        seen: whether another machine has any of the files: where this one has none, its folder is an empty mount point.
    """
    if isinstance(images, ShardSet):
        return next((member.shard for member in images.members if not member.shard.is_file()), None)
    if not isinstance(images, FolderSet) or any((images.folder / name).is_file() for name in images.names):
        return None
    if not images.folder.is_dir():
        return images.folder
    return images.folder / images.names[0] if seen else None


def _is_unchanged(images: ImageSet, stored: EmbeddedImages, session: EmbeddingSession) -> bool:
    """By size and time of the files that were read; those that were skipped are tried again."""
    places = {name: position for position, name in enumerate(images.names)}
    files = {file.name: file for file in stored.files}
    if any(_has_changed(images, places[name], file) for name, file in files.items()):
        return False
    skipped = [position for name, position in places.items() if name not in files]
    return not skipped or not embed_files(SampledSet(images, skipped), session, workers=1).files


def _has_changed(images: ImageSet, position: int, file: ImageFile) -> bool:
    """By content where there is no time to tell by, as in a saved data set."""
    try:
        if isinstance(images, FolderSet):
            found = measure_file(images.folder / file.name)
            return (found.st_size, found.st_mtime_ns) != (file.size_bytes, file.modified_ns)
        if isinstance(images, ShardSet):
            return images.members[position].shard.stat().st_mtime_ns != file.modified_ns
        if isinstance(images, UrlSet) and images.modified[position]:
            size = images.sizes[position]
            return size not in (-1, file.size_bytes) or images.modified[position] != file.modified_ns
        return hashlib.sha256(images.fetch(position).content).hexdigest() != file.sha256
    except (OSError, DataError):
        return True
