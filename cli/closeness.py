"""How close a run's student is to its teacher: embeds, measures, and writes closeness.json and report.html."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indistill import __version__
from indistill.cli.inputs import load_untrained
from indistill.cli.output import print_closeness_briefly
from indistill.closeness import EmbeddedImages, measure_closeness, measure_overlaps, prepare_vectors
from indistill.data.pixels import Pixels, load_pixels
from indistill.data.sets import ImageSet, sample_images
from indistill.data.specs import locate_data
from indistill.errors import InputError
from indistill.files.formats import CLOSENESS
from indistill.files.hashing import hash_file
from indistill.files.locking import hold_lock
from indistill.models.embedding import embed_pixels
from indistill.models.loading import Network, load_network
from indistill.preprocess import PixelArray
from indistill.progress import show_progress
from indistill.reports.page import Picture, ReportSection, encode_thumbnail, write_training_report
from indistill.retrieval.evaluation.evaluate import LabelledVectors, evaluate_retrieval
from indistill.run_folder import Run, read_closeness, read_metrics, read_run, write_text
from indistill.talk import say

IMAGES = 1000
QUERIES_SHOWN, NEIGHBOURS_SHOWN = 8, 6
EVALUATED = ("teacher", "student", "untrained")  # by `evaluate`'s metrics
COMPARED = ("student", "untrained", "moved")  # with the teacher
COLUMNS = {
    "teacher": "teacher",
    "student": "student",
    "untrained": "untrained student",
    "moved": "teacher, image moved",
}
FIGURES = {
    "neighbour_overlap": "overlap of the 10 nearest neighbours",
    "rank_correlation": "rank correlation of distances",
    "linear_cka": "linear CKA",
    "cosine_correlation": "correlation of cosines",
    "cosine_difference": "difference of cosines (0 is best)",
    "rotated_cosine": "cosine after the best rotation",
    "mapped_cosine": "cosine after the best linear map",
}

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        run: the student.
        teacher: whom it is compared with.
        device: where both embed.
    """

    run: Run
    teacher: Network
    device: torch.device


def report_trained_run(folder: Path, teacher: Network, images: ImageSet, device: torch.device) -> None:
    """Measures a run that was just trained, on some of its own images, and prints how close the student is.

    The run is complete as it is, so what allows no measurement is a warning. One that has been measured as it is, is
    not measured again.
    """
    run = read_run(folder)
    try:
        figures = read_closeness(run) or report_run(Subject(run, teacher, device), images, None, IMAGES)
    except InputError as error:
        say(f"warning: the report does not say how close the student is: {error}")
    else:
        print_closeness_briefly(folder, figures)


def report_run(subject: Subject, images: ImageSet, gallery: ImageSet | None, count: int) -> dict[str, Any]:
    """Writes closeness.json and report.html of a run, and returns the contents of the first.

    Args:
        subject: student and teacher.
        images: what is measured on.
        gallery: labelled images that are searched for the metrics of `evaluate`; without it, and with labels, the odd
            half of the images is looked for in the even one.
        count: of the images, at most, spread evenly over them.

    Raises:
        DataError: too few images, or vectors that are not finite.
        ModelError: a network or its weights cannot be used.
    """
    with hold_lock(subject.run.folder, "run"):
        return _report_held_run(subject, images, gallery, count)


def _report_held_run(subject: Subject, images: ImageSet, gallery: ImageSet | None, count: int) -> dict[str, Any]:
    run = subject.run
    records = read_metrics(run.folder / "metrics.jsonl")
    pixels = load_pixels(sample_images(images, count), run.preprocessing)
    networks = {
        "teacher": subject.teacher,
        "student": load_network(str(run.folder), role="student"),
        "untrained": load_untrained(run),
    }
    for network in networks.values():
        network.module.to(subject.device)
    with show_progress("comparing with the teacher", 4 * len(pixels)) as advance:
        vectors = {
            name: embed_pixels(network, run.preprocessing, pixels.images, advance) for name, network in networks.items()
        }
        moved = embed_pixels(subject.teacher, run.preprocessing, move_images(pixels.images), advance)
    embedded = {name: prepare_vectors(values, COLUMNS[name]) for name, values in (vectors | {"moved": moved}).items()}
    neighbours = embedded["teacher"].neighbours.shape[1]
    figures: dict[str, Any] = {
        "schema_version": CLOSENESS.version,
        "version": __version__,
        "data": pixels.name,
        "own_data": locate_data(pixels.name) == run.config["data"],
        "images": len(pixels),
        "images_available": len(images.names),
        "skipped": len(pixels.skipped),
        "fingerprint": pixels.fingerprint,
        "teacher": subject.teacher.source,
        "weights_sha256": hash_file(run.weights),
        "neighbours": neighbours,
        "chance_overlap": neighbours / (len(pixels) - 1),
        **{name: asdict(measure_closeness(embedded["teacher"], embedded[name])) for name in COMPARED},
        "retrieval": measure_retrieval(subject, networks, pixels, vectors, gallery),
    }
    worst = find_worst(embedded["teacher"], embedded["student"])
    figures["worst_queries"] = [_describe_query(query, pixels, embedded) for query in worst]
    sections = [*describe_figures(figures), show_queries(worst, pixels, embedded)]
    write_training_report(run.folder / "report.html", run.config, records, sections)
    # Last: a run that has it is not measured again.
    write_text(run.folder / "closeness.json", json.dumps(figures, indent=2) + "\n")
    return figures


def find_shortfall(figures: dict[str, Any]) -> str | None:
    """Returns what is to be said of a student that is no closer to its teacher than an untrained one, None of others.

    It is closer if more of the teacher's nearest neighbours are among its own, or if most of the figures are better.
    """
    better = [key for key in FIGURES if _rank(key, figures["student"][key]) > _rank(key, figures["untrained"][key])]
    if "neighbour_overlap" in better or len(better) > len(FIGURES) / 2:
        return None
    overlaps = [figures[name]["neighbour_overlap"] for name in ("student", "untrained")]
    return (
        "the student is no closer to its teacher than an untrained network of its kind: of its 10 nearest neighbours "
        f"{overlaps[0]:.1%} are the teacher's, of the untrained network's {overlaps[1]:.1%}; is the teacher trained, "
        "and are there enough images and epochs?"
    )


def move_images(pixels: PixelArray) -> PixelArray:
    """Returns images (N, S, S, 3) moved down and to the right by one pixel, the edge repeated."""
    return np.pad(pixels, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")[:, :-1, :-1]


def measure_retrieval(
    subject: Subject,
    networks: dict[str, Network],
    pixels: Pixels,
    vectors: dict[str, np.ndarray],
    gallery: ImageSet | None,
) -> dict[str, Any] | None:
    """Returns the metrics of `evaluate` for each network, or None where the images have no two classes."""
    if len(pixels.classes) < 2:
        return None
    labels = [pixels.classes[label] if label >= 0 else None for label in pixels.labels]
    searched: Pixels | None = None
    if gallery is not None:
        with show_progress(f"reading {gallery.name}", len(gallery.names)) as advance:
            searched = load_pixels(gallery, subject.run.preprocessing, advance)
    result: dict[str, Any] = {"gallery": gallery.name if gallery is not None else None}
    for name in EVALUATED:
        if searched is None:
            pair = LabelledVectors(vectors[name][::2], labels[::2]), LabelledVectors(vectors[name][1::2], labels[1::2])
        else:
            found = embed_pixels(networks[name], subject.run.preprocessing, searched.images)
            names = [searched.classes[label] if label >= 0 else None for label in searched.labels]
            pair = LabelledVectors(found, names), LabelledVectors(vectors[name], labels)
        evaluations = evaluate_retrieval(*pair)
        result |= {"gallery_images": len(pair[0].labels), "queries": evaluations["cosine"].queries}
        result[name] = {metric: evaluation.metrics for metric, evaluation in evaluations.items()}
    return result


def find_worst(teacher: EmbeddedImages, student: EmbeddedImages) -> list[int]:
    """Returns the positions of the images whose neighbours differ most, the worst first."""
    overlaps = measure_overlaps(teacher.neighbours, student.neighbours)
    worst: list[int] = np.argsort(overlaps, kind="stable")[:QUERIES_SHOWN].tolist()
    return worst


def describe_figures(figures: dict[str, Any]) -> list[ReportSection]:
    """Returns the sections of the page: closeness, and the metrics where there are labels."""
    header, rows = tabulate_closeness(figures)
    sections = [ReportSection("How close the student is to its teacher", describe_images(figures), header, rows)]
    if figures["retrieval"] is not None:
        header, rows = tabulate_retrieval(figures)
        sections.append(ReportSection("Retrieval, by labels", describe_gallery(figures["retrieval"]), header, rows))
    return sections


def describe_images(figures: dict[str, Any]) -> str:
    """Returns the sentence that says what was measured on."""
    total = figures["images_available"]
    some = f"{figures['images']:,}" if figures["images"] == total else f"{figures['images']:,} of {total:,}"
    kind = "the student's own training data" if figures["own_data"] else "not the data of the run"
    return (
        f"Without labels, on {some} images of {figures['data']} ({kind}). Untrained: the same network with random "
        "weights. Image moved: the teacher with itself, the images moved by one pixel. An overlap of "
        f"{figures['chance_overlap']:.3f} is chance."
    )


def describe_gallery(retrieval: dict[str, Any]) -> str:
    """Returns the sentence that says what was searched."""
    where = "every other image, searched" if retrieval["gallery"] is None else retrieval["gallery"]
    return (
        f"Percent. Gallery: {retrieval['gallery_images']:,} images ({where}); {retrieval['queries']:,} queries. "
        "Metrics without a name behind them are by cosine."
    )


def tabulate_closeness(figures: dict[str, Any]) -> Table:
    """Returns header and rows: a row for each figure, a column for each that is compared with the teacher."""
    header = ["", *(COLUMNS[name] for name in COMPARED)]
    rows = [[label, *(f"{figures[name][key]:.4f}" for name in COMPARED)] for key, label in FIGURES.items()]
    return header, rows


def tabulate_retrieval(figures: dict[str, Any]) -> Table:
    """Returns header and rows: a row for each metric in percent, a column for each network."""
    retrieval = figures["retrieval"]
    rows = [
        [name if metric == "cosine" else f"{name}, {metric}"]
        + [f"{100 * retrieval[column][metric][name]:.2f}" for column in EVALUATED]
        for metric, values in retrieval["student"].items()
        for name in values
    ]
    return ["percent", *(COLUMNS[name] for name in EVALUATED)], rows


def show_queries(queries: Sequence[int], pixels: Pixels, embedded: dict[str, EmbeddedImages]) -> ReportSection:
    """Returns the section of the worst queries: the nearest images by the teacher, then by the student."""
    rows = []
    for query in queries:
        found = {name: embedded[name].neighbours[query].tolist() for name in ("teacher", "student")}
        shared = set(found["teacher"]) & set(found["student"])
        rows += [
            (
                f"{pixels.names[query]}: {len(shared)} of {len(positions)} shared, by the {name}",
                [_make_picture(query, pixels, "query"), *_make_pictures(positions, pixels, shared)],
            )
            for name, positions in found.items()
        ]
    note = (
        "The images whose nearest neighbours differ most between teacher and student. The query comes first; green: "
        "among the nearest of both."
    )
    return ReportSection("Worst queries", note, pictures=rows)


def _rank(key: str, value: float) -> float:
    return -value if key == "cosine_difference" else value


def _make_pictures(positions: Sequence[int], pixels: Pixels, shared: set[int]) -> list[Picture]:
    return [_make_picture(p, pixels, "shared" if p in shared else "plain") for p in positions[:NEIGHBOURS_SHOWN]]


def _make_picture(position: int, pixels: Pixels, kind: str) -> Picture:
    return Picture(encode_thumbnail(pixels.images[position]), pixels.names[position], kind)


def _describe_query(query: int, pixels: Pixels, embedded: dict[str, EmbeddedImages]) -> dict[str, Any]:
    found = {name: embedded[name].neighbours[query].tolist() for name in ("teacher", "student")}
    overlap = len(set(found["teacher"]) & set(found["student"])) / len(found["teacher"])
    names = {name: [pixels.names[p] for p in positions] for name, positions in found.items()}
    return {"name": pixels.names[query], "overlap": overlap, **names}
