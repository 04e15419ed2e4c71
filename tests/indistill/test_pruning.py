import math
import re

import pytest
import torch
from torch import Tensor, nn

from indistill.errors import StageError
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.models.specs import build_network, parse_model_spec
from indistill.pruning.channels import (
    align_sizes,
    check_ranks,
    check_widths,
    measure_by,
    measure_energies,
    measure_energy,
    measure_importance,
    measure_stages,
    select_channels,
)
from indistill.pruning.criteria import CRITERIA
from indistill.stages.graph import Tap, freeze
from indistill.stages.taps import Taps

SIDE = 24
IMAGES = torch.randn(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    network = build_cnn_a(image_size=SIDE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 1)
            module.running_mean.normal_()
    return network.eval()


def measure(criterion, teacher: nn.Module, seed: int = 0) -> list[float]:
    return measure_by(criterion, teacher, "stage2", "embedding", IMAGES, seed).tolist()


def test_norms_of_filters_are_sums_over_all_their_weights(teacher) -> None:
    filters = teacher.conv2.weight.tolist()
    flat = [[weight for plane in kernel for row in plane for weight in row] for kernel in filters]
    assert measure("l1", teacher) == pytest.approx([sum(abs(w) for w in kernel) for kernel in flat], rel=1e-4)
    assert measure("l2", teacher) == pytest.approx([math.hypot(*kernel) for kernel in flat], rel=1e-4)


def test_fpgm_is_the_sum_of_distances_to_the_other_filters(teacher) -> None:
    flat = teacher.conv2.weight.flatten(1).tolist()
    expected = [sum(math.dist(a, b) for b in flat) for a in flat]
    assert measure("fpgm", teacher) == pytest.approx(expected, rel=1e-4)


def test_fpgm_tells_filters_apart_that_differ_in_their_last_digit() -> None:
    step, network = 2.0**-23, nn.Sequential(nn.Conv2d(3, 40, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network[0].weight.data[:, 0] = 1 + step * torch.arange(40)[:, None, None]
    network[0].weight.data[:, 1:] = 100  # against whose squares the steps would be lost
    found = measure_by("fpgm", network, "0", "2", IMAGES[:2]).tolist()
    assert found == pytest.approx([step * sum(abs(i - j) for j in range(40)) for i in range(40)], rel=1e-5)


def test_bn_scale_is_the_absolute_gamma_behind_the_producer(teacher) -> None:
    assert measure("bn-scale", teacher) == pytest.approx([abs(w) for w in teacher.conv2_bn.weight.tolist()])


def test_activation_is_averaged_over_images_and_positions(teacher) -> None:
    sums, tap = [0.0] * 32, Tap(teacher, "stage2")
    with torch.no_grad():
        for image in IMAGES:
            feature = tap(image[None])[0]
            for channel in range(32):
                sums[channel] += float(feature[channel].abs().mean())
    assert measure("activation", teacher) == pytest.approx([value / len(IMAGES) for value in sums], rel=1e-3)


def test_taylor_is_activation_times_gradient_of_half_the_squared_embedding(teacher) -> None:
    def run_rest(feature: Tensor) -> Tensor:
        x = teacher.stage3(teacher.pool(teacher.conv3_bn(teacher.conv3(feature))))
        return teacher.embedding(teacher.fc1(x.flatten(1)))

    sums, tap = [0.0] * 32, Tap(teacher, "stage2")
    for image in IMAGES:
        with torch.no_grad():
            feature = tap(image[None])
        feature.requires_grad_(True)
        (run_rest(feature).square().sum() / 2).backward()
        for channel in range(32):
            sums[channel] += abs(float((feature.grad * feature.detach())[0, channel].mean()))
    found = measure("taylor", teacher)
    assert found == pytest.approx([value / len(IMAGES) for value in sums], rel=1e-2, abs=1e-6)


def test_random_is_seeded(teacher) -> None:
    assert measure("random", teacher, 1) == measure("random", teacher, 1) != measure("random", teacher, 2)


def test_no_criterion_changes_the_teacher() -> None:
    network = build_cnn_s(image_size=SIDE).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for criterion in CRITERIA:
        assert measure_by(criterion, network, "stage2", "embedding", IMAGES).shape == (16,)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_criteria_that_cannot_be_used_say_so() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2))
    images = IMAGES[:2, :, :4, :4]
    with pytest.raises(StageError, match="needs a batch norm behind '0', and there is none"):
        measure_by("bn-scale", network, "1", "2", images)
    with pytest.raises(StageError, match="the embedding '0' does not depend on '2'"):
        measure_by("taylor", network, "2", "0", images)


def test_energy_is_the_share_of_the_squares(teacher) -> None:
    channels = torch.tensor([0, 3, 4])
    kept, total, tap = 0.0, 0.0, Tap(teacher, "stage2")
    with torch.no_grad():
        for image in IMAGES:
            squares = tap(image[None])[0].square().sum((1, 2)).tolist()
            kept, total = kept + squares[0] + squares[3] + squares[4], total + sum(squares)
    assert measure_energy(teacher, "stage2", channels, IMAGES) == pytest.approx(kept / total, rel=1e-4)
    assert measure_energy(teacher, "stage2", torch.arange(32), IMAGES) == pytest.approx(1)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_several_stages_are_measured_as_each_by_itself(teacher, criterion) -> None:
    nodes = ["stage1", "stage3", "stage2"]
    together = measure_stages(criterion, teacher, nodes, "embedding", IMAGES, 5)
    for number, node in enumerate(nodes):
        assert torch.equal(together[number], measure_by(criterion, teacher, node, "embedding", IMAGES, 5 + number))


@pytest.mark.parametrize(
    ("spec", "nodes"),
    [
        ("torchvision:resnet18", ["bn1", "relu", "layer1", "layer1.0.bn1", "layer1.1.relu_1", "layer3"]),
        ("timm:test_vit?img_size=64", ["blocks.0", "blocks.2"]),
    ],
)
def test_energies_of_several_stages_are_those_of_each_though_layers_overwrite_them(spec: str, nodes: list[str]) -> None:
    torch.manual_seed(0)
    network = build_network(parse_model_spec(spec))
    images = torch.randn(40, 3, 64, 64)
    channels = [torch.arange(0, 8)] * len(nodes)
    expected = [measure_energy(network, node, kept, images) for node, kept in zip(nodes, channels, strict=True)]
    assert measure_energies(network, nodes, channels, images) == pytest.approx(expected, rel=1e-5)


def test_pruning_the_layer_is_an_index_select_on_the_tapped_feature(teacher) -> None:
    """The published code makes a second, narrower convolution that reads the unpruned stage before it."""
    keep = select_channels(measure_importance(teacher.conv2), 16)
    images = IMAGES[:4]
    with torch.no_grad():
        conv, norm = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16).eval()
        conv.weight.copy_(teacher.conv2.weight[keep])
        conv.bias.copy_(teacher.conv2.bias[keep])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data.copy_(getattr(teacher.conv2_bn, name)[keep])
        before = Tap(teacher, "stage1").eval()(images)
        expected = nn.functional.max_pool2d(torch.relu(norm(conv(before))), 2)
        selected = freeze(Tap(teacher, "stage2"))(images)[:, keep]
    assert torch.allclose(selected, expected, atol=1e-4)


def test_the_most_important_channels_are_kept_in_their_order() -> None:
    layer = nn.Conv2d(1, 4, 1, bias=False)
    layer.weight.data = torch.tensor([3.0, -5.0, 0.5, 4.0]).view(4, 1, 1, 1)
    assert measure_importance(layer).tolist() == [3, 5, 0.5, 4]
    assert select_channels(measure_importance(layer), 3).tolist() == [0, 1, 3]
    assert select_channels(torch.tensor([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]
    assert select_channels(torch.tensor([2.0, 1.0, 3.0]), 3).tolist() == [0, 1, 2]
    thirds = torch.arange(30).remainder(3).eq(0).float()
    assert select_channels(thirds, 15).tolist() == sorted([*range(0, 30, 3), 1, 2, 4, 5, 7])
    with pytest.raises(ValueError, match=r"^5 channels asked for, there are 4$"):
        select_channels(measure_importance(layer), 5)


def test_larger_maps_are_pooled_to_smaller_ones() -> None:
    teacher, student = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    pooled, same = align_sizes(teacher, student)
    assert pooled.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert same.shape == (1, 1, 2, 2)
    same, pooled = align_sizes(student, teacher)
    assert same.shape == (1, 1, 2, 2)
    assert pooled.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_each_side_of_a_map_is_pooled_by_itself_and_vectors_are_as_they_are() -> None:
    teacher, student = torch.arange(4.0).view(1, 1, 4, 1), torch.arange(10.0).view(1, 1, 2, 5)
    pooled = align_sizes(teacher, student)
    assert pooled[0].tolist() == [[[[0.5], [2.5]]]]
    assert pooled[1].tolist() == [[[[2], [7]]]]
    vectors = torch.zeros(2, 3), torch.zeros(2, 4)
    assert [a is b for a, b in zip(align_sizes(*vectors), vectors, strict=True)] == [True, True]
    maps = torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3)
    assert [a is b for a, b in zip(align_sizes(*maps), maps, strict=True)] == [True, True]


def test_a_narrower_teacher_names_the_stage_and_both_widths() -> None:
    mend = (
        "so there is nothing to prune: use a narrower student, pair this student stage with a wider teacher stage by "
        "--pair TEACHER:STUDENT, or --set targets.alignment=regressor"
    )
    words = f"^stage a:b: the teacher has 8 channels, fewer than the student's 16, {mend}$"
    with pytest.raises(StageError, match=words):
        check_widths("a:b", torch.Size((2, 8, 4, 4)), torch.Size((2, 16, 4, 4)))
    check_widths("a:b", torch.Size((2, 16, 4, 4)), torch.Size((2, 16, 8, 8)))
    check_widths("a:b", torch.Size((2, 17)), torch.Size((2, 16)))


@pytest.mark.parametrize("teacher", [(2, 8, 4, 4), (2, 8, 4), (2,)])
@pytest.mark.parametrize("check", [check_ranks, check_widths])
def test_stages_are_both_maps_or_both_vectors(check, teacher: tuple[int, ...]) -> None:
    words = (
        f"the teacher gives {teacher[1:]} and the student (8,); both must be maps (C, H, W) or both vectors (C): name"
    )
    with pytest.raises(StageError, match=f"^stage a:b: {re.escape(words)} other nodes with --pair TEACHER:STUDENT$"):
        check("a:b", torch.Size(teacher), torch.Size((2, 8)))
    if len(teacher) != 4:
        with pytest.raises(StageError, match="both must be maps"):
            check("a:b", torch.Size(teacher), torch.Size(teacher))
    check("a:b", torch.Size((2, 8)), torch.Size((2, 8)))


def make_branches(affine: bool = True) -> nn.Module:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.slim = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
            self.wide_bn, self.slim_bn = nn.BatchNorm2d(4, affine=affine), nn.BatchNorm2d(2)
            self.embedding = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.wide_bn(self.wide(x)), self.slim_bn(self.slim(x))], dim=1)
            return self.embedding(joined.mean((2, 3)))

    torch.manual_seed(0)
    return Branches().eval()


def test_a_stage_that_several_layers_make_has_the_channels_of_each_in_turn() -> None:
    network = make_branches()
    network.wide_bn.weight.data.uniform_(-1, 1)
    weights = [*network.wide.weight.detach().flatten(1), *network.slim.weight.detach().flatten(1)]
    found = measure_by("l1", network, "cat", "embedding", IMAGES[:2]).tolist()
    assert found == pytest.approx([float(row.abs().sum()) for row in weights])
    scales = measure_by("bn-scale", network, "cat", "embedding", IMAGES[:2]).tolist()
    assert scales == pytest.approx([*network.wide_bn.weight.abs().tolist(), 1, 1])


def test_a_norm_without_a_scale_is_none_for_bn_scale() -> None:
    words = "needs a batch norm behind 'wide', and there is none: use l1, l2, fpgm, taylor, activation or random$"
    with pytest.raises(StageError, match=words):
        measure_by("bn-scale", make_branches(affine=False), "cat", "embedding", IMAGES[:2])


def test_taylor_is_of_what_a_layer_gives_though_the_next_one_overwrites_it() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    feature = network[0](IMAGES)
    embedding = nn.functional.silu(feature).mean((2, 3))
    (gradient,) = torch.autograd.grad(embedding.square().sum() / 2, feature)
    expected = (feature.detach() * gradient).mean((2, 3)).abs().mean(0)
    found = measure_by("taylor", network, "0", "3", IMAGES)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert network[1].inplace
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_taylor_of_tokens_is_averaged_over_the_patches() -> None:
    torch.manual_seed(0)
    network = build_network(parse_model_spec("timm:test_vit?img_size=32")).eval()
    node, embedding, images = "blocks.0", "fc_norm", torch.randn(3, 3, 32, 32)
    feature, output = Taps(network, [node, embedding])(images.requires_grad_())
    (gradient,) = torch.autograd.grad(output.square().sum() / 2, feature)
    products = (feature * gradient)[:, 1:].mean(1)  # without the class token
    found = measure_by("taylor", network, node, embedding, images.detach())
    assert found.tolist() == pytest.approx(products.abs().mean(0).tolist(), rel=1e-4)


def test_the_seed_of_random_is_zero_unless_another_is_given(teacher) -> None:
    expected = torch.rand(32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(measure_by("random", teacher, "stage2", "embedding", IMAGES), expected)
    assert torch.equal(measure_stages("random", teacher, ["stage2"], "embedding", IMAGES)[0], expected)


def test_the_share_of_nothing_is_zero() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    for parameter in network.parameters():
        parameter.data.zero_()
    assert measure_energy(network, "0", torch.tensor([0, 1]), IMAGES[:2]) == 0


def test_energies_of_a_teacher_that_is_no_graph_are_those_of_each_stage() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            feature = self.first(x)
            return self.second(feature) if float(feature.sum()) < 1e9 else feature

    torch.manual_seed(0)
    network, channels = Branching(), [torch.tensor([0, 2]), torch.tensor([1])]
    found = measure_energies(network, ["first", "second"], channels, IMAGES)
    nodes = zip(["first", "second"], channels, strict=True)
    assert found == [measure_energy(network, node, kept, IMAGES) for node, kept in nodes]


def test_energies_of_tokens_leave_out_those_that_stand_before_the_grid() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.registers = nn.Conv2d(3, 6, 16, 16), nn.Parameter(torch.randn(1, 5, 6))
            self.embedding = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            grid = self.patches(x).flatten(2).transpose(1, 2)
            return self.embedding(torch.cat([self.registers.expand(x.shape[0], -1, -1), grid], dim=1).mean(1))

    torch.manual_seed(0)
    network, images, kept = Tokens(), torch.randn(3, 3, 32, 32), torch.tensor([0, 4])
    squares = network.patches(images).detach().square().sum((0, 2, 3))
    expected = float(squares[kept].sum() / squares.sum())
    assert measure_energies(network, ["cat"], [kept], images) == pytest.approx([expected])
    assert measure_energy(network, "cat", kept, images) == pytest.approx(expected)


def test_a_stage_may_be_a_vector() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())
    images, kept = torch.randn(40, 3, 2, 2), torch.tensor([1, 3])
    vectors = network(images).detach()
    assert measure_by("activation", network, "2", "2", images).tolist() == pytest.approx(vectors.abs().mean(0).tolist())
    expected = float(vectors[:, kept].square().sum() / vectors.square().sum())
    assert measure_energy(network, "2", kept, images) == pytest.approx(expected)
    assert measure_energies(network, ["2"], [kept], images) == pytest.approx([expected])
    weights = network[1].weight.detach().abs().sum(1).tolist()
    assert measure_by("l1", network, "1", "2", images).tolist() == pytest.approx(weights)
