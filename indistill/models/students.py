"""The student of `compress`: a network of its own, or the teacher made narrower."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from indistill.errors import InputError, ModelError
from indistill.models.fitting import Reference, Target, Trial, find_width
from indistill.models.loading import Network, load_network
from indistill.models.resizing import Narrowing, describe_shapes, reinitialise, resize
from indistill.models.specs import Argument, build_network, parse_model_spec, strip_weights
from indistill.models.weights import load_weights
from indistill.stages.graph import check_image_size

PREFIX = "width:"


@dataclass(frozen=True)
class StudentChoice:
    """What the student is to be.

    Attributes:
        spec: a model spec, `width:SHARE` or `width:auto`.
        weights: a file that its weights start from; None for those of the spec, or of the teacher.
        target: what `width:auto` must meet, and nothing else has.
        from_scratch: whether the narrow teacher's weights are drawn anew.
        seed: of weights that are drawn.
    """

    spec: str
    weights: Path | None = None
    target: Target | None = None
    from_scratch: bool = False
    seed: int = 0


def make_student(
    choice: StudentChoice,
    teacher: Network,
    arguments: Mapping[str, Argument],
    image_size: int,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Network:
    """Returns the student; the teacher is not changed.

    Args:
        choice: what it is to be.
        teacher: what is narrowed, on the CPU.
        arguments: passed to the factory of a student of its own.
        image_size: side of the images in pixels.
        on_trial: called with each width that `width:auto` tries.

    Raises:
        InputError: options that do not belong together, or a target that no width meets.
        ModelError: the spec or the weights cannot be used, or the teacher cannot be narrowed.
    """
    width = parse_width(choice.spec)
    check_choice(choice, width)
    if choice.target is not None:
        return make_student(settle_width(choice, teacher, image_size, on_trial), teacher, arguments, image_size)
    torch.manual_seed(choice.seed)
    if width is None:
        return load_network(choice.spec, weights=choice.weights, arguments=arguments, role="student")
    check_image_size(teacher.module, teacher.embedding, image_size, "teacher")
    student = narrow_network(teacher, width, image_size)
    if choice.from_scratch:
        student = _draw_weights(student, choice.seed)
    if choice.weights is not None:
        load_weights(student.module, choice.weights)
    return replace(student, source=f"{PREFIX}{width:g}", weights=choice.weights)


def settle_width(
    choice: StudentChoice, teacher: Network, image_size: int, on_trial: Callable[[Trial], None]
) -> StudentChoice:
    """Returns the choice with the width that `width:auto` finds in place of its target; see `make_student`."""
    assert choice.target is not None
    check_image_size(teacher.module, teacher.embedding, image_size, "teacher")
    torch.manual_seed(choice.seed)
    width = _find_width(choice.target, teacher, image_size, on_trial)
    return replace(choice, spec=f"{PREFIX}{width!r}", target=None)


def parse_width(spec: str) -> float | None:
    """Returns the width of a spec `width:0.5`, 0 of `width:auto`, and None of a model spec.

    Raises:
        ModelError: the width is no number between 0 and 1.
    """
    if not spec.startswith(PREFIX):
        return None
    text = spec.removeprefix(PREFIX)
    if text == "auto":
        return 0.0
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < 1:
        raise ModelError(f"student '{spec}': a width between 0 and 1 is needed, as width:0.5, or width:auto")
    return width


def check_choice(choice: StudentChoice, width: float | None) -> None:
    """Raises InputError if the options do not belong together."""
    if width is None and choice.from_scratch:
        raise InputError(f"--from-scratch is for width: students, not for '{choice.spec}', which has its own weights")
    if choice.from_scratch and choice.weights is not None:
        raise InputError("--from-scratch and --student-weights exclude each other")
    if (width == 0) == (choice.target is None):
        raise InputError(
            f"--student '{choice.spec}': --target-latency or --target-size go with width:auto, and it with one of them"
        )


def narrow_network(teacher: Network, width: float, image_size: int) -> Network:
    """Returns the teacher made narrower, with its weights, its embedding and its stages, by the same names.

    Raises:
        ModelError: see `indistill.models.narrowing.narrow`.
    """
    from indistill.models.narrowing import narrow  # here, as Torch-Pruning takes long to import

    narrowed = narrow(teacher.module, width, image_size).module
    tensors, sizes = describe_shapes(teacher.module, narrowed)
    if teacher.narrowing is not None:  # what is written down is the difference from what the factory builds
        tensors = {**teacher.narrowing.tensors, **tensors}
        sizes = {**teacher.narrowing.sizes, **sizes}
    narrowing = Narrowing(width, False, tensors, sizes)
    return replace(teacher, module=narrowed, weights=None, arguments=dict(teacher.arguments), narrowing=narrowing)


def _find_width(target: Target, teacher: Network, image_size: int, on_trial: Callable[[Trial], None]) -> float:
    reference = Reference(teacher.module, teacher.embedding, image_size)
    return find_width(reference, target, lambda width: narrow_network(teacher, width, image_size).module, on_trial)


def _draw_weights(student: Network, seed: int) -> Network:
    """Returns the student with random weights: as its factory draws them where a layer cannot do so by itself."""
    assert student.narrowing is not None
    narrowing = replace(student.narrowing, from_scratch=True)
    torch.manual_seed(seed)
    module = build_network(parse_model_spec(strip_weights(student.spec)), student.arguments)
    resize(module, narrowing)
    reinitialise(module)
    return replace(student, module=module, narrowing=narrowing)
