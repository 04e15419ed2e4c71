from pathlib import Path

import numpy as np
import pytest
import torch

from indistill.export.onnx import Exporter, ExportOptions, Provenance, export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import Network, load_network
from indistill.preprocess import Preprocessing

PREPROCESSING = Preprocessing(32, 0.9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def network() -> Network:
    torch.manual_seed(0)
    return load_network("paper:cnn-s")


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory, network: Network, pixels: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("export") / "student.onnx"
    export_onnx(network, PREPROCESSING, pixels, path, provenance=Provenance("/home/me/net.py:make", "abc"))
    return path


@pytest.fixture(scope="session")
def session(file: Path) -> EmbeddingSession:
    return EmbeddingSession(file)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory, network: Network, pixels: np.ndarray) -> dict[str, Path]:
    """Returns, by name, files of one student: `tensor`, `tensor16`, `image`; and `other`, a tensor file of another."""
    folder = tmp_path_factory.mktemp("exports")
    exporter = Exporter(network, PREPROCESSING, pixels, Provenance("timm:resnet18.a1_in1k", "abc"))
    torch.manual_seed(1)
    other = Exporter(load_network("paper:cnn-s"), PREPROCESSING, pixels)
    for name, writer, options in (
        ("tensor", exporter, ExportOptions("fp32", "tensor")),
        ("tensor16", exporter, ExportOptions("fp16", "tensor")),
        ("image", exporter, ExportOptions("fp32", "image")),
        ("other", other, ExportOptions("fp32", "tensor")),
    ):
        writer.write(folder / f"{name}.onnx", options)
    return {path.stem: path for path in folder.glob("*.onnx")}
