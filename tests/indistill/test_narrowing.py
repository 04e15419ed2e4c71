"""A narrow network: what it keeps, that it computes what its kept channels did, and that it can be made again."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models

from indistill.errors import ModelError
from indistill.models.narrowing import NarrowNetwork, narrow, round_width
from indistill.models.paper import PaperCnn, PaperResNet18
from indistill.models.resizing import Narrowing, describe_shapes, reinitialise, resize
from indistill.pruning.channels import measure_importance, select_channels
from indistill.pruning.producers import find_producers

SIDE = 32


def build_timm(name: str, **arguments: object) -> nn.Module:
    return timm.create_model(name, num_classes=5, **arguments)


def build_vgg() -> nn.Module:
    """Convolutions without batch norm, whose last map is flattened."""
    layers = [nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 5))


def build_grouped() -> nn.Module:
    """A convolution of four groups between two whole ones, and group norm."""
    layers = [nn.Conv2d(3, 64, 3, bias=False), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=4, bias=False)]
    return nn.Sequential(
        *layers,
        nn.GroupNorm(2, 64),
        nn.ReLU(),
        nn.Conv2d(64, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


CONVOLUTIONAL: dict[str, Callable[[], nn.Module]] = {
    "pre-activation": lambda: PaperResNet18(width=16),
    "plain": lambda: PaperCnn((16, 32, 64), 128),
    "vgg": build_vgg,
    "residual": lambda: models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5),
    "bottleneck in groups": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=16
    ),
    "resnet10t": lambda: build_timm("resnet10t"),
    "inverted residual": lambda: build_timm("mobilenetv3_small_050"),
    "squeeze and excite": lambda: build_timm("seresnet18", layers=(1, 1, 1, 1), channels=(16, 32, 64, 64)),
    "dense": lambda: models.DenseNet(16, (2, 2), 32, num_classes=5),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "groups": build_grouped,
    "convnext": lambda: build_timm("convnext_atto", depths=(1, 1, 1, 1), dims=(16, 32, 64, 64)),
    "torchvision's convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(32, 64, 1), models.convnext.CNBlockConfig(64, None, 2)], num_classes=5
    ),
    "vit": lambda: build_timm("vit_tiny_patch16_224", img_size=SIDE, depth=2, embed_dim=64, num_heads=4),
    "vit with more norms": lambda: build_timm(
        "vit_tiny_patch16_224", img_size=SIDE, depth=1, embed_dim=64, num_heads=4, qk_norm=True, init_values=0.1
    ),
    "torchvision's vit": lambda: models.VisionTransformer(SIDE, 16, 2, 4, 64, 128, num_classes=5),
}
NETWORKS = CONVOLUTIONAL | OTHERS


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return NETWORKS[name]().eval()


def draw_images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def list_widths(network: nn.Module) -> dict[str, int]:
    layers = network.named_modules()
    return {name: len(layer.weight) for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


def empty_dropped_channels(network: nn.Module, narrowed: NarrowNetwork) -> nn.Module:
    """Returns a copy in which the channels that were left out are zero everywhere, its batch norms being fresh."""
    emptied = copy.deepcopy(network)
    for name, keep in narrowed.kept.items():
        layer = emptied.get_submodule(name)
        for parameter in layer.parameters():
            mask = torch.zeros(len(parameter)).index_fill(0, keep, 1)
            parameter.data *= mask.view(-1, *[1] * (parameter.dim() - 1))
    return emptied


@pytest.mark.parametrize(
    ("channels", "width", "kept"),
    [
        (64, 0.5, 32),
        (64, 0.3, 16),
        (64, 0.32, 24),
        (64, 0.01, 8),
        (20, 0.5, 8),
        (20, 0.99, 16),
        (6, 0.5, 6),
        (8, 0.5, 8),
    ],
)
def test_a_width_is_a_multiple_of_eight_and_never_below(channels: int, width: float, kept: int) -> None:
    assert round_width(channels, width) == kept


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrow_network_has_channels_in_multiples_of_eight_and_all_its_outputs(name: str) -> None:
    network = build(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    narrowed = narrow(network, 0.5, SIDE).module
    assert (
        narrowed(draw_images()).shape
        == network(draw_images()).shape
        == (2, (10 if name in ("plain", "pre-activation") else 5))
    )
    for layer, old in list_widths(network).items():
        new = list_widths(narrowed)[layer]
        assert new == old or (new % 8 == 0 and new >= 8), layer
    after = network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not network.training
    assert all(parameter.requires_grad for parameter in narrowed.parameters())


@pytest.mark.parametrize("name", ["pre-activation", "plain", "vgg", "residual", "resnet10t"])
def test_half_the_width_has_about_a_quarter_of_the_parameters(name: str) -> None:
    network = build(name)
    assert 0.23 < count_parameters(narrow(network, 0.5, SIDE).module) / count_parameters(network) < 0.35


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_channels_that_stay_compute_what_they_did_among_empty_ones(name: str) -> None:
    network = build(name)
    narrowed = narrow(network, 0.5, SIDE)
    emptied = empty_dropped_channels(network, narrowed)
    with torch.no_grad():
        expected, changed = emptied(draw_images()), network(draw_images())
        torch.testing.assert_close(narrowed.module(draw_images()), expected)
    assert not torch.allclose(expected, changed)  # the twin: the channels that went out did something


@pytest.mark.parametrize("name", ["vit", "torchvision's vit"])
def test_attention_loses_whole_heads(name: str) -> None:
    network = build(name)
    narrowed = narrow(network, 0.5, SIDE)
    if name == "vit":
        attention, old = narrowed.module.blocks[0].attn, network.blocks[0].attn
        shares = old.proj.weight.detach().abs().sum(0).view(4, 16).sum(1)
        rows = narrowed.kept["blocks.0.attn.qkv"]
        stream = narrowed.kept["blocks.1.mlp.fc2"]
        assert torch.equal(attention.qkv.weight, old.qkv.weight[rows][:, stream])
        assert sorted(set((rows[:32] // 16).tolist())) == sorted(shares.topk(2).indices.tolist())
    else:
        attention = narrowed.module.encoder.layers[0].self_attention
        assert attention.in_proj_weight.shape == (96, 32)
    assert (attention.num_heads, attention.head_dim) == (2, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_record_makes_the_same_network_again(name: str) -> None:
    network = build(name)
    narrowed = narrow(network, 0.4, SIDE).module
    again = build(name, seed=5)
    resize(again, Narrowing(0.4, False, *describe_shapes(network, narrowed)))
    again.load_state_dict(narrowed.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(again(draw_images()), narrowed(draw_images()))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("pre-activation", {"stage1": 16, "stage2": 32, "stage3": 64, "stage4": 128}),
        ("residual", {"layer1": 64, "layer2": 128}),
        ("squeeze and excite", {"layer1": 16, "layer2": 32}),
    ],
)
def test_the_same_channels_are_kept_that_indistill_selects_of_each_stage(name: str, stages: dict[str, int]) -> None:
    network = build(name)
    narrowed = narrow(network, 0.5, SIDE)
    for stage, width in stages.items():
        (producer,) = find_producers(network, stage, SIDE)
        assert torch.equal(
            narrowed.kept[producer.name], select_channels(measure_importance(producer.layer), width // 2)
        )


def test_modes_and_frozen_parameters_stay_as_they_were() -> None:
    network = build("residual").train()
    network.bn1.eval()
    network.conv1.requires_grad_(False)
    narrowed = narrow(network, 0.5, SIDE).module
    assert narrowed.training
    assert not narrowed.bn1.training
    assert not narrowed.conv1.weight.requires_grad
    assert narrowed.fc.weight.requires_grad


def test_a_network_that_mixes_channels_with_positions_is_refused() -> None:
    network = timm.models.MlpMixer(5, 64, patch_size=32, num_blocks=1, embed_dim=64)
    with pytest.raises(
        ModelError, match=r"MlpMixer cannot be narrowed to width:0.5.*name a student of its own with --st"
    ):
        narrow(network, 0.5, 64)


def test_a_network_that_cannot_become_narrower_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    with pytest.raises(
        ModelError, match=r"width:0.5 leaves nothing out of Sequential: layers keep 8 channels at least"
    ):
        narrow(network, 0.5, SIDE)


def test_a_record_of_another_network_is_refused() -> None:
    for tensors, sizes in (
        ({"fc3.weight": "8x8"}, {}),
        ({"fc1.weight": "8"}, {}),
        ({"fc1.weight": "999x64"}, {}),
        ({}, {"fc1.nothing": 3}),
    ):
        with pytest.raises(ModelError, match="the narrow network of the run cannot be built again"):
            resize(build("plain"), Narrowing(0.5, False, tensors, sizes))
    with pytest.raises(ModelError, match="'narrowing' cannot be read"):
        Narrowing.from_dict({"width": 0.5})


def test_layers_are_drawn_anew_and_bare_parameters_are_kept() -> None:
    network = build("torchvision's vit")
    old = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    reinitialise(network)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(first["encoder.pos_embedding"], old["encoder.pos_embedding"])
    for name in ("conv_proj.weight", "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"):
        assert not torch.equal(first[name], old[name])
    torch.manual_seed(3)
    reinitialise(network)
    assert all(torch.equal(value, first[name]) for name, value in network.state_dict().items())
