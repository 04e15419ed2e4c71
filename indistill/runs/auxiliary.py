"""An auxiliary teacher of middle size between a teacher and a student that are far apart (InDistill, section 4).

The embedding of the teacher is distilled into the auxiliary, then the auxiliary into the student, stages and all. Both
trainings are one run: the auxiliary's own folder is `auxiliary/` in the run's.
"""

from dataclasses import asdict, replace
from pathlib import Path

from indistill.curriculum.phases import Phase, scale_epochs
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.distillation.distill import build_terms
from indistill.distillation.pairing import Pairing
from indistill.models.loading import Network
from indistill.models.weights import load_weights
from indistill.parallel.processes import copy_from_first, is_first, on_first
from indistill.run_folder import AUXILIARY_FOLDER, WEIGHTS_NAMES, is_run
from indistill.runs.compress import (
    align_channels,
    build_distillation,
    check_compress,
    count_stages,
    describe_compression,
    distil,
    plan_curriculum,
    run_compress,
)
from indistill.runs.config import Recipe
from indistill.runs.environment import describe_environment
from indistill.runs.plan import print_pairing
from indistill.runs.resume import hold_run, open_run
from indistill.runs.running import make_example
from indistill.runs.settings import RunSettings, describe_start
from indistill.talk import say
from indistill.training.checkpoint import get_random_states, set_random_states
from indistill.training.validation import describe_held_out

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


def plan_hop(recipe: Recipe, epochs: int) -> Recipe:
    """Returns the recipe of the training from the teacher to the auxiliary: the embedding's loss alone."""
    curriculum = {"kind": "none", "epochs": epochs, "final_epochs": 0}
    loss = {"name": "pkt" if recipe.loss.name == "pkth" else recipe.loss.name}  # there are no stages on this way
    return recipe.model_copy(
        update={
            "curriculum": recipe.curriculum.model_copy(update=curriculum),
            "loss": recipe.loss.model_copy(update=loss),
        }
    )


def check_hop(
    teacher: Network, auxiliary: Network, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings
) -> None:
    """Finds out whether the auxiliary can be trained; see `check_compress`."""
    check_compress(Pairing(teacher, auxiliary, ()), pixels, plan_hop(recipe, 1), settings)


def run_chain(
    teacher: Network, pairing: Pairing, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings
) -> Path:
    """Distils a teacher into an auxiliary and that into a student, and returns the student's run folder.

    Args:
        teacher: of the auxiliary.
        pairing: the auxiliary as teacher, the student, and their stages, whose channels are chosen once more when the
            auxiliary is trained.
        pixels: the images; labels are used by a supervised loss alone.
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
    check_hop(teacher, auxiliary, pixels, recipe, settings)
    distillation = build_distillation(pairing, recipe, settings)
    terms = build_terms(distillation, make_example(recipe, settings), recipe.loss.options, classes=len(pixels.classes))
    rows = tuple(replace(row, energy=None) for row in pairing.alignments)  # measured before the auxiliary was trained
    config = describe_compression(replace(pairing, teacher=teacher, alignments=rows), recipe, settings, phases)
    config |= describe_held_out(pixels, recipe.validation.share, settings.seed)
    config["auxiliary"] = auxiliary.describe() | {
        "start": describe_start(auxiliary),
        "parameters": auxiliary.count_parameters(),
        "schedule": [asdict(hop)],
    }
    with hold_run(settings):
        if not on_first(lambda: open_run(settings, config, describe_environment(pixels, settings.seed))):
            return settings.out
        random = get_random_states(settings.device)
        say(f"the auxiliary, from the teacher, in {folder}")
        run_compress(
            Pairing(teacher, auxiliary, ()),
            pixels,
            plan_hop(recipe, hop.epochs),
            replace(settings, out=folder, epochs=None, overwrite=False, resume=on_first(lambda: is_run(folder))),
        )
        if is_first():
            load_weights(auxiliary.module, folder / WEIGHTS_NAMES["compress"])
        copy_from_first(auxiliary.module)
        say("the student, from the auxiliary")
        pairing = align_channels(pairing, pixels, recipe, settings)
        print_pairing(pairing)
        distillation = replace(distillation, pairs=pairing.stages)
        set_random_states(random, settings.device)  # the student's training draws the same numbers in any process
        distil(distillation, terms, phases, pixels, recipe, settings, config)
    return settings.out
