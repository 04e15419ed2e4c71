import pytest
import torch
from torch import nn

from indistill.errors import StageError
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.models.specs import build_network, parse_model_spec
from indistill.stages.graph import (
    Embedder,
    Tap,
    check_node,
    find_embedding_node,
    freeze,
    freeze_cancelled_biases,
    list_nodes,
    parse_pairs,
    use_batch_statistics,
)


def count_calls(network: nn.Module, run) -> list[str]:
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in network.named_modules()
        if not list(module.children()) and name
    ]
    run()
    for handle in handles:
        handle.remove()
    return called


def set_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return network


def test_a_tap_runs_no_further_than_its_stage() -> None:
    network = build_cnn_s()
    tap = Tap(network, "stage2")
    called = count_calls(network, lambda: tap(torch.zeros(2, 3, 32, 32)))
    assert called == ["conv1", "conv1_bn", "pool", "stage1", "conv2", "conv2_bn", "pool", "stage2"]


def test_the_twin_a_whole_network_runs_further() -> None:
    network = build_cnn_s()
    assert "fc1" in count_calls(network, lambda: network(torch.zeros(2, 3, 32, 32)))


def test_training_a_tap_trains_the_network() -> None:
    network = build_cnn_s()
    Tap(network, "stage1")(torch.randn(4, 3, 32, 32)).sum().backward()
    assert network.conv1.weight.grad is not None
    assert network.conv2.weight.grad is None


@pytest.mark.parametrize("spec", ["paper:cnn-a", "paper:resnet18?width=8", "torchvision:resnet18", "timm:resnet10t"])
def test_freezing_changes_no_value_and_leaves_the_network_alone(spec: str) -> None:
    network = set_statistics(build_network(parse_model_spec(spec))).eval()
    node = find_embedding_node(network)
    images = torch.randn(3, 3, 32, 32)
    frozen = freeze(Embedder(network, node))
    with torch.no_grad():
        expected = Embedder(network, node).eval()(images)
        assert torch.allclose(frozen(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_batch_norm_behind_a_convolution_is_folded() -> None:
    frozen = freeze(Tap(build_cnn_a(), "stage3"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())


def test_tracing_keeps_the_mode_of_every_module() -> None:
    network = build_cnn_s().train()
    network.conv2_bn.eval()
    Tap(network, "stage1")
    list_nodes(network)
    assert network.training
    assert network.conv1_bn.training
    assert not network.conv2_bn.training


def test_a_bias_that_a_batch_norm_cancels_is_not_trained() -> None:
    network = build_cnn_s().train()
    images = torch.randn(4, 3, 32, 32)
    Tap(network, "stage2")(images).square().sum().backward()
    assert network.conv1.bias.grad.abs().max() < 1e-3 * network.conv1.weight.grad.abs().max()  # nothing but rounding
    freeze_cancelled_biases(Tap(network, "embedding").graph)
    assert {name for name, value in network.named_parameters() if not value.requires_grad} == {
        "conv1.bias",
        "conv2.bias",
        "conv3.bias",
    }


def test_a_bias_that_something_else_reads_is_trained() -> None:
    class Branched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    network = Branched()
    freeze_cancelled_biases(Tap(network, "add").graph)
    assert network.conv.bias.requires_grad


def test_faithful_targets_use_the_batch_and_drop_the_shift() -> None:
    teacher = set_statistics(build_cnn_a()).eval()
    tap = Tap(teacher, "stage2")
    use_batch_statistics(tap)
    frozen = freeze(tap)
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        x = teacher.conv2(Tap(teacher, "stage1").eval()(images))
        mean, std = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True).add(1e-5).sqrt()
        scaled = (x - mean) / std * teacher.conv2_bn.weight.view(1, -1, 1, 1)
        expected = nn.functional.max_pool2d(torch.relu(scaled), 2)
        assert torch.allclose(frozen(images), expected, atol=1e-4)
    assert teacher.conv2_bn.track_running_stats


def test_faithful_needs_a_batch_norm_behind_the_convolution() -> None:
    network = build_network(parse_model_spec("paper:resnet18?width=8"))
    with pytest.raises(StageError, match="need a batch norm"):
        use_batch_statistics(Tap(network, "stage1"))


def test_an_unknown_node_lists_what_there_is() -> None:
    with pytest.raises(StageError, match=r"the teacher has no node 'stage4'\. Did you mean 'stage"):
        check_node(build_cnn_a(), "stage4", "teacher")


def test_pairs_are_two_nodes_with_a_colon() -> None:
    (pair,) = parse_pairs(["layer1.0:features.3"])
    assert (pair.teacher, pair.student) == ("layer1.0", "features.3")
    for text in ("layer1", ":a", "a:"):
        with pytest.raises(StageError, match="TEACHER_NODE:STUDENT_NODE"):
            parse_pairs([text])


def test_maps_and_tokens_are_averaged_to_one_vector() -> None:
    network = build_cnn_s().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(Embedder(network, "stage3")(images), Tap(network, "stage3")(images).mean((2, 3)))


def test_a_layer_that_is_called_twice_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.conv(self.first(self.conv(x))))

    network, images = set_statistics(Shared()).eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.allclose(freeze(Tap(network, "second"))(images), network(images), atol=1e-5)
