"""Width alignment: the channels of a teacher stage that a narrower student stage is to imitate.

A pruned teacher layer that still reads the whole stage before it computes exactly the chosen channels of the whole
layer, so pruning is an index select on a tapped feature (InDistill, arXiv 2205.10003, section 3.1).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from indistill.errors import StageError
from indistill.pruning.criteria import Criterion
from indistill.pruning.producers import Producer, follow_channels
from indistill.stages.graph import Tap, freeze, to_map
from indistill.stages.taps import Taps
from indistill.stages.trunk import Recording

BATCH_SIZE = 32


def measure_importance(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns the l1 norm of each output channel's filter, (C,) float32.

    Reference: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1.
    """
    return layer.weight.detach().float().abs().flatten(1).sum(1)


def measure_l2(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns the l2 norm of each output channel's filter, (C,) float32."""
    return layer.weight.detach().float().square().flatten(1).sum(1).sqrt()


def measure_distances(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns the sum of the Euclidean distances of each output channel's filter to all filters, (C,) float32.

    Filters near the geometric median of all of them are those that the others can stand for.

    Reference: He et al. 2019, "Filter Pruning via Geometric Median", equation 6.
    """
    filters = layer.weight.detach().double().flatten(1)
    # Not by aa + bb - 2ab, which loses the digits of near filters.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1).float()


def measure_scale(producer: Producer) -> Tensor:
    """Returns the absolute scale of the batch norm behind a layer, (C,) float32.

    Reference: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 3.
    Differs: no sparsity was asked of the scales in training; the teacher is taken as it is.

    Raises:
        StageError: no batch norm follows the layer.
    """
    if producer.norm is None or not producer.norm.affine:
        raise StageError(
            f"--criterion bn-scale needs a batch norm behind '{producer.name}', and there is none: use l1, l2, fpgm, "
            "taylor, activation or random"
        )
    return producer.norm.weight.detach().float().abs()


def measure_activation(teacher: nn.Module, node: str, images: Tensor) -> Tensor:
    """Returns the mean absolute activation of each channel of a stage over images (N, 3, S, S), (C,) float32."""
    tap = freeze(Tap(teacher, node))
    with torch.inference_mode():
        sums = [_average_positions(tap(batch).abs()).sum(0) for batch in _split_batches(images)]
    return torch.stack(sums).sum(0).clone() / len(images)


def measure_taylor(teacher: nn.Module, node: str, embedding: str, images: Tensor) -> Tensor:
    """Returns how much an objective would change without each channel of a stage, to first order, (C,) float32.

    The absolute value of activation times gradient, averaged over positions, then over images (N, 3, S, S).

    Reference: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
        equation 8.
    Differs: there are no labels, so the objective is not the loss of a classifier but half the squared length of the
        teacher's own embedding, whose gradient is the embedding itself: a channel counts as far as the embedding is
        made of it. Channels of one stage are compared, so there is no norm over stages.

    Raises:
        StageError: the embedding does not depend on the stage.
    """
    network = copy.deepcopy(teacher).eval().requires_grad_(False)
    for module in network.modules():
        if "inplace" in vars(module):
            vars(module)["inplace"] = False  # an activation would overwrite what is tapped
    taps = Taps(network, [node, embedding])
    sums = []
    for batch in _split_batches(images):
        feature, output = taps(batch.clone().requires_grad_(True))
        objective = output.square().sum() / 2
        (gradient,) = torch.autograd.grad(objective, feature, allow_unused=True)
        if gradient is None:
            raise StageError(f"--criterion taylor: the embedding '{embedding}' does not depend on '{node}'")
        products = to_map((feature * gradient).detach(), images.shape[-1])
        sums.append(_average_positions(products).abs().sum(0))
    return torch.stack(sums).sum(0) / len(images)


def measure_by(
    criterion: Criterion, teacher: nn.Module, node: str, embedding: str, images: Tensor, seed: int = 0
) -> Tensor:
    """Returns the importance of each channel of a teacher's stage, (C,) float32; see `measure_stages`."""
    return measure_stages(criterion, teacher, [node], embedding, images, seed)[0]


def measure_stages(
    criterion: Criterion, teacher: nn.Module, nodes: Sequence[str], embedding: str, images: Tensor, seed: int = 0
) -> list[Tensor]:
    """Returns the importance of each channel of some of a teacher's stages, (C,) float32 for each.

    Args:
        criterion: `l1`, `l2`, `fpgm` and `bn-scale` look at the layers that make the stage (see `find_producers`);
            `taylor` and `activation` at images; `random` at nothing.
        teacher: in any mode; never changed.
        nodes: its stages.
        embedding: node of its embedding, for `taylor`.
        images: normalised images (N, 3, S, S); for the other criteria only their size counts.
        seed: of `random`, for the first stage; each other one has the next.

    Raises:
        StageError: the criterion cannot be used for a stage.
    """
    if criterion == "activation":
        return [measure_activation(teacher, node, images) for node in nodes]
    if criterion == "taylor":
        return [measure_taylor(teacher, node, embedding, images) for node in nodes]
    if criterion == "random":
        return [_draw_importance(teacher, node, images, seed + number) for number, node in enumerate(nodes)]
    recording = Recording(teacher, images.shape[-1])
    return [_measure_producers(criterion, follow_channels(recording, node)) for node in nodes]


def measure_energy(teacher: nn.Module, node: str, channels: Tensor, images: Tensor) -> float:
    """Returns the share, 0 to 1, of a stage's energy that some channels carry: the sum of the squares of their
    activations on images (N, 3, S, S) over that of all channels; 0 where all are zero.
    """
    tap = freeze(Tap(teacher, node))
    with torch.inference_mode():
        energy = sum(_sum_squares(tap(batch), images.shape[-1]) for batch in _split_batches(images))
    assert isinstance(energy, Tensor)
    return _compute_share(energy, channels)


def measure_energies(
    teacher: nn.Module, nodes: Sequence[str], channels: Sequence[Tensor], images: Tensor
) -> list[float]:
    """Returns what `measure_energy` does for some stages with their channels, from one pass over the images where the
    teacher is a graph.
    """
    taps = freeze(Taps(teacher, nodes))
    assert isinstance(taps, Taps)
    if not isinstance(taps.graph, fx.GraphModule):
        return [measure_energy(teacher, node, kept, images) for node, kept in zip(nodes, channels, strict=True)]
    run = _EnergyRun(taps.graph, images.shape[-1])
    with torch.inference_mode():
        for batch in _split_batches(images):
            run.run(batch)
    return [_compute_share(run.energies[node], kept) for node, kept in zip(taps.nodes, channels, strict=True)]


class _EnergyRun(fx.Interpreter):
    """Runs a graph, and adds up the squares of each of its outputs as it is made: what comes later may overwrite it.

    Attributes:
        energies: of each output by its name, (C,) float64.
    """

    def __init__(self, graph: fx.GraphModule, image_size: int) -> None:
        super().__init__(graph)
        self.energies: dict[str, Tensor] = {}
        self._image_size = image_size
        self._names: dict[fx.Node, list[str]] = {}
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args
        for name, node in outputs.items():
            self._names.setdefault(node, []).append(name)

    def run_node(self, n: fx.Node) -> object:
        """Returns the value of a node."""
        value: object = super().run_node(n)
        for name in self._names.get(n, ()):
            assert isinstance(value, Tensor)
            energy = _sum_squares(value, self._image_size)
            self.energies[name] = self.energies[name] + energy if name in self.energies else energy
        return value


def select_channels(importance: Tensor, width: int) -> Tensor:
    """Returns the indices (width,) int64 of the most important channels, in their original order.

    Of equally important channels the first ones are kept.

    Raises:
        ValueError: there are fewer channels than `width`.
    """
    if width > importance.numel():
        raise ValueError(f"{width} channels asked for, there are {importance.numel()}")
    order = torch.argsort(importance, descending=True, stable=True)
    return order[:width].sort().values


def check_ranks(stage: str, teacher_shape: torch.Size, student_shape: torch.Size) -> None:
    """Raises StageError unless a pair's features are both maps (B, C, H, W) or both vectors (B, C)."""
    if len(teacher_shape) != len(student_shape) or len(teacher_shape) not in (2, 4):
        raise StageError(
            f"stage {stage}: the teacher gives {tuple(teacher_shape)[1:]} and the student {tuple(student_shape)[1:]}; "
            "both must be maps (C, H, W) or both vectors (C): name other nodes with --pair TEACHER:STUDENT"
        )


def check_widths(stage: str, teacher_shape: torch.Size, student_shape: torch.Size) -> None:
    """Checks that a student stage can imitate a teacher stage.

    Args:
        stage: the pair's name, for the message.
        teacher_shape: (B, C_t, H, W) or (B, C_t).
        student_shape: (B, C_s, h, w) or (B, C_s).

    Raises:
        StageError: the ranks differ, a rank is neither 2 nor 4, or the teacher is narrower than the student.
    """
    check_ranks(stage, teacher_shape, student_shape)
    if teacher_shape[1] < student_shape[1]:
        raise StageError(
            f"stage {stage}: the teacher has {teacher_shape[1]} channels, fewer than the student's "
            f"{student_shape[1]}, so there is nothing to prune: use a narrower student, pair this student stage "
            "with a wider teacher stage by --pair TEACHER:STUDENT, or --set targets.alignment=regressor"
        )


def align_sizes(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both maps with the larger one pooled to the smaller (adaptive average); vectors as they are."""
    if teacher.dim() != 4 or teacher.shape[2:] == student.shape[2:]:
        return teacher, student
    size = (min(teacher.shape[2], student.shape[2]), min(teacher.shape[3], student.shape[3]))
    return F.adaptive_avg_pool2d(teacher, size), F.adaptive_avg_pool2d(student, size)


def _sum_squares(feature: Tensor, image_size: int) -> Tensor:
    """Returns the squares of a stage's channels (C,) float64: the mean over positions, summed over images."""
    return _average_positions(to_map(feature, image_size).double().square()).sum(0)


def _compute_share(energy: Tensor, channels: Tensor) -> float:
    total = float(energy.sum())
    return float(energy[channels.to(energy.device)].sum()) / total if total else 0.0


def _measure_producers(criterion: Criterion, producers: Sequence[Producer]) -> Tensor:
    measures = {"l1": measure_importance, "l2": measure_l2, "fpgm": measure_distances}
    if criterion == "bn-scale":
        return torch.cat([measure_scale(producer) for producer in producers])
    return torch.cat([measures[criterion](producer.layer) for producer in producers])


def _draw_importance(teacher: nn.Module, node: str, images: Tensor, seed: int) -> Tensor:
    with torch.inference_mode():
        width = freeze(Tap(teacher, node))(images[:2]).shape[1]
    return torch.rand(width, generator=torch.Generator().manual_seed(seed))


def _average_positions(feature: Tensor) -> Tensor:
    """Returns the mean over the positions of a map (B, C, H, W), or a vector (B, C) as it is."""
    return feature.mean((2, 3)) if feature.dim() == 4 else feature


def _split_batches(images: Tensor) -> list[Tensor]:
    return [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]
