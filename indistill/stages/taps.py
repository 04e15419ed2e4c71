"""Several nodes of a network, from one pass."""

from collections.abc import Sequence

from torch import Tensor, nn

from indistill.stages.graph import extract_graph, list_nodes


class Taps(nn.Module):
    """Runs a network once, up to the last of some nodes, and returns the output of each.

    The parameters are shared with the network, as in `Tap`.

    Args:
        network: is traced.
        nodes: names of nodes or modules; some may be equal, or mean the same node.
    """

    def __init__(self, network: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        known = list_nodes(network)
        first: dict[str, str] = {}  # a node is traced once, by the first name that it is given
        self.nodes = [first.setdefault(find_node(known, node), node) for node in nodes]
        self.graph = extract_graph(network, *first.values())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs in the order of the nodes, for normalised images (B, 3, H, W)."""
        outputs: dict[str, Tensor] = self.graph(image)
        return tuple(outputs[node] for node in self.nodes)


def find_node(known: Sequence[str], name: str) -> str:
    """Returns the node that a name means: the one of this name, or the last one of the module of this name."""
    return next((node for node in reversed(known) if node == name or node.startswith(f"{name}.")), name)
