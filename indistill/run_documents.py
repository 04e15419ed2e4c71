"""What a run's own files must hold for those that read them, whoever wrote them. Needs no torch.

What is not named here is passed over, so that later versions may write more.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Part(BaseModel):
    """A mapping, of whose keys some are known. Values are not converted."""

    model_config = ConfigDict(strict=True, extra="ignore")


class NetworkPart(Part):
    """How a network is built again."""

    spec: str
    arguments: dict[str, str | int | float | bool | None]
    embedding: str
    narrowing: dict[str, Any] | None = None


class TeacherPart(NetworkPart):
    """Where a teacher came from."""

    source: str
    parameters: Count
    weights: str | None = None
    weights_sha256: str | None = None


class AuxiliaryPart(Part):
    """An auxiliary between teacher and student."""

    spec: str
    parameters: Count


class PhasePart(Part):
    """A phase of the schedule."""

    name: str
    epochs: Count
    lr: FiniteFloat


class HeldOutPart(Part):
    """The images that were held out."""

    figure: str
    images: Count
    gallery: Count
    trained_on: Count


class RecipePart(Part):
    """The resolved recipe; its values are checked where they are used."""

    data: dict[str, Any]
    validation: dict[str, Any] | None = None


class RunConfig(Part):
    """config.yaml."""

    command: Literal["train", "compress"]
    network: NetworkPart
    parameters: Count
    data: str
    seed: Count
    device: str
    recipe: RecipePart
    schedule: list[PhasePart]
    start: str | None = None
    teacher: TeacherPart | None = None
    auxiliary: AuxiliaryPart | None = None
    pairs: list[str] | None = None
    held_out: HeldOutPart | None = None


class RunEnvironment(Part):
    """environment.json."""

    data_fingerprint: str
    versions: dict[str, str | None] | None = None


class Record(Part):
    """A line of metrics.jsonl."""

    epoch: Count
    phase: str
    loss: float


class Figures(Part):
    """How close one embedding is to the teacher's: see `indistill.closeness`."""

    neighbour_overlap: FiniteFloat
    rank_correlation: FiniteFloat
    linear_cka: FiniteFloat
    cosine_correlation: FiniteFloat
    cosine_difference: FiniteFloat
    rotated_cosine: FiniteFloat
    mapped_cosine: FiniteFloat


class Closeness(Part):
    """closeness.json, but for the figures by labels, which are only shown where they were measured."""

    weights_sha256: str
    fingerprint: str
    student: Figures
    untrained: Figures


CONFIG, ENVIRONMENT = TypeAdapter(RunConfig), TypeAdapter(RunEnvironment)
RECORD, CLOSENESS = TypeAdapter(Record), TypeAdapter(Closeness)
EVALUATION = TypeAdapter(dict[str, dict[str, float]], config=ConfigDict(strict=True))


def check_document(form: TypeAdapter[Any], document: object) -> None:
    """Raises ValueError, with the first place and reason in one line, where a document has another form."""
    try:
        form.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "all of it"
        raise ValueError(f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def is_document(form: TypeAdapter[Any], document: object) -> bool:
    """Returns whether a document has a form."""
    try:
        check_document(form, document)
    except ValueError:
        return False
    return True
