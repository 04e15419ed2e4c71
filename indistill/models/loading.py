"""From a model spec and a weights file to a network with its stages and its embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from indistill.errors import ModelError
from indistill.files.hashing import hash_file
from indistill.models.paper import PAPER_STAGES
from indistill.models.resizing import Narrowing, resize
from indistill.models.specs import Argument, build_network, make_absolute, parse_model_spec, strip_weights
from indistill.models.weights import load_weights
from indistill.run_folder import read_run
from indistill.stages.graph import check_node, find_embedding_node

DEFAULT_SIDE = 224  # of the images that a network which cannot be traced is looked at with


@dataclass(frozen=True)
class Network:
    """A network that can be tapped.

    Attributes:
        module: the network.
        source: the model spec as given, which may be a run.
        weights: the file that the weights were read from, if any.
        spec: the model spec that builds it again, without weights.
        arguments: arguments that were passed to its factory beside those in the spec.
        embedding: node of the embedding.
        stages: nodes of the stages that are known by themselves, from the input to the output.
        narrowing: how it differs from what its spec builds; None where it does not.
    """

    module: nn.Module
    source: str
    weights: Path | None
    spec: str
    arguments: dict[str, Argument]
    embedding: str
    stages: tuple[str, ...]
    narrowing: Narrowing | None = None

    def describe(self) -> dict[str, Any]:
        """Returns what a run writes down to build the network again."""
        described = {
            "spec": strip_weights(make_absolute(self.spec)),
            "arguments": self.arguments,
            "embedding": self.embedding,
        }
        return described if self.narrowing is None else described | {"narrowing": self.narrowing.to_dict()}

    def describe_source(self) -> dict[str, Any]:
        """Returns what a run writes down to load the network again with the same weights."""
        described = self.describe() | {"source": make_absolute(self.source), "parameters": self.count_parameters()}
        if self.weights is not None:
            described |= {"weights": str(self.weights.resolve()), "weights_sha256": hash_file(self.weights)}
        return described

    def count_parameters(self) -> int:
        """Returns the number of parameters, the classifier's included."""
        return sum(parameter.numel() for parameter in self.module.parameters())


def load_network(
    text: str,
    *,
    weights: Path | None = None,
    arguments: Mapping[str, Argument] | None = None,
    role: str = "model",
    narrowing: Narrowing | None = None,
) -> Network:
    """Returns the network of a model spec.

    Args:
        text: the model spec.
        weights: a file that fits it; for a run, instead of its own weights.
        arguments: passed to the factory where it knows them and the spec does not set them.
        role: what messages call it: teacher, student, model.
        narrowing: how the network differs from what the spec builds.

    Raises:
        ModelError: the spec or the weights cannot be used.
        StageError: the network has no node of the name that the spec gives as embedding.
    """
    spec = parse_model_spec(text)
    if spec.kind == "run":
        run = read_run(Path(spec.name))
        described = run.network
        inner = load_network(
            str(described["spec"]),
            weights=weights or run.weights,
            arguments=described["arguments"],
            role=role,
            narrowing=read_narrowing(described),
        )
        embedding = str(spec.arguments.get("embedding", described["embedding"]))
        check_node(inner.module, embedding, role)
        return replace(inner, source=text, embedding=embedding)
    module = build_network(spec, arguments)
    if narrowing is not None:
        resize(module, narrowing)
    if weights is not None:
        load_weights(module, weights)
    stages = PAPER_STAGES.get(spec.name, ()) if spec.kind == "paper" else ()
    chosen = spec.arguments.get("embedding")
    image_size = (arguments or {}).get("image_size") or DEFAULT_SIDE
    if chosen is not None:
        check_node(module, str(chosen), role)
        embedding = str(chosen)
    else:
        embedding = "embedding" if spec.kind == "paper" else find_embedding_node(module, int(image_size))
    return Network(module, text, weights, text, dict(arguments or {}), embedding, stages, narrowing)


def read_narrowing(described: Mapping[str, Any]) -> Narrowing | None:
    """Returns how a network differs from what its spec builds, of what `Network.describe` wrote down.

    Raises:
        ModelError: it is damaged.
    """
    return Narrowing.from_dict(described["narrowing"]) if "narrowing" in described else None


def check_trainable(network: Network, role: str) -> None:
    """Raises ModelError if a network has no parameters to train."""
    if not any(parameter.requires_grad for parameter in network.module.parameters()):
        raise ModelError(f"the {role} '{network.spec}' has no parameters that can be trained")
