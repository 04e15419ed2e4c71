"""The trunk of a network: what all paths from the image to the output go through, and the stages on it.

A network is run once, on a copy, and autograd's own graph of that run says what was computed from what. That works
where a network cannot be traced too, and knows nothing of architectures.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.autograd.graph import Node as Function

from indistill.errors import ModelError, StageError, describe_error
from indistill.stages.graph import read_grid, trace_network

LAST_PARTS = ("Adaptive", "Mean")  # of the pooling that ends the trunk
QUARTERS = 4
PLAIN_SHARE = 0.8  # of all layers at one resolution: what comes before is a stem
BATCH = 2  # images in the run
Parametric = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Stage:
    """A stage of a network, as it can be imitated.

    Attributes:
        node: its name.
        channels: C of its map, D of its tokens.
        side: height and width of its map or token grid; None for a vector.
        stride: pixels of the image to one position of the map.
        depth: the share of the network's convolutions and linear layers, along the longest path, that it ends.
    """

    node: str
    channels: int
    side: int | None
    stride: float
    depth: float


class Recording:
    """One run of a network: autograd's functions from image to output, and the names of those that have one.

    Args:
        network: any network; it is copied, and never changed.
        image_size: side of the square input in pixels.

    Raises:
        ModelError: the network cannot take images of this size.
    """

    def __init__(self, network: nn.Module, image_size: int) -> None:
        self.network = copy.deepcopy(network).cpu().eval().requires_grad_(False)
        self.image_size = image_size
        self.names: dict[Function, list[str]] = defaultdict(list)
        image = torch.zeros(BATCH, 3, image_size, image_size, requires_grad=True)
        traced = trace_network(self.network)
        try:
            output = self._run_modules(image) if traced is None else self._run_graph(image, *traced)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ModelError(
                f"{type(network).__name__} cannot take images of {image_size}x{image_size} pixels: "
                f"{describe_error(error)}"
            ) from error
        functions = _sort(output.grad_fn)
        self.position = {function: i for i, function in enumerate(functions)}
        self.depth: dict[Function, int] = {}
        for function in functions:
            before = max((self.depth[source] for source in self.list_sources(function)), default=0)
            self.depth[function] = before + (self.find_layer(function) is not None)

    def list_sources(self, function: Function) -> list[Function]:
        """Returns the functions that a function reads from, as far as the image reaches them."""
        return [source for source, _ in function.next_functions if source in self.position]

    def find_layer(self, function: Function) -> tuple[str, nn.Module] | None:
        """Returns the convolution, linear layer or batch norm whose output a function is."""
        for name in self.names.get(function, ()):
            module = self._find_module(name)
            if isinstance(module, Parametric):
                return name, module
        return None

    def find_norm(self, function: Function) -> nn.BatchNorm2d | None:
        """Returns the batch norm whose output a function is."""
        modules = (self._find_module(name) for name in self.names.get(function, ()))
        return next((module for module in modules if isinstance(module, nn.BatchNorm2d)), None)

    def find_function(self, node: str) -> Function | None:
        """Returns the function that computes a node, None where it does not depend on the image."""
        return next((function for function, names in self.names.items() if node in names), None)

    def is_block(self, name: str) -> bool:
        """Returns whether a name is a module's that is more than a list of others."""
        module = self._find_module(name)
        return module is not None and type(module) not in (nn.Sequential, nn.ModuleList)

    def computes(self, name: str) -> bool:
        """Returns whether a name stands for something that changes its input."""
        return not isinstance(self._find_module(name), nn.Identity | nn.Dropout)

    def list_trunk(self) -> list[Function]:
        """Returns the functions that every path from image to output goes through, from the image on.

        In an order in which sources come first, these are the functions that no edge passes over.
        """
        passing = [0] * (len(self.position) + 1)
        for function, end in self.position.items():
            for source in self.list_sources(function):
                passing[self.position[source] + 1] += 1
                passing[end] -= 1
        trunk, over = [], 0
        for function, change in zip(self.position, passing, strict=False):
            over += change
            if not over:
                trunk.append(function)
        return trunk

    def _run_graph(self, image: Tensor, graph: fx.GraphModule, names: dict[fx.Node, str]) -> Tensor:
        last = {}
        for node, name in names.items():
            for depth in range(1, name.count(".") + 2):
                last[".".join(name.split(".")[:depth])] = node
        aliases = defaultdict(list)
        for name, node in last.items():
            aliases[node].append(name)
        recording = self

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> object:
                value: object = super().run_node(n)
                recording._record(value, [names[n], *aliases[n]] if n in names else [])
                return value

        return _first_tensor(Recorder(graph).run(image))

    def _run_modules(self, image: Tensor) -> Tensor:
        called: set[str] = set()

        def record(name: str, value: object) -> None:
            if name not in called:
                called.add(name)
                self._record(value, [name])

        handles = [
            module.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
            for name, module in self.network.named_modules()
            if name
        ]
        try:
            return _first_tensor(self.network(image))
        finally:
            for handle in handles:
                handle.remove()

    def _record(self, value: object, names: Sequence[str]) -> None:
        if isinstance(value, Tensor) and value.grad_fn is not None and names:
            known = self.names[value.grad_fn]
            known.extend(name for name in names if name not in known)

    def _find_module(self, name: str) -> nn.Module | None:
        try:
            return self.network.get_submodule(name)
        except AttributeError:  # a node of the graph that is no module
            return None


def find_stages(network: nn.Module, image_size: int) -> tuple[Stage, ...]:
    """Returns the stages of a network, from the input to the output; none where it has no trunk.

    Where the resolution falls along the trunk, they are the last node at each resolution. Where it stays, as in a
    plain vision transformer, they are the nodes that end each quarter of the blocks.

    Args:
        network: any network, which is not changed, nor are its statistics.
        image_size: side of the square input in pixels.

    Raises:
        ModelError: the network cannot take images of this size.
    """
    recording = Recording(network, image_size)
    by_side: dict[int, list[Function]] = defaultdict(list)
    for function in recording.list_trunk():
        if any(part in function.name() for part in LAST_PARTS):
            break
        shape = read_shape(function)
        grid = read_grid(shape, image_size) if shape[0] == BATCH else None
        if grid is not None and recording.depth[function] and (not by_side or grid[1] <= min(by_side)):
            by_side[grid[1]].append(function)
    groups: dict[int, list[Function]] = {}
    depth = 0
    for side, group in by_side.items():
        named = [function for function in group if function in recording.names]
        deepest = max(recording.depth[function] for function in group)
        if named and deepest > depth:  # something is computed here, beyond pooling
            groups[side] = named
        depth = deepest
    sides = _find_sides(recording, groups)
    longest = max(groups.values(), key=lambda group: _count_layers(recording, group), default=[])
    if longest and _count_layers(recording, longest) > PLAIN_SHARE * max(recording.depth.values()):
        chosen = _split_evenly(recording, longest)
    else:
        chosen = [_choose_last(recording, group, side, sides) for side, group in groups.items()]
    return tuple(_describe(recording, name, function) for name, function in chosen)


def describe_stages(network: nn.Module, nodes: Sequence[str], image_size: int) -> tuple[Stage, ...]:
    """Returns what the nodes of these names give.

    Raises:
        ModelError: the network cannot take images of this size.
        StageError: a node is neither a map, nor a vector, nor tokens on a square grid.
    """
    recording = Recording(network, image_size)
    stages = []
    for node in nodes:
        function = recording.find_function(node)
        if function is None:
            raise StageError(f"node '{node}' of {type(network).__name__} does not depend on the image; name another")
        stages.append(_describe(recording, node, function))
    return tuple(stages)


def _find_sides(recording: Recording, groups: Mapping[int, Sequence[Function]]) -> dict[str, set[int]]:
    """Returns the resolutions of the trunk within each module."""
    sides: dict[str, set[int]] = defaultdict(set)
    for side, group in groups.items():
        for function in group:
            parts = max(recording.names[function], key=len).split(".")
            for count in range(1, len(parts) + 1):
                sides[".".join(parts[:count])].add(side)
    return sides


def _choose_last(
    recording: Recording, group: Sequence[Function], side: int, sides: Mapping[str, set[int]]
) -> tuple[str, Function]:
    """Returns the last node of a resolution, by its shortest name that does not stand for most of the network.

    The beginning of a block that goes on at the next resolution is left out, such as the expansion of an inverted
    residual or the norm before a downsampling convolution.
    """

    def count_unfinished(function: Function) -> int:
        parts = max(recording.names[function], key=len).split(".")
        above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        return sum(len(sides[name]) == 2 and min(sides[name]) < side and recording.is_block(name) for name in above)

    fewest = min(count_unfinished(function) for function in group)
    finished = [function for function in group if count_unfinished(function) == fewest]
    deepest = max(recording.depth[function] for function in finished)
    named = []
    for function in finished:
        if recording.depth[function] == deepest:
            names = [name for name in recording.names[function] if len(sides[name]) < 3 and recording.computes(name)]
            named.append((min(names or recording.names[function], key=_measure_name), function))
    level = min(name.count(".") for name, _ in named)
    return [(name, function) for name, function in named if name.count(".") == level][-1]


def _split_evenly(recording: Recording, group: Sequence[Function]) -> list[tuple[str, Function]]:
    """Returns the nodes that end each quarter of the blocks: the largest set of trunk nodes with a common parent."""
    families: dict[str, list[tuple[str, Function]]] = defaultdict(list)
    for function in group:
        for name in recording.names[function]:
            families[name.rpartition(".")[0]].append((name, function))
    blocks = max(families.values(), key=lambda family: len({recording.depth[function] for _, function in family}))
    ends = sorted({math.ceil(len(blocks) * quarter / QUARTERS) - 1 for quarter in range(1, QUARTERS + 1)})
    return [blocks[end] for end in ends]


def _count_layers(recording: Recording, group: Sequence[Function]) -> int:
    depths = [recording.depth[function] for function in group]
    return max(depths) - min(depths)


def _measure_name(name: str) -> tuple[int, int]:
    return name.count("."), len(name)


def _describe(recording: Recording, node: str, function: Function) -> Stage:
    shape = read_shape(function)
    grid = read_grid(shape, recording.image_size)
    if grid is None and len(shape) != 2:
        raise StageError(
            f"node '{node}' gives {tuple(shape)[1:]}, which is neither a map (C, H, W), nor a vector (C), nor tokens "
            "(T, C) on a square grid; name another"
        )
    channels, side = grid or (shape[1], None)
    total = max(recording.depth.values())
    return Stage(node, channels, side, recording.image_size / (side or 1), recording.depth.get(function, total) / total)


def read_shape(function: Function) -> torch.Size:
    """Returns the shape of what a function computes."""
    return torch.Size(function._input_metadata[0].shape)  # what flows back into a function has its output's shape


def _sort(last: Function | None) -> list[Function]:
    """Returns the functions that lead to the last one, each behind its sources."""
    ordered: list[Function] = []
    seen: set[Function] = set()
    waiting: list[tuple[Function, bool]] = [] if last is None else [(last, False)]
    while waiting:
        function, done = waiting.pop()
        if done:
            ordered.append(function)
        elif function not in seen:
            seen.add(function)
            waiting.append((function, True))
            waiting += [(source, False) for source, _ in function.next_functions if source is not None]
    return ordered


def _first_tensor(output: object) -> Tensor:
    """Returns the first tensor of a network's output, which may be a tuple or a dict of them."""
    if isinstance(output, dict):
        return _first_tensor(next(iter(output.values())))
    if isinstance(output, tuple | list):
        return _first_tensor(output[0])
    if not isinstance(output, Tensor):
        raise ModelError(f"the network gives {type(output).__name__}, and a tensor is needed")
    return output
