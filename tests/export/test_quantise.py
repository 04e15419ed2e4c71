"""float16 and int8: what they keep, and what is refused."""

import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from indistill.errors import DataError, ExistsError, InputError, VerificationError
from indistill.export import onnx as export_module
from indistill.export import quantise
from indistill.export.artefact import Precision
from indistill.export.onnx import Exporter, ExportOptions
from indistill.export.quantise import check_calibration, convert_to_int8, find_head, has_vnni
from indistill.export.session import EmbeddingSession
from indistill.export.verify import Quality
from indistill.models.loading import Network, load_network
from tests.export.conftest import PREPROCESSING


def make_scenes(count: int, seed: int = 0) -> np.ndarray:
    """Returns images (count, 32, 32, 3) uint8 with structure at several scales, as photographs have."""
    generator = np.random.default_rng(seed)
    scenes = []
    for _ in range(count):
        rough = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        fine = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        parts = [np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC), dtype=float) for part in (rough, fine)]
        scenes.append((0.7 * parts[0] + 0.3 * parts[1]).astype(np.uint8))
    return np.stack(scenes)


@pytest.fixture(scope="module")
def scenes() -> np.ndarray:
    return make_scenes(256)


@pytest.fixture(scope="module")
def exporter(network: Network, scenes: np.ndarray) -> Exporter:
    return Exporter(network, PREPROCESSING, scenes[:128])


@pytest.fixture(scope="module")
def files(exporter: Exporter, scenes: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("precisions")
    found: dict[Precision, Path] = {"fp32": folder / "s.onnx", "fp16": folder / "h.onnx", "int8": folder / "q.onnx"}
    for precision, file in found.items():
        exporter.write(file, ExportOptions(precision, calibration=scenes[128:]))
    return found


def test_each_precision_gives_nearly_the_same_unit_vectors(files: dict[Precision, Path], scenes: np.ndarray) -> None:
    full = EmbeddingSession(files["fp32"]).embed_pixels(scenes[:64])
    for precision, smallest in (("fp16", 0.9999), ("int8", 0.98)):
        session = EmbeddingSession(files[precision])
        found = session.embed_pixels(scenes[:64])
        assert session.artefact.precision == precision
        assert found.dtype == np.float32
        assert np.abs(found - full).max() > 0
        assert (found * full).sum(axis=1).min() > smallest
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-3


def test_the_weights_of_each_precision_are_what_it_says(files: dict[Precision, Path]) -> None:
    def count_bytes(precision: Precision) -> dict[int, int]:
        found: dict[int, int] = {}
        for tensor in onnx.load(files[precision]).graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size > 100:
                found[values.dtype.itemsize] = found.get(values.dtype.itemsize, 0) + values.size
        return found

    full = count_bytes("fp32")
    assert set(full) == {4}
    assert count_bytes("fp16") == {2: full[4]}
    quantised = count_bytes("int8")
    assert quantised[1] > 0
    assert quantised[1] + quantised[4] == full[4]
    assert quantised[4] == 64 * 128  # the last layer before the norm stays float


def test_the_file_says_how_it_was_quantised(files: dict[Precision, Path]) -> None:
    artefact = EmbeddingSession(files["int8"]).artefact
    arm = platform.machine().lower() in ("aarch64", "arm64")
    assert artefact.quantisation == {
        "method": "minmax",
        "images": 128,
        "activations": "int8" if arm else "uint8",
        "weights": "int8 per channel",
        "reduce_range": not arm and not has_vnni(),
    }
    assert artefact.verification["metric"] == "recall@10"
    assert EmbeddingSession(files["fp32"]).artefact.quantisation == {}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_precision_is_written_again_byte_for_byte(
    files: dict[Precision, Path], network: Network, scenes: np.ndarray, tmp_path: Path, precision: Precision
) -> None:
    again = Exporter(network, PREPROCESSING, scenes[:128])
    again.write(tmp_path / "again.onnx", ExportOptions(precision, calibration=scenes[128:]))
    assert (tmp_path / "again.onnx").read_bytes() == files[precision].read_bytes()


def test_no_other_precision_is_written_over_a_file(
    files: dict[Precision, Path], exporter: Exporter, scenes: np.ndarray
) -> None:
    before = files["fp32"].read_bytes()
    with pytest.raises(ExistsError, match="is the fp32 file, which int8 does not replace"):
        exporter.write(files["fp32"], ExportOptions("int8", calibration=scenes[128:]), overwrite=True)
    assert files["fp32"].read_bytes() == before


def test_the_head_of_a_network_whose_embedding_is_pooled_has_no_convolution(pixels: np.ndarray) -> None:
    torch.manual_seed(0)
    exporter = Exporter(load_network("timm:resnet10t"), PREPROCESSING, pixels)
    nodes = {node.name: node.op_type for node in exporter.model.graph.node}
    assert "Conv" not in {nodes[name] for name in find_head(exporter.model.graph)}
    assert find_head(exporter.model.graph)


def test_noise_and_too_few_images_are_refused_for_calibration(scenes: np.ndarray) -> None:
    check_calibration(scenes[:128])
    with pytest.raises(DataError, match="128 readable images at least, not 127"):
        check_calibration(scenes[:127])
    noise = np.random.default_rng(0).integers(0, 256, (128, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(DataError, match="look like noise"):
        check_calibration(noise)
    with pytest.raises(DataError, match="look like noise"):
        check_calibration(np.zeros((128, 32, 32, 3), dtype=np.uint8))


def test_int8_needs_images_to_calibrate_with(exporter: Exporter, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--calibrate"):
        exporter.write(tmp_path / "q.onnx", ExportOptions("int8"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_calibrated_on_noise_is_refused_by_the_gate(
    exporter: Exporter, scenes: np.ndarray, tmp_path: Path
) -> None:
    """Dim noise: the ranges found are far too small for real images, as those of N(0, 1) in place of pixels are."""
    noise = np.random.default_rng(0).integers(100, 140, (128, 32, 32, 3), dtype=np.uint8)
    exporter.write(tmp_path / "good.onnx", ExportOptions("int8", calibration=scenes[128:]))
    with pytest.raises(VerificationError, match=r"the int8 file does not agree with PyTorch and was not kept"):
        exporter.write(tmp_path / "bad.onnx", ExportOptions("int8", calibration=noise))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx", "preprocessor_config.json"]


def test_the_other_ways_to_calibrate_are_tried_when_the_gate_fails(
    exporter: Exporter, scenes: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(model: onnx.ModelProto, *given: object) -> tuple[onnx.ModelProto, dict[str, object]]:
        tried.append(given[-1])
        bad = scenes[:1] // 16
        return convert_to_int8(model, PREPROCESSING, bad if len(tried) < 3 else scenes[128:], "minmax")

    tried: list[object] = []
    monkeypatch.setattr(export_module, "convert_to_int8", convert)
    exporter.write(tmp_path / "q.onnx", ExportOptions("int8", calibration=scenes[128:]))
    assert tried == ["minmax", "entropy", "percentile"] == list(quantise.METHODS)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_histograms_calibrate_too(exporter: Exporter, scenes: np.ndarray, method: quantise.Method) -> None:
    model, described = convert_to_int8(exporter.model, PREPROCESSING, scenes[128:], method)
    assert described["images"] == quantise.HISTOGRAM_IMAGES
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


def test_the_drop_of_the_given_metric_decides(exporter: Exporter, scenes: np.ndarray, tmp_path: Path) -> None:
    measured: list[float] = []

    def measure(vectors: np.ndarray) -> float:
        measured.append(0.5 if not measured else 0.5 + 0.02 * len(measured))
        return measured[-1]  # first the file, then PyTorch

    quality = Quality("map", measure)
    with pytest.raises(VerificationError, match=r"drop of map 0\.02 \(at most 0\.01\)"):
        exporter.write(tmp_path / "q.onnx", ExportOptions("fp16", quality=quality))
    measured.clear()
    artefact = exporter.write(tmp_path / "q.onnx", ExportOptions("fp16", quality=quality, max_drop=0.03))
    assert artefact.verification["metric"] == "map"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_too_few_images_for_the_gates_are_refused(
    network: Network, scenes: np.ndarray, tmp_path: Path, precision: Precision
) -> None:
    exporter = Exporter(network, PREPROCESSING, scenes[:19])
    with pytest.raises(InputError, match="20 readable images at least, not 19"):
        exporter.write(tmp_path / "q.onnx", ExportOptions(precision, calibration=scenes[128:]))
    assert list(tmp_path.iterdir()) == []
