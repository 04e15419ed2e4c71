"""Building an index: all or nothing, and what a build that was cut off has embedded is not embedded again."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import faiss
import numpy as np

from indistill import __version__
from indistill.data.sets import ImageSet
from indistill.errors import DataError, ExistsError, InputError, describe_error, describe_os_error
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.files.durable import name_aside
from indistill.files.locking import LOCK
from indistill.images import SkippedImage
from indistill.retrieval.embed import EmbeddedImages, ImageFile, embed_files
from indistill.retrieval.index_types.types import EXACT, make_faiss
from indistill.retrieval.store.catalogue import NewItem, edit_catalogue
from indistill.retrieval.store.generations import (
    CATALOGUE,
    CURRENT,
    FAISS,
    GENERATIONS,
    MODEL,
    PENDING,
    PENDING_CHUNKS,
    SKIPPED,
    Manifest,
    commit_generation,
    discard_unfinished,
    draft_generation,
    lock_index,
    require_text,
    write_skipped,
)
from indistill.retrieval.store.journal import explain_interruption, open_journal
from indistill.retrieval.store.segments import Ids, write_segment

PARTIAL = name_aside(Path(CURRENT)).name  # of a process that was killed
INDEX_FILES = {CURRENT, PARTIAL, GENERATIONS, LOCK, PENDING, PENDING_CHUNKS, MODEL, SKIPPED}  # the last two of format 1


@dataclass(frozen=True)
class IndexType:
    """The FAISS index that a build makes.

    Attributes:
        factory: FAISS's name, as `check_factory` gives it.
        parameters: of its search, such as `nprobe`.
        trials: what was tried before it was chosen.
    """

    factory: str = EXACT
    parameters: dict[str, int] = field(default_factory=dict)
    trials: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True)
class BuildOptions:
    """How an index is built.

    Attributes:
        choose: returns the type of index for vectors (N, D); exact search where it is left out.
        workers: threads that decode images; default one for each core.
        overwrite: whether an older index may be replaced.
        source: the gallery's data spec, for `Manifest`.
        has_limits: whether `choose` keeps limits of memory or latency, which hold for the vectors that it is given.
    """

    choose: Callable[[Embeddings], IndexType] = lambda _: IndexType()
    workers: int | None = None
    overwrite: bool = False
    source: str = ""
    has_limits: bool = False


@dataclass(frozen=True)
class IndexPart:
    """What an index of embedded images is a part of, and how it is made.

    Attributes:
        source: the gallery's data spec, for `Manifest`.
        first_id: of its images.
        next_id: of the image that is added first later; None for the one after the last.
        make: gives the FAISS index of a type, of vectors (N, D) and ids (N,).
    """

    source: str = ""
    first_id: int = 1
    next_id: int | None = None
    make: Callable[[str, Embeddings, Ids], faiss.Index] = make_faiss


def build_index(
    gallery: ImageSet,
    session: EmbeddingSession,
    out: Path,
    options: BuildOptions = BuildOptions(),
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Manifest, list[SkippedImage]]:
    """Embeds a gallery of images and writes an index of it, which is in force when it is complete.

    Args:
        gallery: the images.
        session: the model, of which a copy goes into the index.
        out: the index folder.
        options: how.
        on_progress: called with the number of images just done.

    Raises:
        DataError: no image can be read.
        ExistsError: the folder exists.
        InputError: the place cannot be written to.
    """
    out = out.resolve()  # an index behind a link is replaced, not the link
    check_index_output(out, overwrite=options.overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock_index(out, create=True), discard_unfinished(out), explain_interruption(out / PENDING):
            check_index_output(out, overwrite=options.overwrite)  # another process may have been first
            with open_journal(out / PENDING, session.sha256, session.artefact.embedding_dim) as journal:
                embedded = embed_files(
                    gallery, session, on_progress, known=journal, keep=journal.keep, workers=options.workers
                )
            if not embedded.files:
                first = embedded.skipped[0]
                raise DataError(f"none of the {len(embedded.skipped)} images can be read; {first.name}: {first.reason}")
            part = IndexPart(source=options.source)
            made = write_index(out, gallery, session, embedded, options.choose(embedded.vectors), part)
            (out / PENDING).unlink(missing_ok=True)
            shutil.rmtree(out / PENDING_CHUNKS, ignore_errors=True)
            return made, embedded.skipped
    except OSError as error:
        raise InputError(f"the index {out} cannot be written: {describe_os_error(error)}") from error


def write_index(
    out: Path,
    gallery: ImageSet,
    session: EmbeddingSession,
    embedded: EmbeddedImages,
    kind: IndexType,
    part: IndexPart,
) -> Manifest:
    """Puts an index of embedded images in force, in a folder that is locked."""
    labels = dict(zip(gallery.names, list_labels(gallery), strict=True))
    items = [make_item(file, file.name, labels[file.name]) for file in embedded.files]
    with draft_generation(out) as draft:
        shutil.copyfile(session.path, draft / MODEL)
        write_skipped(draft / SKIPPED, embedded.skipped)
        with edit_catalogue(draft / CATALOGUE) as catalogue:
            catalogue.start_ids(part.first_id)
            ids = np.array(catalogue.add(items), dtype=np.int64)
            if part.next_id is not None:
                catalogue.start_ids(part.next_id)
        write_segment(draft / name_segment(1), ids, embedded.vectors)
        known = {FAISS: write_faiss(part.make(kind.factory, embedded.vectors, ids), draft / FAISS)}
        manifest = Manifest(
            items=len(items),
            dimension=session.artefact.embedding_dim,
            factory=kind.factory,
            parameters=kind.parameters,
            trials=kind.trials,
            trained_on=len(items),
            metric="inner_product",
            model_sha256=session.sha256,
            generation=0,  # filled in when it is committed
            root=gallery.root,
            source=part.source,
            skipped=len(embedded.skipped),
            segments=(name_segment(1),),
            version=__version__,
        )
        return commit_generation(draft, manifest, known)


def check_index_output(out: Path, *, overwrite: bool) -> None:
    """Checks that an index may be written to a folder.

    Raises:
        ExistsError: an index would be overwritten without being told to, or `out` is something else.
        InputError: it cannot be read, or no index can have its name.
    """
    require_text(out)
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise InputError(f"{out} cannot be read: {describe_os_error(error)}; choose another --out") from error
    if not found or found - INDEX_FILES or not found & {CURRENT, LOCK}:
        raise ExistsError(f"{out} exists and is not an index, or holds other files too; choose another --out")
    if CURRENT in found and not overwrite:
        raise ExistsError(f"the index {out} exists; choose another --out, or replace it with --overwrite")


def write_faiss(index: faiss.Index, path: Path) -> str:
    """Writes a FAISS index and returns the SHA-256 of what was written, without reading it again.

    Raises:
        InputError: FAISS cannot write it.
        OSError: not all of it can be written.
    """
    digest = hashlib.sha256()

    def write(content: bytes) -> int:
        digest.update(content)
        return stream.write(content)

    try:
        with path.open("wb") as stream:  # checks each write; FAISS prints that a file cannot be closed, and goes on
            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
    except RuntimeError as error:
        raise InputError(f"the index {path.parent} cannot be written: {describe_error(error)}") from error
    return digest.hexdigest()


def name_segment(number: int) -> str:
    """Returns the file name of a segment of embeddings."""
    return f"vectors-{number:08d}.npy"


def list_labels(images: ImageSet) -> list[str | None]:
    """Returns the class name of each image, None where it has none."""
    return [images.classes[label] if label >= 0 else None for label in images.labels]


def make_item(file: ImageFile, path: str, label: str | None) -> NewItem:
    """Returns what the catalogue keeps of a file."""
    return NewItem(path, label, file.sha256, file.size_bytes, file.modified_ns)
