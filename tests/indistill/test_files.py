"""Networks in Python files that others wrote."""

from pathlib import Path

import pytest
import torch

from indistill.errors import ModelError
from indistill.models.loading import load_network

BLOCKS = """
from torch import nn

def block(width_in, width_out):
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU())
"""
NET = """
from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from {place} import block


@dataclass
class Config:
    width: int = 8
    classes: int = 10


class TheirNet(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.body = nn.Sequential(block(3, config.width), nn.MaxPool2d(2), block(config.width, 2 * config.width))
        self.classifier = nn.Linear(2 * config.width, config.classes)

    @classmethod
    def from_width(cls, width):
        return cls(Config(width))

    def forward(self, x):
        return self.classifier(self.body(x).mean((2, 3)))


def make(width: int = 8):
    return TheirNet(Config(width))
"""


def write_package(folder: Path, name: str = "their_package") -> Path:
    inner = folder / name / "nets"
    inner.mkdir(parents=True)
    for package in (inner.parent, inner):
        (package / "__init__.py").touch()
    (inner.parent / "blocks.py").write_text(BLOCKS)
    (inner / "net.py").write_text(NET.format(place="..blocks"))
    return inner / "net.py"


def test_a_file_of_a_package_with_relative_imports_is_a_teacher_by_its_path_alone(tmp_path: Path) -> None:
    path = write_package(tmp_path)
    network = load_network(f"{path}:make?width=4")
    weights = tmp_path / "theirs.pt"
    torch.save({"state_dict": network.module.state_dict()}, weights)
    torch.manual_seed(1)
    again = load_network(f"{path}:make?width=4", weights=weights)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.module.eval()(images), network.module.eval()(images))
    assert again.count_parameters() == network.count_parameters()


def test_a_factory_may_be_a_method_of_a_class(tmp_path: Path) -> None:
    path = write_package(tmp_path, "their_methods")
    network = load_network(f"{path}:TheirNet.from_width?width=4")
    assert network.module(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "blocks_beside.py").write_text(BLOCKS)
    (tmp_path / "torch_net.py").write_text(NET.format(place="blocks_beside"))
    assert load_network(f"{tmp_path}/torch_net.py:make").module(torch.rand(2, 3, 8, 8)).shape == (2, 10)


def test_a_file_may_have_the_name_of_an_installed_package(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text(BLOCKS + "\ndef make():\n    return block(3, 4)\n")
    assert load_network(f"{tmp_path}/timm.py:make").module(torch.rand(2, 3, 8, 8)).shape == (2, 4, 8, 8)
    assert load_network("timm:resnet18").module is not None


def test_a_package_with_the_name_of_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the name of another package in use"):
        load_network(f"{write_package(tmp_path, 'json')}:make")


def test_a_file_that_does_not_import_says_why(tmp_path: Path) -> None:
    path = write_package(tmp_path, "their_broken_package")
    path.with_name("net.py").write_text("from ..missing import block\n")
    with pytest.raises(ModelError, match="does not import: ModuleNotFoundError"):
        load_network(f"{path}:make")


def test_files_of_one_name_have_their_own_neighbours(tmp_path: Path) -> None:
    for folder, width in (("first", 4), ("second", 6)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "their_widths.py").write_text(f"WIDTH = {width}\n")
        (tmp_path / folder / "net.py").write_text(
            f"{BLOCKS}\nfrom their_widths import WIDTH\n\ndef make():\n    return block(3, WIDTH)\n"
        )
    images = torch.rand(2, 3, 8, 8)
    networks = [load_network(f"{tmp_path}/{folder}/net.py:make").module for folder in ("first", "second")]
    assert [network(images).shape[1] for network in networks] == [4, 6]


def test_a_factory_may_import_when_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "their_late_blocks.py").write_text(BLOCKS)
    (tmp_path / "net.py").write_text("def make():\n    from their_late_blocks import block\n    return block(3, 4)\n")
    assert load_network(f"{tmp_path}/net.py:make").module(torch.rand(2, 3, 8, 8)).shape == (2, 4, 8, 8)
