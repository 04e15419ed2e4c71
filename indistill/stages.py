"""Stages: intermediate features tapped by node name, in a graph that ends where the last tap is."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from indistill.errors import ModelError, StageError, suggest_nearest


@dataclass(frozen=True)
class StagePair:
    """A teacher stage and the student stage that is to imitate it, both named by their node."""

    teacher: str
    student: str


class Tap(nn.Module):
    """Runs a network up to a node and returns that node's output, as one tensor.

    The parameters are shared with the network: training a tap trains the network. Layers behind the node are neither
    run nor kept.
    """

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.node = node
        self.graph = extract_graph(network, node)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the node's output for normalised images (B, 3, H, W)."""
        output: Tensor = self.graph(image)[self.node]
        return output


class Embedder(nn.Module):
    """Runs a network up to its embedding node and returns one vector for each image.

    Maps (B, C, H, W) are averaged over their positions and tokens (B, T, D) over the tokens.
    """

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.tap = Tap(network, node)

    def forward(self, image: Tensor) -> Tensor:
        """Returns embeddings (B, D), not normalised, for normalised images (B, 3, H, W)."""
        return pool_positions(self.tap(image))


def pool_positions(feature: Tensor) -> Tensor:
    """Returns vectors (B, D): the mean of maps (B, D, H, W) or tokens (B, T, D); vectors as they are."""
    if feature.dim() == 4:
        return feature.mean((2, 3))
    if feature.dim() == 3:
        return feature.mean(1)
    return feature


def list_nodes(network: nn.Module) -> list[str]:
    """Returns the names of the nodes of a network's graph, in the order in which they run.

    Raises:
        StageError: the network cannot be traced.
    """
    training = {module: module.training for module in network.modules()}
    try:
        nodes: list[str] = get_graph_node_names(network, suppress_diff_warning=True)[1]
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError) as error:
        raise StageError(_describe_trace_error(network, error)) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    return nodes


def check_node(network: nn.Module, node: str, role: str) -> None:
    """Raises StageError, listing what there is, unless a network has a node, or a module, of this name."""
    nodes = list_nodes(network)
    if node in nodes or any(name.startswith(f"{node}.") for name in nodes):
        return
    listed = ", ".join(summarise_nodes(nodes))
    raise StageError(f"the {role} has no node '{node}'.{suggest_nearest(node, nodes)} It has: {listed}")


def check_image_size(network: nn.Module, node: str, side: int, role: str) -> None:
    """Raises ModelError unless a network gives an embedding for square images of this side."""
    example = torch.zeros(2, 3, side, side, device=next(network.parameters(), torch.zeros(0)).device)
    try:
        with torch.no_grad():
            freeze(Embedder(network, node))(example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"the {role} cannot take images of {side}x{side} pixels: {reason}") from error


def summarise_nodes(nodes: Sequence[str], limit: int = 40) -> list[str]:
    """Returns the node names, or their first one or two parts where there are more than `limit` of them."""
    for depth in (None, 2, 1):
        shortened = dict.fromkeys(".".join(node.split(".")[:depth]) for node in nodes)
        if len(shortened) <= limit:
            return list(shortened)
    return [*list(shortened)[:limit], "..."]


def extract_graph(network: nn.Module, *nodes: str) -> fx.GraphModule:
    """Returns a graph of the network that ends at the last of some nodes and shares the network's parameters; its
    output is a dict by node. Its mode (training or not) is the network's.

    Raises:
        StageError: the network cannot be traced.
    """
    training = {module: module.training for module in network.modules()}
    try:
        graph: fx.GraphModule = create_feature_extractor(
            network, {node: node for node in nodes}, suppress_diff_warning=True
        )
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise StageError(_describe_trace_error(network, error)) from error
    finally:
        for module, mode in training.items():
            module.training = mode
    graph.train(network.training)
    return graph


def freeze(module: nn.Module) -> nn.Module:
    """Returns a copy for inference alone: eval mode, no gradients, batch norm folded into the convolution before it.

    Nothing is folded in a graph that calls a layer more than once.
    """
    frozen = copy.deepcopy(module).eval()
    for name, child in list(frozen.named_modules()):
        if isinstance(child, fx.GraphModule) and not _shares_layers(child):
            fused = fuse(child, inplace=True, no_trace=True).eval()
            if not name:
                frozen = fused
            else:
                parent, _, attribute = name.rpartition(".")
                setattr(frozen.get_submodule(parent), attribute, fused)
    return frozen.requires_grad_(False)


def freeze_cancelled_biases(graph: fx.GraphModule) -> None:
    """Takes the bias of each convolution or linear layer whose output goes to a batch norm alone out of the training.

    In training a batch norm subtracts the batch's mean, and the bias with it: its gradient is zero but for rounding,
    and takes time to compute. (Ioffe and Szegedy 2015, section 3.2.)
    """
    for node in graph.graph.nodes:
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        layer = graph.get_submodule(str(node.target))
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None or user.op != "call_module":
            continue
        if isinstance(graph.get_submodule(str(user.target)), nn.BatchNorm1d | nn.BatchNorm2d):
            layer.bias.requires_grad_(False)


def find_embedding_node(network: nn.Module) -> str:
    """Returns the node of the pooled penultimate feature: what the last linear layer reads, where the output comes
    straight from one, else the output itself.

    Raises:
        StageError: the network cannot be traced.
    """
    nodes = list_nodes(network)
    graph = extract_graph(network, nodes[-1]).eval().graph
    names = dict(zip([node.name for node in graph.nodes if node.op != "output"], nodes, strict=True))
    last = [node for node in graph.nodes if node.op != "output"][-1]
    if last.op == "call_module" and isinstance(network.get_submodule(last.target), nn.Linear):
        last = last.all_input_nodes[0]
    while last.op == "call_module" and isinstance(network.get_submodule(last.target), nn.Dropout | nn.Identity):
        last = last.all_input_nodes[0]
    return str(names[last.name])


def find_producer(graph: fx.GraphModule, width: int) -> tuple[str, nn.Conv2d | nn.Linear]:
    """Returns the name and the module of the last parametric layer of a stage: the last convolution or linear layer
    before the tapped node that gives `width` channels.

    Raises:
        StageError: there is none, as where a stage concatenates the outputs of several layers.
    """
    for node in reversed(list(graph.graph.nodes)):
        if node.op != "call_module":
            continue
        layer = graph.get_submodule(str(node.target))
        if isinstance(layer, nn.Conv2d | nn.Linear) and _count_outputs(layer) == width:
            return str(node.target), layer
    raise StageError(
        f"no convolution or linear layer before the stage gives its {width} channels (a concatenation, perhaps); "
        "name another node with --pair TEACHER:STUDENT"
    )


def parse_pairs(texts: Iterable[str]) -> tuple[StagePair, ...]:
    """Returns the pairs of `--pair TEACHER:STUDENT` options.

    Raises:
        StageError: a text has another form.
    """
    pairs = []
    for text in texts:
        teacher, colon, student = text.partition(":")
        if not colon or not teacher or not student:
            raise StageError(f"--pair '{text}' is not of the form TEACHER_NODE:STUDENT_NODE")
        pairs.append(StagePair(teacher, student))
    return tuple(pairs)


def _shares_layers(graph: fx.GraphModule) -> bool:
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    shared = {str(target) for target in called if called.count(target) > 1}
    return any(isinstance(graph.get_submodule(target), nn.Conv2d | nn.Linear) for target in shared)


def _count_outputs(layer: nn.Conv2d | nn.Linear) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _describe_trace_error(network: nn.Module, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"{type(network).__name__} cannot be traced to a graph, which naming a node needs: {reason}"


def use_batch_statistics(tap: Tap) -> None:
    """Makes the batch norm behind a tap's last parametric layer normalise by the batch, with its scale kept and its
    shift dropped, as the published code's pruned teacher does by accident.

    Raises:
        StageError: no batch norm follows that layer.
    """
    for node in reversed(list(tap.graph.graph.nodes)):
        if node.op != "call_module":
            continue
        layer = tap.graph.get_submodule(str(node.target))
        if isinstance(layer, nn.BatchNorm2d):
            replacement = nn.BatchNorm2d(layer.num_features, eps=layer.eps, track_running_stats=False)
            replacement.weight.data.copy_(layer.weight.data)
            parent, _, attribute = str(node.target).rpartition(".")
            setattr(tap.graph.get_submodule(parent), attribute, replacement)
            return
        if isinstance(layer, nn.Conv2d | nn.Linear):
            break
    raise StageError(
        "batch statistics need a batch norm behind the last convolution of each teacher stage, and one has none: "
        "give --set targets.statistics=kept (--faithful and the recipe cifar10 ask for batch statistics)"
    )
