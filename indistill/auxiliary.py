"""An auxiliary teacher of middle size between a teacher and a student that are far apart (InDistill, section 4).

The embedding of the teacher is distilled into the auxiliary, then the auxiliary into the student, stages and all. Both
trainings are one run: the auxiliary's own folder is `auxiliary/` in the run's.
"""

from dataclasses import asdict, replace
from pathlib import Path

from indistill.checkpoint import get_random_states, set_random_states
from indistill.compress import (
    align_channels,
    build_distillation,
    count_stages,
    describe_compression,
    distil,
    make_example,
    plan_curriculum,
    run_compress,
)
from indistill.config import Recipe
from indistill.curriculum import Phase, scale_epochs
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.distill import build_terms
from indistill.models.loading import Network
from indistill.models.weights import load_weights
from indistill.pairing import Pairing
from indistill.plan import print_pairing
from indistill.resume import open_run
from indistill.runs import AUXILIARY_FOLDER, WEIGHTS_NAMES, describe_environment, is_run
from indistill.settings import RunSettings, describe_start

FAR_APART = (
    100  # times the student's parameters: the paper's pair is 742 times apart, its auxiliary and student 4 times
)


def choose_auxiliary(teacher: Network, student: Network) -> str | None:
    """Returns the model spec of an auxiliary for a teacher that has more than `FAR_APART` times the student's
    parameters, or None for one that has not: the paper's for the paper's pair, else the teacher narrowed so that its
    parameters are near the geometric mean of both (they fall with the square of the width).
    """
    ratio = teacher.count_parameters() / student.count_parameters()
    if ratio <= FAR_APART:
        return None
    if teacher.spec.startswith("paper:") and student.spec.startswith("paper:cnn-s"):
        return "paper:cnn-a"
    return f"width:{ratio**-0.25:.2f}"


def plan_chain(recipe: Recipe, stages: int, epochs: int | None) -> tuple[Phase, tuple[Phase, ...]]:
    """Returns the phase from the teacher to the auxiliary, and the schedule from there to the student; `epochs` is the
    total of both.
    """
    hop = Phase("auxiliary", "embedding", 0, recipe.curriculum.auxiliary_epochs, recipe.optimiser.lr)
    phases = (hop, *plan_curriculum(recipe, stages, None))
    if epochs is not None:
        phases = scale_epochs(phases, epochs)
    return phases[0], phases[1:]


def run_chain(
    teacher: Network, pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings
) -> Path:
    """Distils a teacher into an auxiliary and that into a student, and returns the student's run folder.

    Args:
        teacher: of the auxiliary.
        pairing: the auxiliary as teacher, the student, and their stages.
        pixels: the images; labels are not used.
        recipe: of both trainings; the auxiliary has its `auxiliary_epochs` of the embedding loss alone.
        settings: of the run.

    Raises:
        ExistsError: the folder exists.
        InputError: there is no such run to resume.
        StageError: a pair cannot be trained.
        TrainingError: the loss is not finite.
    """
    auxiliary, folder = pairing.teacher, settings.out / AUXILIARY_FOLDER
    hop, phases = plan_chain(recipe, count_stages(pairing, recipe), settings.epochs)
    curriculum = {"kind": "none", "epochs": hop.epochs, "final_epochs": 0}
    loss = {"name": "pkt" if recipe.loss.name == "pkth" else recipe.loss.name}  # there are no stages on this way
    hop_recipe = recipe.model_copy(
        update={
            "curriculum": recipe.curriculum.model_copy(update=curriculum),
            "loss": recipe.loss.model_copy(update=loss),
        }
    )
    hop_pairing = Pairing(teacher, auxiliary, ())
    build_distillation(hop_pairing, hop_recipe, settings)
    distillation = build_distillation(pairing, recipe, settings)
    terms = build_terms(distillation, make_example(recipe, settings), recipe.loss.options, classes=len(pixels.classes))
    config = describe_compression(replace(pairing, teacher=teacher), recipe, settings, phases)
    config["auxiliary"] = auxiliary.describe() | {
        "start": describe_start(auxiliary),
        "parameters": auxiliary.count_parameters(),
        "schedule": [asdict(hop)],
    }
    if not open_run(settings, config, describe_environment(pixels, settings.seed)):
        return settings.out
    random = get_random_states(settings.device)
    run_compress(
        hop_pairing,
        pixels,
        hop_recipe,
        replace(settings, out=folder, epochs=None, overwrite=False, resume=is_run(folder)),
    )
    load_weights(auxiliary.module, folder / WEIGHTS_NAMES["compress"])
    pairing = align_channels(pairing, pixels, recipe, settings)
    print_pairing(pairing)
    distillation = replace(distillation, pairs=pairing.stages)
    set_random_states(random, settings.device)  # the student's training draws the same numbers in any process
    distil(distillation, terms, phases, pixels, recipe, settings, config)
    return settings.out
