"""The preprocessing inside the file is that of Pillow, for any size of image."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from indistill.export.graph import prepend_preprocessing
from indistill.export.onnx import Exporter, ExportOptions
from indistill.export.session import EmbeddingSession
from indistill.models.loading import Network
from indistill.preprocess import Preprocessing
from tests.export.conftest import PREPROCESSING

SHARED_PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "photos.tar"
SIZES = [(32, 32), (33, 32), (32, 33), (35, 61), (61, 35), (7, 9), (1, 5), (640, 480), (479, 641), (100, 300), (36, 36)]


def open_preprocessing(preprocessing: Preprocessing) -> ort.InferenceSession:
    """Returns a session of a file whose network is the identity."""
    shape = ["batch", 3, preprocessing.image_size, preprocessing.image_size]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["embedding"], name="identity")],
        "identity",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    merged = prepend_preprocessing(model, preprocessing)
    onnx.checker.check_model(merged, full_check=True)
    assert {node.domain for node in merged.graph.node} == {""}
    return ort.InferenceSession(merged.SerializeToString(), providers=["CPUExecutionProvider"])


def measure_levels(session: ort.InferenceSession, preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    """Returns the absolute difference to Pillow in 8-bit levels."""
    (found,) = session.run(None, {"image": np.asarray(image)[None]})
    expected = preprocessing.normalise(preprocessing.resize(image)[None])
    assert found.shape == expected.shape
    difference: np.ndarray = np.abs(found - expected) * 255 * np.array(preprocessing.std).reshape(3, 1, 1)
    return difference


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns a smooth image with some noise: the two that a resize can get wrong."""
    generator = np.random.default_rng(seed)
    rough = Image.fromarray(generator.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    smooth = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + generator.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.7])
def test_images_of_any_size_are_resized_as_pillow_does(crop: float) -> None:
    preprocessing = Preprocessing(32, crop, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    session = open_preprocessing(preprocessing)
    for seed, (width, height) in enumerate(SIZES):
        levels = measure_levels(session, preprocessing, make_image(width, height, seed))
        # At simple scales, as 300 to 96 pixels, exact halves are rounded either way in both passes.
        assert levels.max() < 2.01, (width, height)
        assert (levels > 1.01).mean() < 0.005, (width, height)
        assert levels.mean() < 0.07, (width, height)


def test_a_resized_image_passes_unchanged() -> None:
    preprocessing = Preprocessing(32)
    assert measure_levels(open_preprocessing(preprocessing), preprocessing, make_image(32, 32)).max() < 1e-3


def test_another_resize_would_be_seen() -> None:
    session = open_preprocessing(Preprocessing(32))
    image = make_image(100, 75)
    (found,) = session.run(None, {"image": np.asarray(image.resize((43, 32), Image.Resampling.NEAREST))[None]})
    expected = Preprocessing(32).normalise(Preprocessing(32).resize(image)[None])
    assert np.abs(found - expected).max() * 255 * 0.25 > 20


@pytest.mark.skipif(not SHARED_PHOTOS.is_file(), reason=f"there is no {SHARED_PHOTOS}")
def test_photographs_are_resized_as_pillow_does(tmp_path: Path) -> None:
    import tarfile

    preprocessing = Preprocessing(224, 0.875)
    session = open_preprocessing(preprocessing)
    with tarfile.open(SHARED_PHOTOS) as archive:
        archive.extractall(tmp_path, filter="data")
    photos = sorted(path for path in tmp_path.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    assert len(photos) == 250
    for path in photos[::5]:
        assert measure_levels(session, preprocessing, Image.open(path).convert("RGB")).max() < 1.01, path.name


@pytest.mark.parametrize("takes", ["image", "tensor"])
def test_decoded_and_resized_images_have_the_same_vector(
    tmp_path: Path, network: Network, pixels: np.ndarray, takes: str
) -> None:
    exporter = Exporter(network, PREPROCESSING, pixels)
    exporter.write(tmp_path / "s.onnx", ExportOptions(input=takes))  # type: ignore[arg-type]
    session = EmbeddingSession(tmp_path / "s.onnx")
    assert session.artefact.input == takes
    for seed, (width, height) in enumerate([(32, 32), (35, 61), (150, 90)]):
        image = make_image(width, height, seed)
        given = session.embed_decoded(np.asarray(image)[None])
        assert (given @ session.embed_images([image]).T).item() > 0.9999


def test_a_tensor_file_is_the_float_network_alone(tmp_path: Path, network: Network, pixels: np.ndarray) -> None:
    Exporter(network, PREPROCESSING, pixels).write(tmp_path / "s.onnx", ExportOptions(input="tensor"))
    plain = ort.InferenceSession(tmp_path / "s.onnx", providers=["CPUExecutionProvider"])
    (given,) = plain.get_inputs()
    assert (given.name, given.type, given.shape) == ("pixel_values", "tensor(float)", ["batch", 3, 32, 32])
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (found,) = plain.run(None, {"pixel_values": run_processor(config, Image.fromarray(pixels[0]))})
    expected = EmbeddingSession(tmp_path / "s.onnx").embed_images([Image.fromarray(pixels[0])])
    assert np.abs(found - expected).max() < 1e-5


def run_processor(config: dict, image: Image.Image) -> np.ndarray:
    """Returns pixel_values as a loader does that knows nothing but Hugging Face's keys."""
    edge, crop = config["size"]["shortest_edge"], config["crop_size"]
    width, height = image.size
    size = (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
    image = image.resize(size, config["resample"])
    left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
    image = image.crop((left, top, left + crop["width"], top + crop["height"]))
    values = np.asarray(image) * config["rescale_factor"]
    values = (values - config["image_mean"]) / config["image_std"]
    return values.transpose(2, 0, 1)[None].astype(np.float32)


def test_the_graph_declares_each_value_once(tmp_path: Path, network: Network, pixels: np.ndarray) -> None:
    Exporter(network, PREPROCESSING, pixels).write(tmp_path / "s.onnx")
    names = [value.name for value in onnx.load(tmp_path / "s.onnx").graph.value_info]
    assert "preprocessed" in names  # runtimes plan better with the sizes, which cannot be inferred
    assert len(names) == len(set(names))
