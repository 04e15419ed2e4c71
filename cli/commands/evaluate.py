"""`indistill evaluate`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.cli.options import DataRootOption, DownloadOption, JsonOption, OverwriteOption, SetOption


def evaluate(
    index: Annotated[
        str | None, typer.Argument(help="An index folder, or URI#NAME of Milvus: measures what is deployed.")
    ] = None,
    queries: Annotated[str | None, typer.Option("--queries", "-q", help="Labelled images that are looked for.")] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Look for each image of the gallery among all the others.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model spec, a run or an .onnx file: exact search with it.")
    ] = None,
    gallery: Annotated[str | None, typer.Option("--gallery", "-g", help="Labelled images that models search.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", metavar="MODEL", help="Another index or model, for a table side by side; repeatable."),
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Weights of a model spec.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Preprocessing of a model spec.")] = None,
    settings: SetOption = None,
    k: Annotated[list[int] | None, typer.Option("-k", min=1, help="K of precision@K and recall@K; repeatable.")] = None,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=1, help="Images that the index returns for a query; default 1000, or all."),
    ] = None,
    junk: Annotated[
        str | None, typer.Option("--junk", metavar="LABEL", help="A class that is taken out of every ranking.")
    ] = None,
    empty: Annotated[
        Literal["skip", "zero", "error"], typer.Option("--empty", help="Queries without a match in the gallery.")
    ] = "skip",
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            "--ground-truth",
            metavar="FILE",
            help="JSON of easy, hard and junk gallery images for each query image, instead of classes; see "
            "docs/metrics.md.",
        ),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="A table of the classes too.")] = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the best and the worst queries.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Measure retrieval: mAP and its relatives, of an index as deployed or of any model."""
    from indistill.cli.embedding import ModelChoice
    from indistill.cli.evaluation import Conduct, Evaluated, check_options, run_evaluation
    from indistill.cli.evaluation_page import check_page, write_page
    from indistill.cli.evaluation_tables import print_measurements
    from indistill.retrieval.evaluation.evaluate import Protocol
    from indistill.retrieval.opening import locate_index

    choice = None if model is None else ModelChoice(model, weights, recipe, settings)
    location = None if index is None else locate_index(index)
    evaluated = Evaluated(location, choice, also or [], gallery, queries, data_root, download)
    conduct = Conduct(Protocol(leave_one_out, junk, empty), k, depth, ground_truth)
    check_options(
        evaluated, conduct, {"--weights": weights, "--recipe": recipe, "--set": settings}, per_class=per_class
    )
    check_page(html, overwrite=overwrite)
    with ExitStack() as opened:
        measurements = run_evaluation(evaluated, conduct, opened)
        if html is not None:
            write_page(measurements, conduct, html, per_class=per_class)
        print_measurements(measurements, conduct, per_class=per_class, as_json=json)
