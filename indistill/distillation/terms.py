"""The terms of the embedding stage's loss: each has a loss, and says what it reads of teacher and student."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from indistill.errors import ModelError
from indistill.losses.loss import Loss
from indistill.losses.pkth import weigh_stages
from indistill.stages.graph import freeze, list_nodes, pool_positions
from indistill.stages.taps import Taps, find_node

Reading = Literal["embedding", "logits", "stage"]


@dataclass(frozen=True)
class Term:
    """A part of the loss.

    Attributes:
        loss: compares what is read.
        reads: `embedding` is pooled to vectors; `logits` and the maps of a `stage` are taken as they are.
        student: the node of the student that is read.
        teacher: the node of the teacher; None where the target comes from the labels.
        parts: how many tensors the loss's target has.
        weight: what the loss is multiplied by; that of a `stage` falls from epoch to epoch, see `weigh_stages`.
    """

    loss: Loss
    reads: Reading
    student: str
    teacher: str | None
    parts: int
    weight: float

    def weigh(self, epoch: int) -> float:
        """Returns the weight in an epoch of the embedding stage, counted from 0."""
        return self.weight * weigh_stages(epoch) if self.reads == "stage" else self.weight

    def read(self, feature: Tensor) -> Tensor:
        """Returns what the loss compares, of a node's output."""
        return pool_positions(feature) if self.reads == "embedding" else feature


def find_logits(network: nn.Module, embedding: str, role: str, reader: str) -> str:
    """Returns the node of a network's logits: its output, where something is computed between the embedding and it.

    Args:
        network: is traced.
        embedding: node of the embedding.
        role: teacher or student, for the message.
        reader: the loss that reads logits, for the message.

    Raises:
        ModelError: the network gives no logits.
    """
    nodes = list_nodes(network)
    behind = nodes[nodes.index(find_node(nodes, embedding)) + 1 :]
    modules = dict(network.named_modules())
    if all(isinstance(modules.get(node), nn.Dropout | nn.Identity) for node in behind):  # as by timm's num_classes=0
        raise ModelError(
            f"{reader} reads logits, and the {role} gives none, its output being its embedding: give it a classifier, "
            "as by num_classes in its spec, or choose a loss of embeddings alone, as --loss pkt"
        )
    return nodes[-1]


def measure_width(network: nn.Module, node: str, example: Tensor, reads: Reading) -> int:
    """Returns the width D of a node's output (B, D), read as a term does; the network does not change.

    Raises:
        ModelError: the output is not one vector for each image.
    """
    with torch.no_grad():
        (feature,) = freeze(Taps(network, [node]))(example)
    feature = pool_positions(feature) if reads == "embedding" else feature
    if not isinstance(feature, Tensor) or feature.dim() != 2 or len(feature) != len(example):
        found = tuple(feature.shape[1:]) if isinstance(feature, Tensor) else type(feature).__name__
        raise ModelError(f"{reads} of node '{node}': one vector for each image is needed, not {found}")
    return int(feature.shape[1])
