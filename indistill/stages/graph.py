"""Stages: intermediate features tapped by node name, in a graph that ends where the last tap is.

A network that cannot be traced to a graph is tapped by hooks instead (`hooks.py`), and runs no further either.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor, get_graph_node_names

from indistill.errors import ModelError, StageError, describe_error, suggest_nearest
from indistill.stages.hooks import HookedNetwork, cut_network, find_head_input, list_hook_nodes

TRACE_ERRORS = (  # what a network's own code does with values that are not there yet
    fx.proxy.TraceError,
    TypeError,
    RuntimeError,
    ValueError,
    AttributeError,
    AssertionError,
    LookupError,
    NameError,
)
MAX_PREFIX = 16  # class token, distillation token, registers


@dataclass(frozen=True)
class StagePair:
    """A teacher stage and the student stage that is to imitate it, both named by their node.

    Attributes:
        teacher: node of the teacher.
        student: node of the student.
        channels: the teacher's channels that are imitated; none where they are still to be chosen.
    """

    teacher: str
    student: str
    channels: tuple[int, ...] = ()


class Tap(nn.Module):
    """Runs a network up to a node and returns that node's output as a map (see `to_map`) or a vector.

    The parameters are shared with the network: training a tap trains the network. Layers behind the node are not run.
    """

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.node = node
        self.graph = extract_graph(network, node)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the node's output for normalised images (B, 3, S, S): a map (B, C, H, W) or a vector (B, C)."""
        return to_map(self.graph(image)[self.node], image.shape[-1])


class Embedder(nn.Module):
    """Runs a network up to its embedding node and returns one vector for each image.

    Maps (B, C, H, W) are averaged over their positions and tokens (B, T, D) over the tokens.
    """

    def __init__(self, network: nn.Module, node: str) -> None:
        super().__init__()
        self.tap = Tap(network, node)

    def forward(self, image: Tensor) -> Tensor:
        """Returns embeddings (B, D), not normalised, for normalised images (B, 3, H, W)."""
        return pool_positions(self.tap.graph(image)[self.tap.node])


def pool_positions(feature: Tensor) -> Tensor:
    """Returns vectors (B, D): the mean of maps (B, D, H, W) or (B, H, W, D), or of tokens (B, T, D); vectors as they
    are.
    """
    if feature.dim() == 4:
        return feature.mean((1, 2) if _is_channels_last(feature.shape) else (2, 3))
    if feature.dim() == 3:
        return feature.mean(1)
    return feature


def read_grid(shape: Sequence[int], image_size: int) -> tuple[int, int] | None:
    """Returns channels and side of a feature: a square map (B, C, H, W) or (B, H, W, C), or tokens (B, T, C).

    Images are square, and so are maps; the axis that differs is the channels'. Tokens that come before the grid (the
    class token, registers) are the fewest that leave a square whose side divides the image's.

    Args:
        shape: of the feature.
        image_size: side of the image in pixels.

    Returns:
        None where the feature is neither.
    """
    if len(shape) == 4 and shape[2] == shape[3]:
        return shape[1], shape[2]
    if len(shape) == 4 and _is_channels_last(shape):
        return shape[3], shape[1]
    if len(shape) == 3:
        for prefix in range(min(MAX_PREFIX + 1, shape[1])):
            side = math.isqrt(shape[1] - prefix)
            if side * side == shape[1] - prefix and image_size % side == 0:
                return shape[2], side
    return None


def to_map(feature: Tensor, image_size: int) -> Tensor:
    """Returns a feature as a map (B, C, H, W): channels-last maps permuted, tokens laid out on their grid without the
    tokens before it. Vectors, and what is neither, come back as they are; see `read_grid`.
    """
    if feature.dim() == 4 and _is_channels_last(feature.shape):
        return feature.permute(0, 3, 1, 2)
    grid = read_grid(feature.shape, image_size) if feature.dim() == 3 else None
    if grid is None:
        return feature
    channels, side = grid
    return feature[:, feature.shape[1] - side * side :].transpose(1, 2).reshape(-1, channels, side, side)


def list_nodes(network: nn.Module) -> list[str]:
    """Returns the names of the nodes of a network's graph, in the order in which they run; of its modules, where the
    network cannot be traced.
    """
    training = {module: module.training for module in network.modules()}
    try:
        nodes: list[str] = get_graph_node_names(network, suppress_diff_warning=True)[1]
    except TRACE_ERRORS:
        return list_hook_nodes(network)
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
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the {role} cannot take images of {side}x{side} pixels: {describe_error(error)}") from error


def summarise_nodes(nodes: Sequence[str], limit: int = 40) -> list[str]:
    """Returns the node names, or their first one or two parts where there are more than `limit` of them."""
    for depth in (None, 2, 1):
        shortened = dict.fromkeys(".".join(node.split(".")[:depth]) for node in nodes)
        if len(shortened) <= limit:
            return list(shortened)
    return [*list(shortened)[:limit], "..."]


def extract_graph(network: nn.Module, *nodes: str) -> nn.Module:
    """Returns a graph of the network that ends at the last of some nodes and shares the network's parameters; its
    output is a dict by node. Its mode (training or not) is the network's.

    A network that cannot be traced gives a `HookedNetwork`, which does the same.

    Raises:
        StageError: there is no such node.
    """
    training = {module: module.training for module in network.modules()}
    try:
        graph: fx.GraphModule | None = create_feature_extractor(
            network, {node: node for node in nodes}, suppress_diff_warning=True
        )
    except TRACE_ERRORS:
        graph = None
    finally:
        for module, mode in training.items():
            module.training = mode
    if graph is None:
        return HookedNetwork(network, nodes)
    graph.train(network.training)
    return graph


def trace_network(network: nn.Module) -> tuple[fx.GraphModule, dict[fx.Node, str]] | None:
    """Returns the whole graph of a network in eval mode, with the name of each of its nodes; None where the network
    cannot be traced. The names are those of `list_nodes`.
    """
    training = {module: module.training for module in network.modules()}
    try:
        for mode in (True, False):  # taps are traced in both modes
            tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops))
            graph = tracer.trace(network.train(mode))
    except TRACE_ERRORS:
        return None
    finally:
        for module, mode in training.items():
            module.training = mode
    return fx.GraphModule(tracer.root, graph), dict(tracer.node_to_qualname)


def end_at_embedding(embedder: Embedder, image_size: int) -> Embedder:
    """Returns an embedder that can be exported: itself where it is a graph; a copy that needs no hooks elsewhere.

    Raises:
        StageError: the network can neither be traced nor be cut at its embedding.
    """
    if not isinstance(embedder.tap.graph, HookedNetwork):
        return embedder
    cut = copy.deepcopy(embedder)
    cut.tap.graph = cut_network(embedder.tap.graph, image_size)
    return cut


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


def freeze_cancelled_biases(graph: nn.Module) -> None:
    """Takes the bias of each convolution or linear layer whose output goes to a batch norm alone out of the training.
    Nothing is known of this where there is no graph.

    In training a batch norm subtracts the batch's mean, and the bias with it: its gradient is zero but for rounding,
    and takes time to compute. (Ioffe and Szegedy 2015, section 3.2.)
    """
    for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
        if node.op != "call_module" or len(node.users) != 1:
            continue
        (user,) = node.users
        layer = graph.get_submodule(str(node.target))
        if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None or user.op != "call_module":
            continue
        if isinstance(graph.get_submodule(str(user.target)), nn.BatchNorm1d | nn.BatchNorm2d):
            layer.bias.requires_grad_(False)


def find_embedding_node(network: nn.Module, image_size: int = 224) -> str:
    """Returns the node of the pooled penultimate feature: what the last linear layer reads, where the output comes
    straight from one, else the output itself.

    Args:
        network: any network.
        image_size: side of the images that a network which cannot be traced is run with.

    Raises:
        ModelError: the network cannot be traced, and cannot take images of this size.
    """
    traced = trace_network(network)
    if traced is None:
        try:
            return find_head_input(network, image_size)
        except RuntimeError as error:
            raise ModelError(
                f"{type(network).__name__} cannot take images of {image_size}x{image_size} pixels: "
                f"{describe_error(error)}"
            ) from error
    graph, names = traced
    (output,) = next(node for node in graph.graph.nodes if node.op == "output").args
    last = output if isinstance(output, fx.Node) else [node for node in graph.graph.nodes if node in names][-1]
    if last.op == "call_module" and isinstance(network.get_submodule(str(last.target)), nn.Linear):
        last = last.all_input_nodes[0]
    while last.op == "call_module" and isinstance(network.get_submodule(str(last.target)), nn.Dropout | nn.Identity):
        last = last.all_input_nodes[0]
    return names[last]


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


def _is_channels_last(shape: Sequence[int]) -> bool:
    return shape[1] == shape[2] != shape[3]


def use_batch_statistics(tap: Tap) -> None:
    """Makes the batch norm behind a tap's last parametric layer normalise by the batch, with its scale kept and its
    shift dropped, as the published code's pruned teacher does by accident.

    Raises:
        StageError: no batch norm follows that layer.
    """
    nodes = list(tap.graph.graph.nodes) if isinstance(tap.graph, fx.GraphModule) else []
    for node in reversed(nodes):
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
