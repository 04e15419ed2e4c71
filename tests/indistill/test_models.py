import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from indistill.errors import ModelError, StageError
from indistill.models.loading import load_network
from indistill.models.paper import PAPER_NETWORKS, build_cnn_a
from indistill.models.specs import (
    PAPER_NAMES,
    build_network,
    explain_random_weights,
    has_random_weights,
    parse_model_spec,
)
from indistill.models.weights import load_weights, read_weights, save_weights

AUXILIARY = Path(__file__).parents[2].parent / "shared" / "data" / "paper-auxiliary-cifar10.safetensors"


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_171_146), ("cnn-a", 57_994), ("cnn-s", 15_050)])
def test_paper_networks_have_the_papers_number_of_parameters(name: str, parameters: int) -> None:
    network = PAPER_NETWORKS[name]()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.skipif(not AUXILIARY.is_file(), reason=f"{AUXILIARY} is not here")
def test_the_published_auxiliary_loads_by_its_published_names() -> None:
    network = load_network("paper:cnn-a", weights=AUXILIARY)
    assert float(network.module.state_dict()["conv1_bn.running_var"].min()) > 0
    assert network.stages == ("stage1", "stage2", "stage3")
    assert network.embedding == "embedding"


def test_pooling_before_the_relu_gives_the_papers_features() -> None:
    network = build_cnn_a().eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = images
        for conv, norm in (
            (network.conv1, network.conv1_bn),
            (network.conv2, network.conv2_bn),
            (network.conv3, network.conv3_bn),
        ):
            x = nn.functional.max_pool2d(torch.relu(norm(conv(x))), 2)
        expected = network.fc2(torch.relu(network.fc1(x.flatten(1))))
        assert torch.equal(network(images), expected)


def test_arguments_follow_a_question_mark() -> None:
    spec = parse_model_spec("timm:resnet18?pretrained=false&num_classes=7&drop_rate=0.5")
    assert spec.kind == "timm"
    assert spec.arguments == {"pretrained": False, "num_classes": 7, "drop_rate": 0.5}


def test_defaults_reach_only_factories_that_know_them() -> None:
    defaults = {"num_classes": 4, "image_size": 48}
    network = build_network(parse_model_spec("paper:resnet18?width=8"), defaults)  # has no image_size
    assert network(torch.zeros(1, 3, 48, 48)).shape == (1, 4)
    chosen = build_network(parse_model_spec("paper:cnn-s?num_classes=3"), defaults)
    assert chosen(torch.zeros(2, 3, 48, 48)).shape == (2, 3)


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_zoo_networks_are_built_with_the_datas_classes(spec: str) -> None:
    network = build_network(parse_model_spec(spec), {"num_classes": 5}).eval()
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def test_a_factory_in_a_users_file_is_called_with_its_arguments(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from torch import nn\ndef make(width=4):\n    return nn.Sequential(nn.Conv2d(3, width, 3))\n")
    network = build_network(parse_model_spec(f"{file}:make?width=6"))
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 6, 6, 6)


def test_a_factory_in_a_package_is_found() -> None:
    network = build_network(parse_model_spec("indistill.models.paper:build_cnn_s"))
    assert sum(p.numel() for p in network.parameters()) == 15_050


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paper:cnn-b", "Did you mean 'cnn-"),
        ("torchvision:resnet19", "Did you mean 'resnet1"),
        ("timm:resnet5o", "Did you mean 'resnet50"),
        ("cnn-a", "not a model spec"),
        ("tim:resnet18", "Did you mean 'timm'?"),
        ("widht:0.5", "Did you mean 'width'?"),
        ("nothere.py:make", "there is no file nothere.py"),
        ("paper:cnn-a?width", "is not of the form name=value"),
        ("paper:cnn-a?widht=3", "could not be built"),
        ("indistill.models.paper:build_cnn_x", "Did you mean 'build_cnn_"),
    ],
)
def test_an_unknown_spec_says_what_is_known(text: str, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_network(parse_model_spec(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_are_the_same_after_a_round_trip(tmp_path: Path) -> None:
    network, other = build_cnn_a(), build_cnn_a()
    save_weights(network, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_pt_files_hold_a_state_dict_or_wrap_one(tmp_path: Path, wrap) -> None:
    network, other = build_cnn_a(), build_cnn_a()
    torch.save(wrap(network.state_dict()), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt")
    assert torch.equal(network.fc1.weight, other.fc1.weight)


def test_weights_of_another_network_name_the_first_mismatches(tmp_path: Path) -> None:
    save_weights(PAPER_NETWORKS["cnn-s"](), tmp_path / "w.safetensors")
    network = build_cnn_a()
    before = network.conv1.weight.clone()
    with pytest.raises(ModelError, match=r"conv1\.weight is \(8, 3, 3, 3\), the network has \(16, 3, 3, 3\).*more"):
        load_weights(network, tmp_path / "w.safetensors")
    assert torch.equal(network.conv1.weight, before)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_a_pickle_that_is_not_weights_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(pickle.dumps(Trap()))
    torch.save({"model": Trap()}, "w2.pt")
    for name in ("w.pt", "w2.pt"):
        with pytest.raises(ModelError, match="holds something other than tensors"):
            read_weights(Path(name))
    assert not Path("trapped").exists()


def test_the_embedding_is_the_penultimate_feature_unless_a_node_is_named() -> None:
    assert load_network("torchvision:resnet18").embedding == "flatten"
    assert load_network("torchvision:mobilenet_v3_small").embedding.startswith("classifier.1")
    assert load_network("torchvision:resnet18?embedding=layer3").embedding == "layer3"
    with pytest.raises(StageError, match="Did you mean 'layer4"):
        load_network("torchvision:resnet18?embedding=layer5")


def test_an_incomplete_run_is_refused(tmp_path: Path) -> None:
    config = {
        "command": "train",
        "network": {"spec": "paper:cnn-s", "arguments": {}, "embedding": "embedding"},
        "recipe": {"data": {"image_size": 32, "crop": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}},
        "parameters": 1,
        "data": "digits/train",
        "seed": 0,
        "device": "cpu",
        "schedule": [],
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is not complete: it has no model\.safetensors"):
        load_network(str(tmp_path))


def test_the_names_of_the_papers_networks_are_known_without_them() -> None:
    assert set(PAPER_NAMES) == set(PAPER_NETWORKS)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("paper:cnn-a", ""),
        ("timm:resnet18", ", or download the zoo's by 'timm:resnet18?pretrained=true'"),
        ("torchvision:resnet18", ", or download the zoo's by 'torchvision:resnet18?weights=DEFAULT'"),
        (
            "timm:resnet18.a1_in1k?num_classes=3",
            ", or download the zoo's by 'timm:resnet18.a1_in1k?num_classes=3&pretrained=true'; the tag in its name "
            "alone does not fetch any",
        ),
    ],
)
def test_random_weights_are_explained_with_what_may_be_done(text: str, advice: str) -> None:
    spec = parse_model_spec(text)
    assert has_random_weights(spec)
    assert explain_random_weights(spec, "--weights") == f"name its weights with --weights{advice}"
