import math

import pytest
import torch
from torch import Tensor, nn

from indistill.errors import StageError
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.models.specs import build_network, parse_model_spec
from indistill.pruning.channels import measure_by, measure_energies, measure_energy, measure_stages
from indistill.pruning.criteria import CRITERIA
from indistill.stages.graph import Tap

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


def test_bn_scale_is_the_absolute_gamma_behind_the_producer(teacher) -> None:
    assert measure("bn-scale", teacher) == pytest.approx([abs(w) for w in teacher.conv2_bn.weight.tolist()])


def test_activation_is_averaged_over_images_and_positions(teacher) -> None:
    sums = [0.0] * 32
    with torch.no_grad():
        for image in IMAGES:
            feature = Tap(teacher, "stage2")(image[None])[0]
            for channel in range(32):
                sums[channel] += float(feature[channel].abs().mean())
    assert measure("activation", teacher) == pytest.approx([value / len(IMAGES) for value in sums], rel=1e-3)


def test_taylor_is_activation_times_gradient_of_half_the_squared_embedding(teacher) -> None:
    def run_rest(feature: Tensor) -> Tensor:
        x = teacher.stage3(teacher.pool(teacher.conv3_bn(teacher.conv3(feature))))
        return teacher.embedding(teacher.fc1(x.flatten(1)))

    sums = [0.0] * 32
    for image in IMAGES:
        with torch.no_grad():
            feature = Tap(teacher, "stage2")(image[None])
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
    kept = total = 0.0
    with torch.no_grad():
        for image in IMAGES:
            squares = Tap(teacher, "stage2")(image[None])[0].square().sum((1, 2)).tolist()
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
