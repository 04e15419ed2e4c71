"""The page of `evaluate --html`: the tables, and the best and the worst queries with what is found for them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from indistill.cli.evaluation import Conduct, Measurement
from indistill.data.sets import FolderSet, ImageSet
from indistill.errors import DataError, ExistsError, InputError, describe_os_error
from indistill.retrieval.evaluation.deployed import locate_ids
from indistill.retrieval.evaluation.metrics import JUNK, Figures, Vectors, normalise_rows
from indistill.retrieval.evaluation.page import render_evaluation
from indistill.retrieval.evaluation.ranks import Ranks
from indistill.retrieval.ranking import Hit
from indistill.retrieval.sheet import SheetRow, render_rows
from indistill.talk import say

QUERIES_SHOWN, HITS_SHOWN = 8, 6


def check_page(path: Path | None, *, overwrite: bool) -> None:
    """Raises ExistsError where the page exists and may not be replaced."""
    if path is not None and path.exists() and not overwrite:
        raise ExistsError(f"{path} exists; choose another --html, or replace it with --overwrite")


def write_page(measurements: Sequence[Measurement], conduct: Conduct, path: Path, *, per_class: bool) -> None:
    """Writes the page. Raises InputError where that cannot be done."""
    from indistill.cli.evaluation_tables import describe_queries, tabulate_all

    first = measurements[0]
    name, values = read_precisions(first)
    order = np.argsort(-values, kind="stable")
    order = order[~np.isnan(values[order])]
    shown = min(QUERIES_SHOWN, len(order))
    chosen = {"Best queries": order[:shown], "Worst queries": order[len(order) - shown :][::-1]}
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {
            heading: [
                (f"{name} {100 * values[row]:.2f} %", draw_query(first, row, conduct, Path(scratch)))
                for row in rows.tolist()
            ]
            for heading, rows in chosen.items()
        }
    tables = tabulate_all(measurements, per_class=per_class)
    title = f"Evaluation of {first.subject.name}"
    page = render_evaluation(title, describe_queries(first, conduct), tables, pictures)
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error
    say(f"wrote {path}")


def read_precisions(measurement: Measurement) -> tuple[str, Figures]:
    """Returns the name of the average precision by which queries are good or bad, and each query's own, (E,)."""
    deployed = measurement.deployed
    figures = measurement.exact["cosine"] if deployed is None else deployed.figures
    name = "map" if "map" in figures.names else "map_medium"
    return name, figures.read(name)


def draw_query(measurement: Measurement, row: int, conduct: Conduct, scratch: Path) -> Markup:
    """Returns a query and its first hits as a row of the page.

    Args:
        measurement: what was measured.
        row: of the figures.
        conduct: how it was measured.
        scratch: an empty folder, for images that are no files.
    """
    subject, task = measurement.subject, measurement.task
    query = int(measurement.exact["cosine"].queries[row])
    label = None if conduct.truth is not None else subject.queries.labels[query]
    positions, scores = _find_hits(measurement, query)
    kept = [i for i, position in enumerate(positions.tolist()) if task.gallery_labels[position] != JUNK][:HITS_SHOWN]
    root, paths = _locate_gallery(measurement, positions[kept], scratch)
    hits = [
        Hit(rank, 0, path, subject.gallery.labels[position], score)
        for rank, (path, position, score) in enumerate(
            zip(paths, positions[kept].tolist(), scores[kept].tolist(), strict=True), start=1
        )
    ]
    if subject.query_images is None:
        query_root, (name,) = _locate_gallery(measurement, np.array([query]), scratch)
        picture = query_root / name
    else:
        picture = _locate_image(subject.query_images, subject.queries.names[query], scratch / "queries")
    return render_rows([SheetRow(picture, hits, label)], root)


def _find_hits(measurement: Measurement, query: int) -> tuple[Ranks, Vectors]:
    """Returns the gallery positions of a query's hits, best first, and their cosines, without the query itself."""
    subject, task = measurement.subject, measurement.task
    vector = normalise_rows(task.queries[query : query + 1])
    wanted = min(len(task.gallery), measurement.depth + (task.own is not None))
    if subject.index is None:
        cosines = (normalise_rows(task.gallery) @ vector[0]).astype(np.float32)
        positions = np.argsort(-cosines, kind="stable")
        scores = cosines[positions]
    else:
        found, ids = subject.index.search_vectors(vector, wanted)
        positions = locate_ids(ids[0][ids[0] >= 0], np.array(subject.ids, dtype=np.int64))
        scores = found[0][ids[0] >= 0]
    if task.own is None:
        return positions, scores
    others = positions != task.own[query]
    return positions[others], scores[others]


def _locate_gallery(measurement: Measurement, positions: Ranks, scratch: Path) -> tuple[Path, list[str]]:
    """Returns a folder and the paths of gallery images relative to it."""
    subject = measurement.subject
    if subject.index is not None:
        ids = [subject.ids[position] for position in positions.tolist()]
        items = subject.index.find_items(ids)
        return subject.index.root, [items[i].path for i in ids]
    images = subject.gallery_images
    assert images is not None
    names = [subject.gallery.names[position] for position in positions.tolist()]
    root = images.folder if isinstance(images, FolderSet) else scratch / "gallery"
    return root, [str(_locate_image(images, name, root).relative_to(root)) for name in names]


def _locate_image(images: ImageSet, name: str, scratch: Path) -> Path:
    """Returns the file of an image; one that is no file is written to a folder, under its name."""
    if isinstance(images, FolderSet):
        return images.folder / name
    position = list(images.names).index(name)
    path = scratch / str(position) / f"{Path(name).stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        images.read(position).save(path)
    except (DataError, OSError):
        return path  # shown as missing
    return path
