"""What `evaluate` measures: an index or a model, and others beside it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indistill.cli.embedding import ModelChoice, Subject, embed_by_index, embed_by_model
from indistill.data.sets import ImageSet, require_labels
from indistill.data.specs import open_images
from indistill.errors import InputError
from indistill.progress import show_progress
from indistill.retrieval.evaluation.deployed import DEFAULT_DEPTH, DeployedFigures, Deployment, measure_deployed
from indistill.retrieval.evaluation.evaluate import (
    METRICS,
    WITHOUT_CLASSES,
    Protocol,
    count_empty_as_zero,
    list_empty,
    make_task,
)
from indistill.retrieval.evaluation.ground_truth import JUDGED_KS, Judgement, locate_judgements, read_ground_truth
from indistill.retrieval.evaluation.judged import (
    make_judged_task,
    measure_judged_deployed,
    measure_judged_exactly,
    settle_empty,
)
from indistill.retrieval.evaluation.metrics import DEFAULT_KS, Metric, QueryFigures, Task, measure_queries
from indistill.retrieval.evaluation.ranks import Ranks
from indistill.retrieval.opening import Location, locate_index
from indistill.retrieval.store.generations import CURRENT, SHARDS


@dataclass(frozen=True)
class Evaluated:
    """What the options name.

    Attributes:
        index: an index folder, or a collection of Milvus; None where a model is named.
        choice: a model; None where an index is named.
        also: index folders and models to stand beside the first.
        gallery: the data spec that models search.
        queries: a data spec; None where the gallery's own images are the queries.
        data_root: where the data sets that have a name lie.
        download: whether they may be fetched.
    """

    index: Location | None
    choice: ModelChoice | None
    also: Sequence[str]
    gallery: str | None
    queries: str | None
    data_root: Path | None
    download: bool


@dataclass(frozen=True)
class Conduct:
    """How it is measured.

    Attributes:
        protocol: which queries, and what is ignored.
        ks: the K of precision@K and recall@K; None for the usual ones.
        depth: how many images an index is asked for; None for 1,000, or all where there are fewer.
        truth: a file of ground truth, which stands in for classes.
    """

    protocol: Protocol
    ks: list[int] | None
    depth: int | None
    truth: Path | None


@dataclass(frozen=True)
class Measurement:
    """What was measured of an index or model.

    Attributes:
        subject: the index or model.
        task: what was looked for in what.
        exact: the figures of the whole ranking by each metric; by cosine alone with ground truth.
        deployed: the figures of what an index returned; None for a model.
        depth: how many images that was.
        empty: the queries without a relevant image.
    """

    subject: Subject
    task: Task
    exact: dict[Metric, QueryFigures]
    deployed: DeployedFigures | None
    depth: int
    empty: Ranks


def check_options(evaluated: Evaluated, conduct: Conduct, of_specs: Mapping[str, object], *, per_class: bool) -> None:
    """Raises InputError where options do not go together.

    Args:
        evaluated: what is named.
        conduct: how it is measured.
        of_specs: the options that only model specs and runs have, with their values.
        per_class: whether the classes are wanted one by one.
    """
    protocol, choice = conduct.protocol, evaluated.choice
    models = [name for name in evaluated.also if not is_index(name)]
    if (evaluated.index is None) == (choice is None) or (choice is not None and evaluated.gallery is None):
        raise InputError("name either an INDEX, or --model with --gallery")
    if choice is None and evaluated.gallery is not None and not models:
        raise InputError(
            "name either an INDEX, or --model with --gallery; an index needs it for models of --also alone"
        )
    given = [f"{option} {value}" for option, value in of_specs.items() if value]
    if given and (choice is None or choice.model.endswith(".onnx")):
        raise InputError(f"an index or an .onnx file is its own model and preprocessing: leave {', '.join(given)} out")
    if models and evaluated.gallery is None:
        raise InputError(f"--also {models[0]}: a model needs images to search: name them with --gallery")
    if (evaluated.queries is None) != protocol.leave_one_out:
        raise InputError(f"name either --queries, or --leave-one-out for the gallery's own images; {WITHOUT_CLASSES}")
    if conduct.depth is not None and evaluated.index is None and len(models) == len(evaluated.also):
        raise InputError(f"--depth {conduct.depth} is how many images an index returns: name an INDEX")
    if conduct.truth is not None and (protocol.leave_one_out or protocol.junk is not None or per_class):
        raise InputError(
            "--ground-truth stands in for classes: leave --leave-one-out, --junk and --per-class out, and name the "
            "query images with --queries"
        )


def run_evaluation(evaluated: Evaluated, conduct: Conduct, opened: ExitStack) -> list[Measurement]:
    """Returns the measurements of the index or model, and of each that stands beside it.

    Args:
        evaluated: what is named.
        conduct: how it is measured.
        opened: closes the indexes, which the page searches once more.

    Raises:
        InputError: what is named cannot be used.
    """
    truth = None if conduct.truth is None else read_ground_truth(conduct.truth)
    sets = [
        None if spec is None else open_images(spec, root=evaluated.data_root, download=evaluated.download)
        for spec in (evaluated.gallery, evaluated.queries)
    ]
    if truth is None:
        for images in filter(None, sets):
            require_labels(images, "evaluate without --ground-truth")
    named = truth is not None or (conduct.protocol.leave_one_out and bool(evaluated.also))
    first = evaluated.index or evaluated.choice
    assert first is not None  # checked before
    measurements = []
    for chosen in (first, *(_choose(name) for name in evaluated.also)):
        subject = _embed(chosen, *sets, named=named)
        if subject.index is not None:
            opened.callback(subject.index.close)
        if truth is None:
            measurements.append(_measure_by_class(subject, conduct))
        else:
            judgements = locate_judgements(truth, subject.queries.names, subject.gallery.names)
            measurements.append(_measure_by_judgement(subject, conduct, judgements))
    return measurements


def is_index(name: str) -> bool:
    """Returns whether a name is that of an index folder, a folder of shards, or a collection of Milvus."""
    location = locate_index(name)
    return not isinstance(location, Path) or any((location / file).is_file() for file in (CURRENT, SHARDS))


def are_paired(first: Measurement, second: Measurement) -> bool:
    """Returns whether two measurements are of the same queries, in the same order."""
    parts = [
        [part.subject.queries.names[i] for i in part.exact["cosine"].queries.tolist()]
        for part in (first, second)
        if len(part.subject.queries.names)
    ]
    return len(parts) == 2 and parts[0] == parts[1]


def _choose(name: str) -> Location | ModelChoice:
    return locate_index(name) if is_index(name) else ModelChoice(name)


def _embed(
    chosen: Location | ModelChoice, gallery: ImageSet | None, queries: ImageSet | None, *, named: bool
) -> Subject:
    if not isinstance(chosen, ModelChoice):
        return embed_by_index(chosen, queries, named=named)
    assert gallery is not None  # checked before
    return embed_by_model(chosen, gallery, queries)


def _measure_by_class(subject: Subject, conduct: Conduct) -> Measurement:
    ks = sorted(set(conduct.ks or DEFAULT_KS))
    task = make_task(subject.gallery, subject.queries, conduct.protocol)
    deployment = make_deployment(subject, conduct.depth)
    depth = len(task.gallery) if deployment is None else deployment.depth
    total = (len(METRICS) + (deployment is not None)) * int(np.count_nonzero(task.count_relevant()))
    with show_progress("ranking", total, "queries") as advance:
        exact = {metric: measure_queries(task, metric, ks, depth, advance) for metric in METRICS}
        deployed = None if deployment is None else measure_deployed(task, deployment, ks, advance)
    empty = list_empty(task)
    if conduct.protocol.empty == "zero":
        exact = {metric: count_empty_as_zero(figures, empty) for metric, figures in exact.items()}
        if deployed is not None:
            figures = count_empty_as_zero(deployed.figures, empty)
            deployed = DeployedFigures(figures, deployed.ks, deployed.search_recall)
    return Measurement(subject, task, exact, deployed, depth, empty)


def _measure_by_judgement(subject: Subject, conduct: Conduct, judgements: Sequence[Judgement | None]) -> Measurement:
    ks = sorted(set(conduct.ks or JUDGED_KS))
    task = make_judged_task(subject.gallery.vectors, subject.queries.vectors)
    deployment = make_deployment(subject, conduct.depth)
    depth = len(task.gallery) if deployment is None else deployment.depth

    def settle(figures: QueryFigures) -> QueryFigures:
        return settle_empty(figures, conduct.protocol.empty, subject.queries.names)

    exact: dict[Metric, QueryFigures] = {"cosine": settle(measure_judged_exactly(task, judgements, ks))}
    deployed = None
    if deployment is not None:
        found = measure_judged_deployed(task, judgements, ks, deployment)
        deployed = DeployedFigures(settle(found.figures), found.ks, found.search_recall)
    empty = np.array([i for i, judgement in enumerate(judgements) if judgement is None], dtype=np.int64)
    return Measurement(subject, task, exact, deployed, depth, empty)


def make_deployment(subject: Subject, depth: int | None) -> Deployment | None:
    """Returns how a subject's index is searched; None for a model by itself."""
    index = subject.index
    if index is None:
        return None
    ids = np.array(subject.ids, dtype=np.int64)
    return Deployment(index.search_vectors, ids, min(len(ids), depth or DEFAULT_DEPTH))
