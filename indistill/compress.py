"""`compress`: a teacher into a student by InDistill, as one run."""

from pathlib import Path

import torch

from indistill.config import Recipe
from indistill.curriculum import Phase, build_curriculum, build_warm_up, scale_epochs
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.distill import Distillation, build_step, build_terms, check_distillation
from indistill.models.weights import save_weights
from indistill.monitor import TrainingMonitor
from indistill.pairing import Pairing
from indistill.report import write_training_report
from indistill.runs import WEIGHTS_NAMES, create_run, describe_environment
from indistill.settings import RunSettings, describe_run
from indistill.training import Step, train


def plan_curriculum(recipe: Recipe, stages: int, epochs: int | None) -> tuple[Phase, ...]:
    """Returns the schedule of a recipe, scaled to `epochs` in total where they are given."""
    phases = build_curriculum(
        build_warm_up(stages, recipe.curriculum.first, recipe.optimiser.lr),
        recipe.curriculum.epochs,
        recipe.optimiser.lr,
        (recipe.curriculum.final_epochs, recipe.optimiser.final_lr),
    )
    return phases if epochs is None else scale_epochs(phases, epochs)


def check_compress(pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, device: torch.device) -> None:
    """Finds out whether `run_compress` can begin; nothing is written, and random numbers are as before.

    Raises:
        DataError: there are too few images.
        ModelError: the loss needs logits, and a network does not give them or not as many.
        StageError: a pair cannot be trained.
    """
    teacher, student = pairing.teacher, pairing.student
    distillation = Distillation(
        teacher.module.to(device),
        student.module.to(device),
        teacher.embedding,
        student.embedding,
        pairing.stages,
        recipe.targets.alignment,
    )
    example = torch.zeros(2, 3, recipe.data.image_size, recipe.data.image_size, device=device)
    batch_statistics, warm_up = recipe.targets.statistics == "batch", recipe.curriculum.warm_up
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        Batches(pixels, recipe.preprocessing, **recipe.batching, seed=0, device=device)
        check_distillation(distillation, example, batch_statistics=batch_statistics, warm_up=warm_up)
        build_terms(distillation, example, recipe.loss.options, classes=len(pixels.classes))


def run_compress(pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings) -> Path:
    """Distils the teacher into the student and returns the run folder. Labels are used by a supervised loss alone.

    Raises:
        ExistsError: the folder exists.
        ModelError: the loss needs logits, and a network does not give them or not as many.
        StageError: a pair cannot be trained.
        TrainingError: the loss is not finite.
    """
    device, batch_statistics = settings.device, recipe.targets.statistics == "batch"
    warm_up = recipe.curriculum.warm_up
    phases = plan_curriculum(recipe, len(pairing.stages) if warm_up else 0, settings.epochs)
    batches = Batches(pixels, recipe.preprocessing, **recipe.batching, seed=settings.seed, device=device)
    student = pairing.student.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    distillation = Distillation(
        pairing.teacher.module.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        student,
        pairing.teacher.embedding,
        pairing.student.embedding,
        pairing.stages,
        recipe.targets.alignment,
    )
    example = torch.zeros(2, 3, recipe.data.image_size, recipe.data.image_size, device=device)
    check_distillation(distillation, example, batch_statistics=batch_statistics, warm_up=warm_up)
    terms = build_terms(distillation, example, recipe.loss.options, classes=len(pixels.classes))
    config = describe_run("compress", pairing.student, recipe, settings, phases)
    config["teacher"] = pairing.teacher.describe_source()
    config["pairs"] = [f"{pair.teacher}:{pair.student}" for pair in distillation.pairs]
    config["alignment"] = pairing.describe()
    create_run(settings.out, config, describe_environment(pixels, settings.seed), overwrite=settings.overwrite)

    def build(phase: Phase) -> Step:
        before = sum(p.epochs for p in phases[: phases.index(phase)] if p.objective == phase.objective)
        return build_step(distillation, terms, phase, example, batch_statistics=batch_statistics, first_epoch=before)

    with TrainingMonitor(phases, len(batches), settings.out / "metrics.jsonl") as monitor:
        train(student, phases, batches, build, monitor, **recipe.adam, ahead=recipe.targets.ahead)
    save_weights(student, settings.out / WEIGHTS_NAMES["compress"])
    write_training_report(settings.out / "report.html", config, monitor.records)
    return settings.out
