"""`compress`: a teacher into a student by InDistill, as one run."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from indistill.curriculum.phases import Phase, arrange_warm_up, build_curriculum, build_warm_up, scale_epochs
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.distillation.distill import Distillation, build_step, build_terms, check_distillation
from indistill.distillation.joint import JointStep
from indistill.distillation.pairing import Pairing, choose_channels, draw_images
from indistill.distillation.teacher_cache import store_teacher
from indistill.distillation.terms import Term
from indistill.parallel.processes import go_first, on_first, on_one_machine
from indistill.run_folder import CHECKPOINT_FOLDER
from indistill.runs.config import Recipe
from indistill.runs.environment import describe_environment
from indistill.runs.plan import print_pairing
from indistill.runs.resume import hold_run, open_run
from indistill.runs.running import make_batches, make_example, train_run
from indistill.runs.settings import RunSettings, describe_run
from indistill.training.loop import Step
from indistill.training.split import has_classes
from indistill.training.validation import Validation, build_label_figure, build_neighbour_figure, describe_held_out


@dataclass(frozen=True)
class Preparation:
    """What `run_compress` begins with, checked; nothing is written yet.

    Attributes:
        distillation: what is distilled into what.
        terms: of the embedding's loss.
    """

    distillation: Distillation
    terms: tuple[Term, ...]


def plan_curriculum(recipe: Recipe, stages: int, epochs: int | None) -> tuple[Phase, ...]:
    """Returns the schedule of a recipe, scaled to `epochs` in total where they are given."""
    curriculum = recipe.curriculum
    paper = build_warm_up(stages, curriculum.first, recipe.optimiser.lr)
    phases = build_curriculum(
        arrange_warm_up(paper, curriculum.kind, curriculum.tolerance),
        curriculum.epochs,
        recipe.optimiser.lr,
        (curriculum.final_epochs, recipe.optimiser.final_lr),
    )
    return phases if epochs is None else scale_epochs(phases, epochs)


def align_channels(pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings) -> Pairing:
    """Returns the pairing with the teacher's channels chosen, where the warm-up prunes; else as it is.

    Raises:
        StageError: see `choose_channels`.
    """
    if not recipe.prunes:
        return pairing
    criterion = recipe.targets.criterion
    pairing.teacher.module.to(settings.device)
    images = draw_images(pixels, recipe.preprocessing, criterion).to(settings.device)
    return choose_channels(pairing, images, criterion, seed=settings.seed)


def prepare_compress(
    pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings
) -> Preparation:
    """Returns what `run_compress` begins with, after a check that all of it can be trained; nothing is written.

    Raises:
        DataError: there are too few images.
        ModelError: the loss needs logits, and a network does not give them or not as many.
        StageError: a pair cannot be trained.
    """
    make_batches(pixels, recipe, settings)
    distillation = build_distillation(pairing, recipe, settings)
    example = make_example(recipe, settings)
    terms = build_terms(distillation, example, recipe.loss.options, classes=len(pixels.classes))
    return Preparation(distillation, terms)


def check_compress(pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings) -> None:
    """Finds out whether `prepare_compress` would work; random numbers are as before.

    Raises:
        DataError: see `prepare_compress`, as for the others.
        ModelError: as well.
        StageError: as well.
    """
    with torch.random.fork_rng([settings.device] if settings.device.type == "cuda" else []):
        prepare_compress(pairing, pixels, recipe, settings)


def run_compress(
    pairing: Pairing,
    pixels: Pixels | StreamedPixels,
    recipe: Recipe,
    settings: RunSettings,
    prepared: Preparation | None = None,
) -> Path:
    """Distils the teacher into the student and returns the run folder. Labels are used by a supervised loss alone.

    Args:
        pairing: teacher, student and their stages.
        pixels: the images.
        recipe: of the training.
        settings: of the run.
        prepared: what `prepare_compress` returned for these; default what it returns now.

    Raises:
        DataError: there are too few images.
        ExistsError: the folder exists.
        InputError: there is no such run to resume.
        ModelError: the loss needs logits, and a network does not give them or not as many.
        StageError: a pair cannot be trained.
        TrainingError: the loss is not finite.
    """
    phases = plan_curriculum(recipe, count_stages(pairing, recipe), settings.epochs)
    prepared = prepared or prepare_compress(pairing, pixels, recipe, settings)
    config = describe_compression(pairing, recipe, settings, phases)
    config |= describe_held_out(pixels, recipe.validation.share, settings.seed)
    with hold_run(settings):
        if on_first(lambda: open_run(settings, config, describe_environment(pixels, settings.seed))):
            print_pairing(pairing)
            distil(prepared.distillation, prepared.terms, phases, pixels, recipe, settings, config)
    return settings.out


def count_stages(pairing: Pairing, recipe: Recipe) -> int:
    """Returns how many stages the warm-up trains: none where pairs are there for the loss alone."""
    return len(pairing.stages) if recipe.curriculum.has_stages else 0


def build_distillation(pairing: Pairing, recipe: Recipe, settings: RunSettings) -> Distillation:
    """Returns what is distilled into what, on its device, after a check that all of it can be trained.

    Raises:
        ModelError: a network cannot take the images.
        StageError: a pair cannot be trained.
    """
    teacher, student = (
        network.module.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in (pairing.teacher, pairing.student)
    )
    distillation = Distillation(
        teacher,
        student,
        pairing.teacher.embedding,
        pairing.student.embedding,
        pairing.stages,
        recipe.targets.alignment,
    )
    batch_statistics, warm_up = recipe.targets.statistics == "batch", recipe.curriculum.has_stages
    check_distillation(distillation, make_example(recipe, settings), batch_statistics=batch_statistics, warm_up=warm_up)
    return distillation


def describe_compression(
    pairing: Pairing, recipe: Recipe, settings: RunSettings, phases: tuple[Phase, ...]
) -> dict[str, Any]:
    """Returns the contents of config.yaml."""
    return describe_run("compress", pairing.student, recipe, settings, phases) | {
        "teacher": pairing.teacher.describe_source(),
        "pairs": [f"{pair.teacher}:{pair.student}" for pair in pairing.stages],
        "alignment": pairing.describe(),
    }


def distil(
    distillation: Distillation,
    terms: tuple[Term, ...],
    phases: tuple[Phase, ...],
    pixels: Pixels | StreamedPixels,
    recipe: Recipe,
    settings: RunSettings,
    config: dict[str, Any],
) -> None:
    """Trains the student in an open run folder, from its checkpoint if there is one, and writes weights and report."""
    example, batch_statistics = make_example(recipe, settings), recipe.targets.statistics == "batch"
    batches, split = make_batches(pixels, recipe, settings)
    if recipe.stores_teacher and on_one_machine():
        taught = next(term for term in terms if term.teacher is not None)
        folder = settings.out / CHECKPOINT_FOLDER
        with go_first():
            stored = store_teacher(distillation.teacher, taught, batches, folder, pixels.fingerprint)
        distillation = replace(distillation, stored=stored)
    validation = None
    if split is not None:
        if has_classes(pixels.classes):
            figure = build_label_figure(pixels, split, settings.retrieval)
        else:
            teacher, node = distillation.teacher, distillation.teacher_embedding
            figure = build_neighbour_figure(split, batches, teacher, node)
        options = recipe.validation.options
        validation = Validation(distillation.student, distillation.student_embedding, figure, batches, options)

    def build(phase: Phase) -> Step:
        if phase.objective == "joint":
            stages = [replace(phase, objective="stage", stage=i + 1) for i in range(len(distillation.pairs))]
            return JointStep(
                [build_step(distillation, terms, s, example, batch_statistics=batch_statistics) for s in stages]
            )
        before = sum(p.epochs for p in phases[: phases.index(phase)] if p.objective == phase.objective)
        return build_step(distillation, terms, phase, example, batch_statistics=batch_statistics, first_epoch=before)

    optimisation, ahead = recipe.optimisation, recipe.targets.ahead
    student = distillation.student
    train_run(
        student, phases, batches, build, settings, config, options=optimisation, ahead=ahead, validation=validation
    )
