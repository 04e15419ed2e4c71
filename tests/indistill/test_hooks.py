import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.errors import ModelError, StageError
from indistill.export.onnx import DeployedNetwork, export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.stages.graph import Embedder, Tap, check_node, find_embedding_node, freeze, list_nodes, trace_network
from indistill.stages.hooks import HookedNetwork, cut_network

SOURCE = """
import torch
from torch import nn

class Branching(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.second, self.head = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()), nn.Linear(16, num_classes)

    def forward(self, image):
        if image.shape[-1] < 8:
            raise ValueError("too small")
        return self.head(self.second(self.first(image)).mean((2, 3)))
"""
IMAGES = torch.randn(3, 3, 16, 16)


@pytest.fixture
def network(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    torch.manual_seed(0)
    return load_network(f"{tmp_path / 'mine.py'}:Branching", arguments={"image_size": 16})


def count_calls(network: nn.Module, run) -> list[str]:
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in network.named_modules()
        if not list(module.children())
    ]
    run()
    for handle in handles:
        handle.remove()
    return called


def test_a_network_that_cannot_be_traced_is_loaded_with_its_heads_input_as_embedding(network) -> None:
    assert trace_network(network.module) is None
    assert network.embedding == find_embedding_node(network.module, 16) == "head.input"
    assert list_nodes(network.module)[-3:] == ["head.input", "head", "output"]
    check_node(network.module, "second.0", "teacher")
    with pytest.raises(StageError, match=r"the teacher has no node 'third'.*It has: first, first.0"):
        check_node(network.module, "third", "teacher")


def test_the_embedding_is_the_output_where_there_is_no_head() -> None:
    class Headless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.shape[0] > 0 else x

    assert find_embedding_node(Headless(), 8) == "output"


def test_hooks_run_no_further_than_the_stage(network) -> None:
    tap = Tap(network.module, "first")
    assert count_calls(network.module, lambda: tap(IMAGES)) == ["first.0", "first.1", "first.2"]


def test_the_twin_a_whole_network_runs_further(network) -> None:
    assert count_calls(network.module, lambda: network.module(IMAGES))[-1] == "head"


def test_a_hooked_tap_leaves_no_hooks_and_trains_the_network(network) -> None:
    Tap(network.module, "first")(IMAGES).sum().backward()
    assert network.module.first[0].weight.grad is not None
    assert network.module.second[0].weight.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())


def test_a_hooked_embedder_and_its_frozen_copy_give_what_the_head_reads(network) -> None:
    module = network.module.eval()
    with torch.no_grad():
        expected = module.second(module.first(IMAGES)).mean((2, 3))
        embedder = Embedder(module, network.embedding).eval()
        assert torch.equal(embedder(IMAGES), expected)
        assert torch.equal(freeze(embedder)(IMAGES), expected)


def test_a_module_that_is_not_run_or_gives_no_tensor_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.pair = nn.Linear(2, 2), nn.LSTM(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(x)[0] if len(x) else x

    for node, word in (("idle", "does not run 'idle'"), ("pair", "'pair' gives tuple")):
        with pytest.raises(StageError, match=word):
            HookedNetwork(Odd(), [node])(torch.zeros(3, 2))


def test_export_holds_no_hooks_and_agrees_with_pytorch(network, tmp_path) -> None:
    preprocessing, pixels = Preprocessing(16), np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    deployed = DeployedNetwork(network, preprocessing)
    assert not any(isinstance(module, HookedNetwork) for module in deployed.modules())
    export_onnx(network, preprocessing, pixels, tmp_path / "a.onnx")
    module = network.module.eval()
    with torch.no_grad():
        images = torch.from_numpy(preprocessing.normalise(pixels))
        expected = F.normalize(module.second(module.first(images)).mean((2, 3))).numpy()
    assert np.allclose(EmbeddingSession(tmp_path / "a.onnx").embed_pixels(pixels), expected, atol=1e-5)


def test_a_network_that_cannot_be_cut_at_its_embedding_is_not_exported(network) -> None:
    with pytest.raises(StageError, match=r"Branching cannot be exported with the embedding 'second\.0'"):
        cut_network(HookedNetwork(network.module, ["second.0"]), 16)


def test_a_branch_on_the_images_values_is_not_exported_and_the_error_is_one_line(tmp_path, capfd) -> None:
    (tmp_path / "mine.py").write_text(SOURCE.replace("image.shape[-1] < 8", "image.mean() > 1e6"))
    network = load_network(f"{tmp_path / 'mine.py'}:Branching", arguments={"image_size": 16})
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(ModelError, match="may depend on the size of the images, never on their values") as caught:
        export_onnx(network, Preprocessing(16), pixels, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "a.onnx").exists()
