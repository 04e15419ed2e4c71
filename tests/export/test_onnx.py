import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from indistill.errors import ExistsError, ModelError, VerificationError
from indistill.export import onnx as export_module
from indistill.export.artefact import read_artefact
from indistill.export.onnx import DeployedNetwork, export_onnx
from indistill.export.session import EmbeddingSession
from indistill.export.verify import Agreement, find_failures, measure_agreement, require_agreement
from indistill.models.loading import Network, load_network
from indistill.preprocess import Preprocessing
from tests.export.conftest import PREPROCESSING


def test_the_file_computes_what_pytorch_computes_step_by_step(
    session: EmbeddingSession, network: Network, pixels: np.ndarray
) -> None:
    module = network.module.eval()
    with torch.no_grad():
        x = torch.from_numpy(PREPROCESSING.normalise(pixels))
        for name in ("1", "2", "3"):
            x = getattr(module, f"conv{name}_bn")(getattr(module, f"conv{name}")(x))
            x = torch.relu(torch.nn.functional.max_pool2d(x, 2))
        expected = torch.relu(module.fc1(x.flatten(1)))
        expected = (expected / expected.norm(dim=1, keepdim=True)).numpy()
    assert np.abs(session.embed_pixels(pixels) - expected).max() < 1e-5


def test_one_file_with_a_symbolic_batch_and_one_input_and_output(file: Path) -> None:
    assert sorted(path.name for path in file.parent.iterdir()) == ["preprocessor_config.json", "student.onnx"]
    plain = onnxruntime.InferenceSession(file)  # as anybody would open it
    (given,), (taken,) = plain.get_inputs(), plain.get_outputs()
    assert (given.name, given.type, given.shape) == ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    assert (taken.name, taken.type, taken.shape) == ("embedding", "tensor(float)", ["batch", 64])
    assert {entry.domain: entry.version for entry in onnx.load(file).opset_import} == {"": 20}


@pytest.mark.parametrize("size", [1, 2, 3, 32, 33, 100])
def test_a_row_does_not_depend_on_its_batch(session: EmbeddingSession, pixels: np.ndarray, size: int) -> None:
    batch = pixels[np.arange(size) % len(pixels)]
    alone = np.concatenate([session.embed_pixels(pixels[i : i + 1]) for i in range(len(pixels))])
    assert np.allclose(session.embed_pixels(batch), alone[np.arange(size) % len(pixels)], atol=1e-6)
    assert np.allclose(np.linalg.norm(session.embed_pixels(batch), axis=1), 1, atol=1e-5)


def test_the_same_export_gives_the_same_bytes(tmp_path: Path, file: Path, network: Network, pixels: np.ndarray) -> None:
    provenance = export_module.Provenance("/elsewhere/net.py:make", "abc")
    export_onnx(network, PREPROCESSING, pixels, tmp_path / "b.onnx", provenance=provenance)
    assert (tmp_path / "b.onnx").read_bytes() == file.read_bytes()


def test_the_file_holds_no_local_path(file: Path) -> None:
    content = file.read_bytes()
    for trace in (b"/home", b"site-packages", str(Path(__file__).parents[2]).encode(), b'.py"', b"stack_trace"):
        assert trace not in content
    assert b"net.py:make" in content


def test_the_file_says_what_it_is(session: EmbeddingSession, file: Path) -> None:
    artefact = session.artefact
    assert artefact.preprocessing == PREPROCESSING
    assert (artefact.name, artefact.teacher, artefact.embedding_dim) == ("paper:cnn-s", "net.py:make", 64)
    assert artefact.verification["max_difference"] <= 1e-5
    assert artefact.verification["min_cosine"] >= 0.99999
    metadata = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert metadata["indistill.normalised"] == "true"
    assert read_artefact(metadata, "x") == artefact


def test_path_bytes_and_image_give_the_same_vector(session: EmbeddingSession, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    vectors = session.embed_images([tmp_path / "a.png", content, Image.open(io.BytesIO(content)), image])
    assert vectors.shape == (4, 64)
    assert (vectors == vectors[0]).all()
    assert session.embed_images([]).shape == (0, 64)


def test_an_image_has_the_vector_that_pytorch_gives(session: EmbeddingSession, network: Network) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    expected = DeployedNetwork(network, PREPROCESSING).embed_pixels(PREPROCESSING.resize(image)[None])
    assert np.abs(session.embed_images([image]) - expected).max() < 1e-5


def test_a_file_is_not_overwritten_without_being_told_to(file: Path, network: Network, pixels: np.ndarray) -> None:
    before = file.read_bytes()
    with pytest.raises(ExistsError, match="--overwrite"):
        export_onnx(network, Preprocessing(32), pixels, file)
    assert file.read_bytes() == before


def test_a_file_that_disagrees_with_pytorch_is_not_kept(
    tmp_path: Path, network: Network, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = export_module._convert

    def convert_wrongly(embedder: torch.nn.Module, side: int) -> onnx.ModelProto:
        model = convert(embedder, side)
        weights = next(tensor for tensor in model.graph.initializer if tensor.dims == [64, 128])
        values = onnx.numpy_helper.to_array(weights) + np.float32(1e-3) * np.eye(64, 128, dtype=np.float32)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr(export_module, "_convert", convert_wrongly)
    with pytest.raises(VerificationError, match=r"does not agree with PyTorch and was not kept: largest difference"):
        export_onnx(network, PREPROCESSING, pixels, tmp_path / "new" / "s.onnx")
    assert list((tmp_path / "new").iterdir()) == []


GOOD = Agreement(1e-5, 0.99999, 1e-3, 0.999, 40, 0.9, "map", 0.5, 0.51)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_difference": 5.1e-3}, "largest difference 0.0051"),
        ({"min_cosine": 0.9998}, "smallest cosine 0.9998"),
        ({"min_cosine": float("nan")}, "smallest cosine nan"),
        ({"max_norm_error": 2e-3}, "norm 0.002"),
        ({"min_size_cosine": 0.9988}, "another size 0.9988"),
        ({"overlap": 0.89}, "nearest neighbours 0.89"),
        ({"quality": 0.499}, "drop of map 0.011"),
        ({"quality": float("nan")}, "drop of map nan"),
    ],
)
def test_each_figure_of_the_gates_can_fail(wrong: dict[str, float], said: str) -> None:
    require_agreement(GOOD, "fp16", 0.01 + 1e-9)
    with pytest.raises(VerificationError, match=said):
        require_agreement(replace(GOOD, **wrong), "fp16", 0.01 + 1e-9)


def test_float32_has_the_narrowest_limits_and_none_of_neighbours() -> None:
    assert find_failures(replace(GOOD, overlap=0.1, quality=0.1), "fp32", 0) == []
    for wrong in ({"max_difference": 1.1e-5}, {"min_cosine": 0.99998}, {"max_norm_error": 2e-3}):
        assert len(find_failures(replace(GOOD, **wrong), "fp32", 0)) == 1


def test_neighbours_that_were_not_compared_are_no_failure() -> None:
    assert find_failures(Agreement(0, 1, 0, 1), "int8", 0) == []


def test_the_gate_looks_at_every_batch_size(session: EmbeddingSession, pixels: np.ndarray) -> None:
    def compute_reference(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return session.embed_pixels(batch) + np.float32(1e-3 if len(batch) == 3 else 0)

    seen: list[int] = []
    found = measure_agreement(session, compute_reference, pixels[:5], session.embed_pixels(pixels[:5]))
    assert found.max_difference == pytest.approx(1e-3, rel=1e-2)
    assert seen == [1, 2, 3, 32]


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet10t", "torchvision:mobilenet_v3_small"])
def test_zoo_networks_are_exported(tmp_path: Path, spec: str, pixels: np.ndarray) -> None:
    torch.manual_seed(0)
    network = load_network(spec)
    artefact = export_onnx(network, Preprocessing(32), pixels[:4], tmp_path / "s.onnx")
    assert EmbeddingSession(tmp_path / "s.onnx").embed_pixels(pixels[:3]).shape == (3, artefact.embedding_dim)


def test_a_file_from_elsewhere_is_refused(tmp_path: Path, file: Path) -> None:
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match=r"foreign\.onnx does not describe its preprocessing"):
        EmbeddingSession(tmp_path / "foreign.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ModelError, match="is not an ONNX file that can be run"):
        EmbeddingSession(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match="there is no file"):
        EmbeddingSession(tmp_path / "none.onnx")


def test_a_vector_that_is_not_a_number_is_seen_wherever_it_is(session: EmbeddingSession, pixels: np.ndarray) -> None:
    class Broken:
        artefact = session.artefact

        def __init__(self, *, decoded: bool) -> None:
            self.decoded = decoded

        def embed_pixels(self, batch: np.ndarray) -> np.ndarray:
            vectors = session.embed_pixels(batch)
            if not self.decoded and len(batch) > 5:
                vectors[5] = np.nan
            return vectors

        def embed_decoded(self, batch: np.ndarray) -> np.ndarray:
            vectors = session.embed_decoded(batch)
            return vectors * np.nan if self.decoded and batch.shape[1] > 70 else vectors

    reference = session.embed_pixels(pixels[:10])
    for decoded in (False, True):
        broken: EmbeddingSession = Broken(decoded=decoded)  # type: ignore[assignment]
        found = measure_agreement(broken, session.embed_pixels, pixels[:10], reference)
        assert find_failures(found, "int8", 1)


def test_a_network_whose_vectors_are_not_finite_is_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    network = load_network("paper:cnn-s")
    with torch.no_grad():
        network.module.fc1.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        export_onnx(network, Preprocessing(32), pixels, tmp_path / "s.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_no_failure_of_ours(tmp_path: Path, network: Network, pixels: np.ndarray) -> None:
    (tmp_path / "s.onnx").mkdir()
    (tmp_path / "a" / "preprocessor_config.json").mkdir(parents=True)
    for path in (tmp_path / "s.onnx", tmp_path / "a" / "t.onnx"):
        for overwrite in (False, True):
            with pytest.raises(ExistsError, match="is a folder"):
                export_onnx(network, PREPROCESSING, pixels, path, overwrite=overwrite)
