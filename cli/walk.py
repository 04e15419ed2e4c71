"""The whole walk, from a teacher to an answered query: what `indistill demo` does."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from indistill.cli.embedding import embed_index_queries
from indistill.cli.inputs import load_described
from indistill.data.pixels import Pixels, load_pixels
from indistill.data.sets import ImageSet, open_folder
from indistill.data.specs import open_images
from indistill.distillation.pairing import pair_stages
from indistill.errors import ExistsError
from indistill.export.bench import Protocol, run_bench
from indistill.export.bench_process import Engine
from indistill.export.bench_report import BenchReport
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.embedding import embed_pixels
from indistill.models.loading import Network, load_network
from indistill.reports.page import ReportSection, draw_curves, render_report
from indistill.retrieval.evaluation.evaluate import LabelledVectors, evaluate_retrieval
from indistill.retrieval.search import search_images
from indistill.retrieval.sheet import STYLE, SheetRow, render_rows
from indistill.retrieval.store.build import build_index
from indistill.run_folder import check_no_file_above, read_metrics, read_run, write_text
from indistill.runs.compress import run_compress
from indistill.runs.config import Recipe, load_recipe
from indistill.runs.settings import RunSettings
from indistill.runs.supervise import run_supervised

TEACHER, STUDENT = "paper:resnet18?width=16", "paper:cnn-s"
TEACHER_EPOCHS = 12
MARKER = ".indistill-demo"
OUTPUTS = {"teacher", "supervised", "student", "gallery", "queries", "index", "report.html", MARKER}
QUERIES_SHOWN, HITS_SHOWN = 10, 5
HEADER = ("", "mAP %", "R@1 %", "parameters", "file MB", "latency ms")


@dataclass(frozen=True)
class WalkResult:
    """What the walk ends with: the rows of the table under `HEADER`, the page, and the bench's warnings."""

    rows: list[list[str]]
    page: Path
    warnings: list[str]


def walk_digits(out: Path, seed: int, say: Callable[[str], None]) -> WalkResult:
    """Trains a teacher on scikit-learn's digits, compresses, exports, times, indexes, searches and evaluates.

    Args:
        out: a folder that does not exist or is empty.
        seed: of all training.
        say: called with a line when a step begins.
    """
    recipe = load_recipe("digits")
    train, test = open_images("digits/train"), open_images("digits/test")
    pixels = load_pixels(train, recipe.preprocessing)
    sizes = {"image_size": recipe.data.image_size, "num_classes": len(train.classes)}

    def load(spec: str) -> Network:
        torch.manual_seed(seed)
        return load_network(spec, arguments=sizes)

    def settle(name: str, epochs: int | None = None) -> RunSettings:
        return RunSettings(out / name, "digits/train", epochs, seed, torch.device("cpu"), False)

    say("1/7 train the teacher, a narrow ResNet-18")
    teacher = run_supervised(load(TEACHER), pixels, recipe, settle("teacher", TEACHER_EPOCHS))
    say("2/7 train the student alone, to compare with")
    baseline = run_supervised(load(STUDENT), pixels, recipe, settle("supervised"))
    say("3/7 compress the teacher into the student by InDistill")
    pairing = pair_stages(load_network(str(teacher)), load(STUDENT), (), warm_up=True)
    student = run_compress(pairing, pixels, recipe, settle("student"))
    say("4/7 export the student to ONNX and verify it")
    file = student / "student.onnx"
    described = load_described(str(student))
    export_onnx(described.network, recipe.preprocessing, pixels.images[:32], file, provenance=described.provenance)
    say("5/7 time it against the teacher")
    figures = _time_engines(teacher, baseline, student, file, train, recipe)
    say("6/7 index a gallery of images and search it")
    gallery, queries = write_images(train, out / "gallery"), write_images(test, out / "queries")
    index = out / "index"
    build_index(open_folder(gallery, str(gallery)), EmbeddingSession(file), index)
    say("7/7 evaluate, the deployed form too")
    rows = [
        _measure_network("teacher", teacher, pixels, test, figures),
        _measure_network("student, supervised", baseline, pixels, test, figures),
        _measure_network("student, InDistill", student, pixels, test, figures),
        _measure_deployed(index, queries, file, figures),
    ]
    page = out / "report.html"
    write_text(page, _render(rows, {"teacher": teacher, "supervised": baseline, "InDistill": student}, index, queries))
    return WalkResult(rows, page, figures.warnings)


def write_images(images: ImageSet, folder: Path) -> Path:
    """Writes the images of a labelled set as PNG files in a folder for each class, and returns the folder."""
    for position, name in enumerate(images.names):
        path = folder / images.classes[images.labels[position]] / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.read(position).save(path)
    return folder


def _time_engines(
    teacher: Path, baseline: Path, student: Path, file: Path, images: ImageSet, recipe: Recipe
) -> BenchReport:
    engines = [
        Engine("teacher", "pytorch", str(teacher), recipe.preprocessing),
        Engine("student", "pytorch", str(baseline), recipe.preprocessing),
        Engine("student", "pytorch", str(student), recipe.preprocessing),
        Engine("student", "onnxruntime", str(file), recipe.preprocessing),
    ]
    protocol = Protocol(batches=(1,), threads=(1,), rounds=3, min_seconds=0.2)
    return run_bench(engines, [images.fetch(position).content for position in range(8)], protocol)


def _measure_network(name: str, run: Path, gallery: Pixels, queries: ImageSet, figures: BenchReport) -> list[str]:
    described = load_described(str(run))
    query_pixels = load_pixels(queries, described.preprocessing)
    vectors = [
        LabelledVectors(
            embed_pixels(described.network, described.preprocessing, part.images),
            [part.classes[label] for label in part.labels],
        )
        for part in (gallery, query_pixels)
    ]
    parameters = f"{described.network.count_parameters():,}"
    return _format_row(name, vectors[0], vectors[1], parameters, read_run(run).weights, _find_latency(figures, run))


def _measure_deployed(index: Path, queries: Path, file: Path, figures: BenchReport) -> list[str]:
    gallery, looked_for = embed_index_queries(index, open_folder(queries, str(queries)))
    return _format_row("deployed: ONNX + FAISS", gallery, looked_for, "", file, _find_latency(figures, file))


def _format_row(
    name: str, gallery: LabelledVectors, queries: LabelledVectors, parameters: str, file: Path, latency_ms: float
) -> list[str]:
    metrics = evaluate_retrieval(gallery, queries)["cosine"].metrics
    return [
        name,
        f"{100 * metrics['map']:.2f}",
        f"{100 * metrics['recall@1']:.2f}",
        parameters,
        f"{file.stat().st_size / 1e6:.2f}",
        f"{latency_ms:.2f}",
    ]


def _find_latency(figures: BenchReport, model: Path) -> float:
    return next(result.latency_ms.p50 for result in figures.results if result.model == str(model))


def _render(rows: list[list[str]], runs: dict[str, Path], index: Path, queries: Path) -> str:
    labelled = open_folder(queries, str(queries))
    step = max(1, len(labelled.names) // QUERIES_SHOWN)
    chosen = range(0, len(labelled.names), step)[:QUERIES_SHOWN]
    results = search_images(index, [queries / labelled.names[p] for p in chosen], k=HITS_SHOWN)
    sheet = [
        SheetRow(query, hits, labelled.classes[labelled.labels[p]])
        for p, (query, hits) in zip(chosen, results.queries, strict=True)
    ]
    curves = [
        ReportSection(f"Training: {name}", figure=draw_curves(read_metrics(run / "metrics.jsonl")))
        for name, run in runs.items()
    ]
    note = (
        "Gallery: training images; queries: test images; relevant: the same digit. mAP and R@1 by cosine. Latency: "
        "median of one image, one thread, without decoding; teacher and students by PyTorch, deployed by ONNX Runtime."
    )
    return render_report(
        "indistill demo: digits",
        [
            ReportSection("Result", note=note, header=HEADER, rows=rows),
            *curves,
            ReportSection(
                "Search",
                note="Queries, and their hits: right ones green, wrong ones red.",
                html=f"<style>{STYLE}</style>{render_rows(sheet, results.root)}",
            ),
        ],
    )


def prepare_output(out: Path, *, overwrite: bool) -> None:
    """Makes the folder of a demo; an older one in it is removed.

    Raises:
        ExistsError: there is one and it may not be replaced, or the folder holds something else.
    """
    check_no_file_above(out)
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    if found and (found - OUTPUTS or MARKER not in found):
        raise ExistsError(f"{out} exists and is not a demo, or holds other files too; choose another --out")
    if found and not overwrite:
        raise ExistsError(f"{out} exists; choose another --out, or replace it with --overwrite")
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_text(out / MARKER, "made by indistill demo, which may replace this folder\n")
