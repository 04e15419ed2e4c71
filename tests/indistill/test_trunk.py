import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.errors import ModelError, StageError
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.models.specs import build_network, parse_model_spec
from indistill.pruning.producers import find_producers
from indistill.stages.graph import Tap, trace_network
from indistill.stages.trunk import describe_stages, find_stages

FAMILIES = {  # node, channels and side of each stage at 64 pixels
    "torchvision:resnet18": [("relu", 64, 32), ("layer1", 64, 16), ("layer2", 128, 8), ("layer3", 256, 4)],
    "torchvision:densenet121": [("features.relu0", 64, 32), ("features.denseblock1", 256, 16)],
    "torchvision:mobilenet_v2": [("features.1", 16, 32), ("features.3", 24, 16), ("features.6", 32, 8)],
    "timm:test_efficientnet": [("blocks.0", 16, 32), ("blocks.1", 24, 16), ("blocks.2", 32, 8), ("blocks.3", 48, 4)],
    "timm:test_convnext": [("stages.0", 24, 16), ("stages.1", 32, 8), ("stages.2", 48, 4), ("stages.3", 64, 2)],
    "timm:pvt_v2_b0": [("stages.0", 32, 16), ("stages.1", 64, 8), ("stages.2", 160, 4), ("stages.3", 256, 2)],
    "timm:test_vit?img_size=64": [("blocks.1", 64, 4), ("blocks.2", 64, 4), ("blocks.4", 64, 4), ("blocks.5", 64, 4)],
}


def build(spec: str) -> nn.Module:
    return build_network(parse_model_spec(spec), {"image_size": 64, "num_classes": 4})


@pytest.mark.parametrize("spec", FAMILIES)
def test_stages_are_the_last_nodes_at_each_resolution_or_quarters_of_the_blocks(spec: str) -> None:
    stages = find_stages(build(spec), 64)
    expected = FAMILIES[spec]
    assert [(stage.node, stage.channels, stage.side) for stage in stages[: len(expected)]] == expected
    assert [stage.stride for stage in stages] == [64 / stage.side for stage in stages]
    depths = [stage.depth for stage in stages]
    assert depths == sorted(depths)
    assert 0.8 < depths[-1] <= 1


def test_stages_of_a_plain_convolutional_network_end_before_its_pooling() -> None:
    """As in VGG, with an adaptive pooling that enlarges the last map."""
    layers: list[nn.Module] = []
    for before, width in ((3, 4), (4, 6), (6, 8)):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(392, 2))
    found = [(stage.node, stage.channels, stage.side) for stage in find_stages(network, 16)]
    assert found == [("0.2", 4, 16), ("0.6", 6, 8), ("0.10", 8, 4)]


def test_channels_last_trunks_give_maps() -> None:
    class Windowed(nn.Module):
        """A trunk (B, H, W, C), as in Swin."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.first = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 12)
            self.merge, self.second, self.head = nn.Linear(48, 24), nn.Linear(24, 24), nn.Linear(24, 3)

        def forward(self, image: Tensor) -> Tensor:
            x = self.stem(image).permute(0, 2, 3, 1)
            x = x + self.first(x)
            x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
            x = self.merge(x)
            x = x + self.second(x)
            return self.head(x.mean((1, 2)))

    network = Windowed().eval()
    stages = find_stages(network, 32)
    assert [(stage.channels, stage.side) for stage in stages] == [(12, 8), (24, 4)]
    image = torch.randn(2, 3, 32, 32)
    assert Tap(network, stages[0].node)(image).shape == (2, 12, 8, 8)
    assert find_producers(network, stages[1].node, 32)[0].name == "second"


def test_finding_stages_leaves_a_network_as_it_was() -> None:
    network = build_cnn_s().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    find_stages(network, 32)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_image_size_that_a_network_cannot_take_is_an_error_in_one_line() -> None:
    with pytest.raises(ModelError, match="PaperCnn cannot take images of 48x48 pixels") as caught:
        find_stages(build_cnn_a(), 48)
    assert "\n" not in str(caught.value)


class Block(nn.Module):
    """Ends in a gate, layer scale and a residual add whose shortcut runs last and is as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project, self.norm = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.scale, self.shortcut = nn.Parameter(torch.ones(6, 1, 1)), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.project(F.relu(self.depthwise(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.scale * (y * gate) + self.shortcut(x)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 2, 2), Block(), nn.Linear(6, 2)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.depthwise(self.block(self.stem(image))).mean((2, 3)))


@pytest.mark.parametrize("side", [16, 2])  # at 2 pixels features and gate have the same shape
def test_the_producer_is_found_through_shortcut_gate_layer_scale_and_depthwise_convolution(side: int) -> None:
    for node in ("block", "depthwise"):
        (producer,) = find_producers(Blocks(), node, side)
        assert producer.name == "block.project"
        assert isinstance(producer.layer, nn.Conv2d)


def test_the_batch_norm_of_a_producer_is_the_one_right_behind_it() -> None:
    (producer,) = find_producers(build_cnn_a(), "stage2", 32)
    assert producer.name == "conv2"
    assert producer.norm is not None
    assert producer.norm.num_features == 32
    (bare,) = find_producers(build("paper:resnet18?width=8"), "stage2", 64)
    assert (bare.name, bare.norm) == ("stage2.1.conv2", None)


def test_a_transformer_blocks_producer_is_its_output_projection() -> None:
    (producer,) = find_producers(build("timm:test_vit?img_size=64"), "blocks.2", 64)
    assert producer.name == "blocks.2.mlp.fc2"


def test_a_concatenation_has_several_producers_in_its_order() -> None:
    producers = find_producers(build("torchvision:densenet121"), "features.denseblock1", 64)
    names = ["features.conv0", *(f"features.denseblock1.denselayer{i}.conv2" for i in range(1, 7))]
    assert [producer.name for producer in producers] == names
    assert sum(producer.layer.weight.shape[0] for producer in producers) == 256


def test_shuffled_channels_have_no_producer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(8 * 16, 2))
    with pytest.raises(StageError, match="use --criterion activation"):
        find_producers(network, "1", 4)


class Branching(nn.Module):
    """Cannot be traced: it asks for the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.second, self.head = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()), nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(self.stem(image if image.shape[-1] > 4 else F.pad(image, (2, 2, 2, 2))))
        return self.head(self.second(x).mean((2, 3)))


def test_stages_of_a_network_that_cannot_be_traced_are_its_modules() -> None:
    assert trace_network(Branching()) is None
    stages = find_stages(Branching(), 32)
    assert [(stage.node, stage.channels, stage.side) for stage in stages] == [("first", 8, 16), ("second", 16, 8)]
    assert find_producers(Branching(), "second", 32)[0].name == "second.0"


def test_a_node_is_described_by_what_it_gives() -> None:
    (vector,) = describe_stages(build_cnn_a(), ["embedding"], 32)
    assert (vector.channels, vector.side) == (128, None)

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, (3, 1))

        def forward(self, image: Tensor) -> Tensor:
            return self.conv(image).mean((2, 3))

    with pytest.raises(StageError, match=r"'conv' gives \(4, 6, 8\), which is neither a map"):
        describe_stages(Odd(), ["conv"], 8)
