"""Building an index: all or nothing."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np

from indistill import __version__
from indistill.data.sets import ImageSet
from indistill.errors import DataError, ExistsError, InputError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.hashing import hash_file
from indistill.images import SkippedImage
from indistill.retrieval.catalogue import CatalogueItem, write_catalogue
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index import CATALOGUE, CURRENT, MANIFEST, MODEL, SKIPPED, VECTORS, Manifest

FACTORY = "IDMap2,Flat"
FIRST_GENERATION = 1
INDEX_FILES = {CURRENT, MODEL, SKIPPED, "generations"}


def build_index(
    gallery: ImageSet,
    session: EmbeddingSession,
    out: Path,
    *,
    overwrite: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[Manifest, list[SkippedImage]]:
    """Embeds a gallery of images and writes an exact index of it; the folder appears when it is complete.

    Args:
        gallery: the images.
        session: the model, of which a copy goes into the index.
        out: the index folder.
        overwrite: whether an older index may be replaced.
        on_progress: called with the number of images just done.

    Raises:
        DataError: no image can be read.
        ExistsError: the folder exists.
        InputError: the place cannot be written to.
    """
    out = out.resolve()  # an index behind a link is replaced, not the link
    check_index_output(out, overwrite=overwrite)
    embedded = embed_files(gallery, session, on_progress)
    if not embedded.files:
        first = embedded.skipped[0]
        raise DataError(f"none of the {len(embedded.skipped)} images can be read; {first.name}: {first.reason}")
    labels = {
        name: gallery.classes[label] if label >= 0 else None
        for name, label in zip(gallery.names, gallery.labels, strict=True)
    }
    items = [
        CatalogueItem(i, file.name, labels[file.name], file.sha256, file.size_bytes, file.modified_ns)
        for i, file in enumerate(embedded.files, start=1)
    ]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            shutil.copyfile(session.path, draft / MODEL)
            _write_lines(draft / SKIPPED, [asdict(skipped) for skipped in embedded.skipped])
            manifest = _write_generation(draft, items, embedded.vectors, session.sha256, gallery, len(embedded.skipped))
            for path in (draft / MODEL, draft / SKIPPED, draft / "generations"):
                _sync(path)
            _write_synced(draft / CURRENT, f"{FIRST_GENERATION:08d}\n")
            draft.chmod(0o755)
            _replace_folder(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise InputError(f"the index {out} cannot be written: {error.strerror}") from error
    return manifest, embedded.skipped


def check_index_output(out: Path, *, overwrite: bool) -> None:
    """Raises ExistsError if an index would be overwritten without being told to, or if `out` is something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CURRENT).is_file() or {path.name for path in out.iterdir()} - INDEX_FILES:
        raise ExistsError(f"{out} exists and is not an index, or holds other files too; choose another --out")
    if not overwrite:
        raise ExistsError(f"the index {out} exists; choose another --out, or replace it with --overwrite")


def _write_generation(
    folder: Path,
    items: Sequence[CatalogueItem],
    vectors: Embeddings,
    model_sha256: str,
    gallery: ImageSet,
    skipped: int,
) -> Manifest:
    generation = folder / "generations" / f"{FIRST_GENERATION:08d}"
    generation.mkdir(parents=True)
    index = faiss.index_factory(vectors.shape[1], FACTORY, faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, np.array([item.id for item in items], dtype=np.int64))
    faiss.write_index(index, str(generation / VECTORS))
    write_catalogue(generation / CATALOGUE, items)
    manifest = Manifest(
        items=len(items),
        dimension=int(vectors.shape[1]),
        factory=FACTORY,
        metric="inner_product",
        model_sha256=model_sha256,
        generation=FIRST_GENERATION,
        root=gallery.root,
        skipped=skipped,
        files={name: hash_file(generation / name) for name in (VECTORS, CATALOGUE)},
        version=__version__,
    )
    for name in (VECTORS, CATALOGUE):
        _sync(generation / name)
    _write_synced(generation / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    _sync(generation)
    return manifest


def _replace_folder(draft: Path, out: Path) -> None:
    """Puts a complete folder in place of an older one, which is put back if that fails."""
    if not out.exists():
        draft.rename(out)
    elif not any(out.iterdir()):
        out.rmdir()
        draft.rename(out)
    else:
        old = draft.with_name(draft.name + "-old")
        out.rename(old)
        try:
            draft.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old)
    _sync(out.parent)


def _write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _write_synced(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
