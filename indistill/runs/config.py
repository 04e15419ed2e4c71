"""Configuration: validated, frozen, one level of sections. It stops at the commands; no class below them sees it."""

import copy
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from indistill.curriculum.phases import Kind
from indistill.curriculum.schedule import Optimisation, Restart, Schedule
from indistill.errors import ConfigError, escape_text, suggest_nearest
from indistill.files.documents import DocumentLoader, read_yaml
from indistill.losses.options import TEMPERATURES, LossName, LossOptions, SupervisedName
from indistill.preprocess import Preprocessing
from indistill.pruning.criteria import Criterion
from indistill.training.split import ValidationOptions

Triple = tuple[float, float, float]


class Batching(TypedDict):
    """How training batches are made."""

    batch_size: int
    flip: bool
    crop_padding: int


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, numbers finite, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSection(Section):
    """How images become the network's input, and how training varies them."""

    image_size: int = Field(32, ge=1, le=4096)
    crop: float = Field(1.0, ge=0.05, le=1)
    mean: Triple = (0.485, 0.456, 0.406)  # ImageNet's, the convention where nothing else is known
    std: Triple = (0.229, 0.224, 0.225)
    flip: bool = True
    crop_padding: int = Field(4, ge=0)
    batch_size: int = Field(128, ge=2)
    memory_limit_gb: float = Field(8.0, ge=0)  # GiB of pixels; a larger set is decoded again in each epoch


class OptimiserSection(Section):
    """Adam, made anew `never`, in each `phase` with another loss, or each `epoch` (as published).

    The schedule multiplies the learning rate of each phase by a factor that depends on the position in the whole
    training. Supervised training takes everything from here but the rates, `restart` and `beta2`.
    """

    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(1e-4, gt=0)
    restart: Restart = "epoch"
    beta2: float = Field(0.999, gt=0, lt=1)  # decay of Adam's second moment
    schedule: Schedule = "constant"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)  # of `step`: shares of the training
    gamma: float = Field(0.1, gt=0, le=1)  # of `step`: the factor at each milestone
    warmup_epochs: float = Field(0.0, ge=0)  # in which the rate rises
    clip: float = Field(0.0, ge=0)  # largest norm of a batch's gradient; 0 for no limit
    ema: float = Field(0.0, ge=0, lt=1)  # decay of the average of the weights that is kept in the end; 0 for none
    weight_decay: float = Field(0.0, ge=0)  # as in AdamW; not of biases and norms


class CurriculumSection(Section):
    """The schedule. Stage i of the warm-up has `first` + i epochs; it counts towards `epochs`.

    `kind` is the order of the stages: see `indistill.curriculum.phases.arrange_warm_up`.
    """

    warm_up: bool = True
    kind: Kind = "paper"
    tolerance: float = Field(0.02, gt=0, lt=1)  # of `adaptive`: a stage ends when its loss falls by a smaller share
    first: int = Field(2, ge=0)
    epochs: int = Field(60, ge=1)
    final_epochs: int = Field(10, ge=0)
    auxiliary_epochs: int = Field(50, ge=1)  # from the teacher to an auxiliary, where there is one

    @property
    def has_stages(self) -> bool:
        """Whether stages are trained at all."""
        return self.warm_up and self.kind != "none"


class SupervisedSection(Section):
    """Supervised training by one Adam, never made anew: `epochs` at `lr`, then `final_epochs` at `final_lr`."""

    epochs: int = Field(50, ge=1)
    final_epochs: int = Field(30, ge=0)
    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(1e-4, gt=0)


class LossSection(Section):
    """The loss of the embedding stage, and one of the labels beside it; see docs/losses.md."""

    name: LossName = "pkt"
    weight: float = Field(1.0, gt=0)
    scale: float = Field(1000.0, gt=0)  # of PKT, in pkt and pkth alone: 1 as published
    temperature: float | None = Field(None, gt=0)  # the loss's own where it is not given
    supervised: SupervisedName = "none"
    supervised_weight: float = Field(1.0, gt=0)

    @field_validator("temperature")
    @classmethod
    def _check_temperature(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if temperature is not None and name is not None and name not in TEMPERATURES:
            raise ValueError(f"loss '{name}' has none ({', '.join(TEMPERATURES)} have one), leave it out")
        return temperature

    @property
    def options(self) -> LossOptions:
        """The section as plain data."""
        return LossOptions(**self.model_dump())


class TargetsSection(Section):
    """The teacher's side. The batch norm of its stages, by `kept` statistics or those of each `batch` as in the
    published code; the widths of its stages aligned with the student's by `prune`, with channels kept by a
    `criterion`, or by a learnt `regressor`.
    """

    criterion: Criterion = "l1"
    statistics: Literal["kept", "batch"] = "kept"
    alignment: Literal["prune", "regressor"] = "prune"
    ahead: bool = False  # made by a thread while the student trains: for students too small to use all cores
    cache: Literal["auto", "never"] = "auto"  # the teacher is run once where no image varies; see docs/training.md


class ValidationSection(Section):
    """Images held out of the training, by which its best weights are found; see docs/training.md."""

    share: float = Field(0.0, ge=0, le=0.5)  # of the training images; 0 for none
    every: int = Field(1, ge=1)  # epochs between measurements
    patience: int = Field(0, ge=0)  # epochs without a better figure after which the training ends; 0 for never
    keep_best: bool = True  # whether the weights in the end are those of the best epoch, not of the last

    @property
    def options(self) -> ValidationOptions:
        """The section as plain data."""
        return ValidationOptions(**self.model_dump())


class Recipe(Section):
    """All of a recipe file."""

    data: DataSection = DataSection()
    optimiser: OptimiserSection = OptimiserSection()
    curriculum: CurriculumSection = CurriculumSection()
    supervised: SupervisedSection = SupervisedSection()
    loss: LossSection = LossSection()
    targets: TargetsSection = TargetsSection()
    validation: ValidationSection = ValidationSection()

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the data section describes."""
        return Preprocessing(self.data.image_size, self.data.crop, self.data.mean, self.data.std)

    @property
    def reads_stages(self) -> bool:
        """Whether teacher and student are compared by stages at all: in the warm-up, or by the loss."""
        return self.curriculum.has_stages or self.loss.name == "pkth"

    @property
    def stores_teacher(self) -> bool:
        """Whether the embedding's loss reads of the teacher what may be computed once: no image varies, nor is a map
        of a stage read.
        """
        varies = self.data.flip or self.data.crop_padding > 0
        return self.targets.cache == "auto" and not varies and self.loss.name != "pkth"

    @property
    def prunes(self) -> bool:
        """Whether the warm-up imitates chosen channels of the teacher's stages."""
        return self.curriculum.has_stages and self.targets.alignment == "prune"

    @property
    def optimisation(self) -> Optimisation:
        """How distillation is optimised; the learning rates are those of the phases."""
        return Optimisation(**self.optimiser.model_dump(exclude={"lr", "final_lr"}))

    @property
    def supervised_optimisation(self) -> Optimisation:
        """How supervised training is optimised."""
        return replace(self.optimisation, restart="never", beta2=Optimisation.beta2)

    @property
    def batching(self) -> Batching:
        """The arguments of `indistill.data.batches.Batches` that the data section gives."""
        return {"batch_size": self.data.batch_size, "flip": self.data.flip, "crop_padding": self.data.crop_padding}


FAITHFUL = {  # all that decides how the published code trains, whatever the recipe has
    "optimiser.lr": 1e-3,
    "optimiser.final_lr": 1e-4,
    "optimiser.restart": "epoch",
    "optimiser.beta2": 0.999,
    "optimiser.schedule": "constant",
    "optimiser.warmup_epochs": 0,
    "optimiser.clip": 0,
    "optimiser.ema": 0,
    "optimiser.weight_decay": 0,
    "curriculum.kind": "paper",
    "loss.name": "pkt",
    "loss.weight": 1,
    "loss.scale": 1,
    "loss.temperature": None,
    "loss.supervised": "none",
    "targets.criterion": "l1",
    "targets.statistics": "batch",
    "targets.alignment": "prune",
}


def list_recipes() -> list[str]:
    """Returns the names of the shipped recipes."""
    folder = resources.files("indistill.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Returns a recipe, with overrides applied.

    Args:
        name: a shipped recipe, or a path to a `.yaml` file.
        overrides: values by `section.key`; text is read as YAML.

    Raises:
        ConfigError: no such recipe, or values that do not validate; all problems in one message.
    """
    return validate_recipe(name, _read_recipe(name), overrides or {})


def validate_recipe(name: str, data: dict[str, Any], overrides: dict[str, Any]) -> Recipe:
    """Returns the recipe of plain data, with overrides applied; see `load_recipe`."""
    data = copy.deepcopy(data)
    problems = _apply_overrides(data, overrides)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems += [_describe(item["loc"], item["type"], item["msg"], item["input"]) for item in error.errors()]
    if problems:
        raise ConfigError(f"recipe '{name}': " + "; ".join(problems))
    return recipe


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Returns the values of `--set section.key=value` options.

    Raises:
        ConfigError: an item has another form.
    """
    overrides = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or key.count(".") != 1:
            raise ConfigError(f"--set '{item}' is not of the form section.key=value")
        overrides[key] = value
    return overrides


def _read_recipe(name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"recipe '{name}': there is no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"recipe '{name}' cannot be read ({error})") from error
    elif name in list_recipes():
        text = resources.files("indistill.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        known = list_recipes()
        raise ConfigError(
            f"recipe '{name}' is not one of {', '.join(known)}, nor a .yaml file.{suggest_nearest(name, known)}"
        )
    try:
        data = read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"recipe '{name}' is not YAML: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(section, dict) for section in data.values()):
        raise ConfigError(f"recipe '{name}': sections of 'key: value' lines are needed")
    return data


def _apply_overrides(data: dict[str, Any], overrides: dict[str, Any]) -> list[str]:
    problems = []
    for key, value in overrides.items():
        section, _, name = key.partition(".")
        try:
            data.setdefault(section, {})[name] = read_yaml(value, _NumberLoader) if isinstance(value, str) else value
        except ValueError as error:
            problems.append(f"{key}: '{escape_text(value)}' cannot be read ({error})")
    return problems


def _describe(location: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    key = ".".join(str(part) for part in location)
    if kind != "extra_forbidden":
        message = message.removeprefix("Value error, ")
        hint = suggest_nearest(str(value), re.findall(r"'(\w+)'", message)) if kind == "literal_error" else ""
        return f"{key}: {message[0].lower()}{message[1:]}, not {escape_text(repr(value))}{'.' if hint else ''}{hint}"
    fields: dict[str, Any] = dict(Recipe.model_fields)
    for part in location[:-1]:
        fields = fields[str(part)].annotation.model_fields
    return f"{key}: no such key.{suggest_nearest(str(location[-1]), fields)} Known: {', '.join(fields)}"


class _NumberLoader(DocumentLoader):
    """YAML in which 1e-3 is a number too (YAML 1.1 asks for 1.0e-3)."""


_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9.]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)
