"""`indistill evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, DownloadOption, JsonOption, SetOption


def evaluate(
    queries: Annotated[str, typer.Option("--queries", "-q", help="Labelled images that are looked for.")],
    index: Annotated[Path | None, typer.Argument(help="An index folder: measures what is deployed.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model spec, a run or an .onnx file: exact search with it.")
    ] = None,
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", help="Labelled images that are searched, with --model.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Weights of a model spec.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Preprocessing of a model spec.")] = None,
    settings: SetOption = None,
    k: Annotated[list[int] | None, typer.Option("-k", min=1, help="K of precision@K and recall@K; repeatable.")] = None,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    json: JsonOption = False,
) -> None:
    """Measure retrieval: mAP and its relatives, of an index as deployed or of any model."""
    from indistill.cli.embedding import embed_index_queries, embed_model_sets
    from indistill.cli.output import print_evaluation
    from indistill.data.sets import open_images, require_labels
    from indistill.errors import InputError
    from indistill.progress import show_progress
    from indistill.retrieval.evaluate import METRICS, evaluate_retrieval
    from indistill.retrieval.metrics import DEFAULT_KS

    if (index is None) == (model is None) or (model is None) != (gallery is None):
        raise InputError("name either an INDEX, or --model with --gallery")
    unused = {"--weights": weights, "--recipe": recipe, "--set": settings}
    given = [f"{option} {value}" for option, value in unused.items() if value]
    if given and (index is not None or str(model).endswith(".onnx")):
        raise InputError(f"an index or an .onnx file is its own model and preprocessing: leave {', '.join(given)} out")
    query_set = open_images(queries, root=data_root, download=download)
    require_labels(query_set, "evaluate")
    if index is not None:
        pair = embed_index_queries(index, query_set)
    else:
        gallery_set = open_images(str(gallery), root=data_root, download=download)
        require_labels(gallery_set, "evaluate")
        pair = embed_model_sets(str(model), gallery_set, query_set, weights=weights, recipe=recipe, items=settings)
    ks = sorted(set(k or DEFAULT_KS))
    with show_progress("ranking", len(METRICS) * len(pair[1].labels), "queries") as advance:
        evaluations = evaluate_retrieval(*pair, ks, advance)
    print_evaluation(evaluations, as_json=json)
