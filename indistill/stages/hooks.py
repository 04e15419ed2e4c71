"""Nodes of a network that cannot be traced to a graph: modules by their path, tapped by forward hooks.

`layer1.0` is the output of that module, `fc.input` what the module `fc` reads, and `output` what the network returns.
A module that is called more than once is tapped at its first call.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from indistill.errors import StageError, suggest_nearest

INPUT_SUFFIX = ".input"
OUTPUT_NODE = "output"
ATOL, RTOL = 1e-5, 1e-4


class _StopForward(Exception):  # noqa: N818 -- no error: it ends a forward pass
    """Ends a forward pass where all that was asked for is there; never leaves `HookedNetwork`."""


class HookedNetwork(nn.Module):
    """Runs a network until the last of some nodes is there, and returns their values by node.

    The parameters are the network's own. Hooks live as long as a forward pass, so that a copy has none.

    Args:
        network: any network.
        nodes: their names.

    Raises:
        StageError: a name is not one of a module.
    """

    def __init__(self, network: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        known = list_hook_nodes(network)
        for node in nodes:
            if node not in known:
                raise StageError(f"{type(network).__name__} has no module '{node}'.{suggest_nearest(node, known)}")
        self.network, self.nodes = network, tuple(dict.fromkeys(nodes))
        self.training = network.training

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the nodes' values for normalised images (B, 3, H, W).

        Raises:
            StageError: a module is not run, or gives no tensor.
        """
        found: dict[str, Tensor] = {}

        def keep(node: str, value: object) -> None:
            if node in found:
                return
            if not isinstance(value, Tensor):
                raise StageError(f"node '{node}' gives {type(value).__name__}, and a tensor is needed; name another")
            found[node] = value
            if len(found) == len(self.nodes):
                raise _StopForward

        handles = [self._hook(node, keep) for node in self.nodes if node != OUTPUT_NODE]
        try:
            output = self.network(image)
            if OUTPUT_NODE in self.nodes:
                keep(OUTPUT_NODE, output)
        except _StopForward:
            pass
        finally:
            for handle in handles:
                handle.remove()
        missing = [node for node in self.nodes if node not in found]
        if missing:
            raise StageError(f"{type(self.network).__name__} does not run '{missing[0]}'; name another node")
        return found

    def _hook(self, node: str, keep: Callable[[str, object], None]) -> RemovableHandle:
        modules = dict(self.network.named_modules())
        handle: RemovableHandle
        if node in modules:
            handle = modules[node].register_forward_hook(lambda _module, _inputs, output: keep(node, output))
        else:
            module = modules[node.removesuffix(INPUT_SUFFIX)]
            handle = module.register_forward_pre_hook(lambda _module, inputs: keep(node, inputs[0] if inputs else None))
        return handle


class CutNetwork(nn.Module):
    """A network that returns what its head would read: the head is replaced by nothing at all. Made for export."""

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.network, self.node = network, node

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Returns the network's output, by the node that it is now, for normalised images (B, 3, H, W)."""
        return {self.node: self.network(image)}


def list_hook_nodes(network: nn.Module) -> list[str]:
    """Returns the names of the nodes that hooks can tap, in the order in which a network's modules are defined."""
    nodes = []
    for name, module in network.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            nodes += [name + INPUT_SUFFIX, name] if isinstance(module, nn.Linear) else [name]
    return [*nodes, OUTPUT_NODE]


def find_head_input(network: nn.Module, image_size: int) -> str:
    """Returns `NAME.input` of the linear layer whose output is the network's output, or `output` if there is none.

    Raises:
        RuntimeError: the network cannot take images of this size.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    image = torch.zeros(2, 3, image_size, image_size, device=next(network.parameters(), torch.zeros(0)).device)
    last: dict[str, Tensor] = {}
    for name, module in copied.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: last.update({name: output}))
    with torch.no_grad():
        output = copied(image)
    heads = [name for name, value in last.items() if value is output]
    return heads[-1] + INPUT_SUFFIX if heads else OUTPUT_NODE


def cut_network(hooked: HookedNetwork, image_size: int) -> CutNetwork:
    """Returns the same computation without hooks, as an exporter needs it: a copy whose head is gone.

    Args:
        hooked: of one node: `output`, or what a module reads whose output is the network's.
        image_size: side of the square input in pixels.

    Raises:
        StageError: the node lies elsewhere, so that no module can be taken away to end the network there.
    """
    (node,) = hooked.nodes
    cut = CutNetwork(copy.deepcopy(hooked.network), node)
    cut.train(hooked.training)
    head = node.removesuffix(INPUT_SUFFIX)
    if node != OUTPUT_NODE and head != node:
        parent, _, attribute = head.rpartition(".")
        setattr(cut.network.get_submodule(parent), attribute, nn.Identity())
    checked, device = copy.deepcopy(cut).eval(), next(hooked.parameters(), torch.zeros(0)).device
    image = torch.rand(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected, found = copy.deepcopy(hooked).eval()(image)[node], checked(image)[node]
    if (
        not isinstance(found, Tensor)
        or found.shape != expected.shape
        or not torch.allclose(found, expected, RTOL, ATOL)
    ):
        raise StageError(
            f"{type(hooked.network).__name__} cannot be exported with the embedding '{node}': the network cannot be "
            "traced to a graph, and can be cut only where its last linear layer reads the embedding; leave "
            "?embedding=NODE out, or name 'output'"
        )
    return cut
