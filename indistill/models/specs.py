"""Model specs: one string that names a network, the same for teacher, student and auxiliary.

    paper:resnet18 | paper:cnn-a | paper:cnn-s     the networks of the paper
    torchvision:NAME, timm:NAME                    the zoos
    path/file.py:factory, package.module:factory   the user's own code
    path/to/run                                    what `train` or `compress` wrote

Arguments of the factory follow after a question mark (`timm:resnet50?pretrained=true`). The argument `embedding` is
ours: it names the node whose output is the embedding, where the pooled penultimate feature is not wanted.

To read a spec no torch is needed, to build its network it is.
"""

import importlib
import importlib.util
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from indistill.errors import ModelError, describe_error, suggest_nearest
from indistill.files.documents import read_yaml
from indistill.models.files import import_file, search_beside

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["paper", "torchvision", "timm", "file", "module", "run"]
Argument = str | int | float | bool | None
PAPER_NAMES = ("resnet18", "cnn-a", "cnn-s")
ZOOS = ("timm", "torchvision")
FETCHING = {"timm": "pretrained=true", "torchvision": "weights=DEFAULT"}  # the argument that fetches a zoo's weights
KNOWN_FORMS = "paper:NAME, torchvision:NAME, timm:NAME, file.py:factory, package.module:factory, or a run folder"


@dataclass(frozen=True)
class ModelSpec:
    """A parsed model spec: where the network comes from, and the arguments of its factory."""

    text: str
    kind: Kind
    name: str
    factory: str = ""
    arguments: dict[str, Argument] = field(default_factory=dict)


def parse_model_spec(text: str) -> ModelSpec:
    """Returns the parsed spec.

    Raises:
        ModelError: the text has none of the known forms.
    """
    location, _, query = text.partition("?")
    arguments = _parse_arguments(query, text)
    if (Path(location) / "config.yaml").is_file():
        return ModelSpec(text, "run", location, arguments=arguments)
    prefix, colon, name = location.rpartition(":")
    if prefix == "width":
        raise ModelError(f"model '{text}' is the teacher made narrower, which only --student of 'compress' can be")
    if not colon or not name:
        raise _unreadable(text, location)
    if prefix == "paper":
        return ModelSpec(text, "paper", name, arguments=arguments)
    if prefix == "torchvision":
        return ModelSpec(text, "torchvision", name, arguments=arguments)
    if prefix == "timm":
        return ModelSpec(text, "timm", name, arguments=arguments)
    if prefix.endswith(".py"):
        return ModelSpec(text, "file", prefix, name, arguments)
    if all(part.isidentifier() for part in prefix.split(".")):
        hint = suggest_nearest(prefix, ["paper", "torchvision", "timm", "width"])
        if importlib.util.find_spec(prefix.split(".")[0]) is None:
            raise ModelError(
                f"model '{text}': no Python package '{prefix.split('.')[0]}' is installed; use {KNOWN_FORMS}.{hint}"
            )
        return ModelSpec(text, "module", prefix, name, arguments)
    raise ModelError(f"model '{text}' is not a model spec; use {KNOWN_FORMS}")


def build_network(spec: ModelSpec, defaults: Mapping[str, Argument] | None = None) -> "nn.Module":
    """Returns the network that a spec names, with random weights unless its arguments ask for others.

    Args:
        spec: any kind but `run` (see `indistill.models.loading`).
        defaults: arguments such as `num_classes` and `image_size`, passed where the factory has a parameter of that
            name and the spec does not set it.

    Raises:
        ModelError: the name is not known, or the factory refuses its arguments or does not return a module.
    """
    with search_beside(Path(spec.name)) if spec.kind == "file" else nullcontext():
        return _build(spec, _find_factory(spec), defaults or {})


def _build(spec: ModelSpec, factory: Callable[..., object], defaults: Mapping[str, Argument]) -> "nn.Module":
    from torch import nn

    arguments = {name: value for name, value in spec.arguments.items() if name != "embedding"}
    parameters = inspect.signature(factory).parameters
    for name, value in defaults.items():
        if name in parameters or (name == "num_classes" and spec.kind in ("timm", "torchvision")):
            arguments.setdefault(name, value)
    try:
        network = factory(**arguments)
    except Exception as error:  # a factory may raise anything
        if fetches_weights(spec) and isinstance(error, OSError):
            raise ModelError(
                f"the weights of '{spec.text}' could not be fetched: {describe_error(error)} Without a network, "
                f"bring them as a file: '{strip_weights(spec.text)}' with --weights FILE (of 'compress': "
                "--teacher-weights FILE, --student-weights FILE)"
            ) from error
        hint = _suggest_argument(spec, parameters, error)
        raise ModelError(
            f"model '{spec.text}' could not be built with {arguments}: {describe_error(error)}{hint}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"model '{spec.text}' returned {type(network).__name__}, a torch.nn.Module is needed")
    return network


def name_network(spec: str, width: float | None) -> str:
    """Returns how readers are told which network it is: its model spec, and the width where it was made narrower."""
    return spec if width is None else f"{spec}, width {width:g}"


def make_absolute(text: str) -> str:
    """Returns a spec that means the same from any folder."""
    spec = parse_model_spec(text)
    if spec.kind not in ("run", "file"):
        return text
    return str(Path(spec.name).resolve()) + text.removeprefix(spec.name)


def strip_weights(text: str) -> str:
    """Returns a zoo's spec without the arguments that fetch weights: who loads it has others."""
    location, _, query = text.partition("?")
    if parse_model_spec(text).kind not in ZOOS:
        return text
    kept = [item for item in query.split("&") if item.partition("=")[0] not in ("", "pretrained", "weights")]
    return "?".join([location, "&".join(kept)]) if kept else location


def has_random_weights(spec: ModelSpec) -> bool:
    """Returns whether a paper's or a zoo's network is built with random weights, its arguments asking for no others."""
    if spec.kind == "paper":
        return True
    return spec.kind in ZOOS and not fetches_weights(spec)


def fetches_weights(spec: ModelSpec) -> bool:
    """Returns whether a zoo's network is built with the zoo's weights, which are downloaded."""
    return spec.kind in ZOOS and bool(spec.arguments.get("pretrained") or spec.arguments.get("weights"))


def explain_random_weights(spec: ModelSpec, option: str) -> str:
    """Returns what may be done about a network's random weights: an option, or an argument of the spec."""
    advice = f"name its weights with {option}"
    if spec.kind not in ZOOS:
        return advice
    fetched = f"{strip_weights(spec.text)}{'&' if '?' in strip_weights(spec.text) else '?'}{FETCHING[spec.kind]}"
    tagged = "; the tag in its name alone does not fetch any" if spec.kind == "timm" and "." in spec.name else ""
    return f"{advice}, or download the zoo's by '{fetched}'{tagged}"


def check_name(spec: ModelSpec) -> None:
    """Raises ModelError if a spec names a network of the paper, or a file, that there is not."""
    if spec.kind == "paper" and spec.name not in PAPER_NAMES:
        raise _unknown(spec, list(PAPER_NAMES))
    if spec.kind == "file" and not Path(spec.name).is_file():
        raise ModelError(f"model '{spec.text}': there is no file {spec.name}")


def _find_factory(spec: ModelSpec) -> Callable[..., object]:
    match spec.kind:
        case "paper":
            from indistill.models.paper import PAPER_NETWORKS

            check_name(spec)
            return PAPER_NETWORKS[spec.name]
        case "torchvision":
            from torchvision import models

            if spec.name not in models.list_models(module=models):
                raise _unknown(spec, models.list_models(module=models))
            return cast(Callable[..., object], models.get_model_builder(spec.name))
        case "timm":
            import timm

            if not timm.is_model(spec.name.split(".")[0]):
                raise _unknown(spec, timm.list_models())
            return lambda **arguments: _create_timm(spec.name, arguments)
        case "file":
            module = import_file(Path(spec.name), spec.text)
        case "module":
            try:
                module = importlib.import_module(spec.name)
            except Exception as error:  # so may this one
                raise ModelError(
                    f"model '{spec.text}': {spec.name} does not import: {describe_error(error)}"
                ) from error
        case "run":
            raise ValueError("a run is loaded by indistill.models.loading")
    try:
        factory: object = attrgetter(spec.factory)(module)  # Net, or Net.from_name
    except AttributeError:
        factory = None
    if not callable(factory):
        callables = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = suggest_nearest(spec.factory, callables)
        raise ModelError(f"model '{spec.text}': {spec.name} has no function '{spec.factory}'.{hint}")
    return cast(Callable[..., object], factory)


def _create_timm(name: str, arguments: Mapping[str, object]) -> object:
    import timm

    create: Callable[..., object] = timm.create_model
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.ERROR)  # without a network each of its many attempts is two lines
    try:
        return create(name, **arguments)
    finally:
        hub.setLevel(before)


def _suggest_argument(spec: ModelSpec, parameters: Mapping[str, inspect.Parameter], error: Exception) -> str:
    """Returns the nearest name where a factory was given an argument that it does not know."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return ""
    known = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    if spec.kind in ZOOS:
        known += ["num_classes", FETCHING[spec.kind].partition("=")[0]]
    hint = suggest_nearest(found[1], known)
    return f".{hint}" if hint else ""


def _unreadable(text: str, location: str) -> ModelError:
    """Returns the error of a text that has none of the known forms."""
    if Path(location).is_dir():
        return ModelError(f"model '{text}' is a folder without config.yaml; use {KNOWN_FORMS}.")
    if "/" in location:
        return ModelError(f"model '{text}' is not a model spec, and there is no folder {location}; use {KNOWN_FORMS}.")
    hint = suggest_nearest(location, PAPER_NAMES).replace("'", "'paper:", 1)
    if location not in ("cnn-a", "cnn-s"):  # of a zoo, then; which names it has takes seconds to find out
        hint = f" Did you mean '{ZOOS[0]}:{text}' or '{ZOOS[1]}:{text}'?{hint.replace(' Did you mean', ' Or')}"
    return ModelError(f"model '{text}' is not a model spec; use {KNOWN_FORMS}.{hint}")


def _parse_arguments(query: str, text: str) -> dict[str, Argument]:
    arguments: dict[str, Argument] = {}
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise ModelError(f"model '{text}': '{item}' is not of the form name=value")
        try:
            parsed = read_yaml(value)
        except ValueError as error:
            raise ModelError(f"model '{text}': the value of '{name}', '{value}', cannot be read") from error
        if not isinstance(parsed, str | int | float | bool | None):
            raise ModelError(f"model '{text}': the value of '{name}' is not a word, number or true/false")
        arguments[name] = parsed
    return arguments


def _unknown(spec: ModelSpec, known: list[str]) -> ModelError:
    hint = suggest_nearest(spec.name, known)
    listed = f" Known: {', '.join(known)}." if len(known) < 10 else ""
    return ModelError(f"model '{spec.text}': {spec.kind} has no model '{spec.name}'.{hint}{listed}")
