"""From PyTorch to one ONNX file: normalisation, network and L2 norm inside, preprocessing described."""

import contextlib
import hashlib
import io
import logging
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill import __version__
from indistill.errors import ExistsError, InputError, ModelError, VerificationError
from indistill.export.artefact import INPUT_NAME, OUTPUT_NAME, Artefact
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.export.verify import measure_parity, require_parity
from indistill.models.loading import Network
from indistill.preprocess import PixelArray, Preprocessing
from indistill.stages import Embedder, end_at_embedding, freeze

OPSET = 20
EXAMPLE_BATCH = 2  # a batch of one may be taken for a constant


@dataclass(frozen=True)
class Provenance:
    """Where an exported network comes from: the teacher's spec and the data's fingerprint, empty where not known."""

    teacher: str = ""
    data_fingerprint: str = ""


class DeployedNetwork(nn.Module):
    """What is exported: pixels in, unit vectors out.

    Args:
        network: gives the embedding.
        preprocessing: its mean and std become part of the graph.
        fold: whether batch norm is folded into the convolutions.
    """

    def __init__(self, network: Network, preprocessing: Preprocessing, *, fold: bool = True) -> None:
        super().__init__()
        embedder = end_at_embedding(Embedder(network.module, network.embedding), preprocessing.image_size)
        self.embedder = (freeze(embedder) if fold else embedder.eval()).cpu()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (mean / std).view(1, 3, 1, 1))

    scale: Tensor
    shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Returns unit vectors (B, D) float32 for pixels (B, S, S, 3) uint8."""
        scaled = image.permute(0, 3, 1, 2).float() * self.scale - self.shift
        return F.normalize(self.embedder(scaled), eps=1e-12)

    def embed_pixels(self, pixels: PixelArray) -> Embeddings:
        """Returns unit vectors (B, D) float32 for pixels (B, S, S, 3) uint8."""
        with torch.inference_mode():
            embeddings: Embeddings = self(torch.tensor(pixels)).numpy()
        return embeddings


def export_onnx(
    network: Network,
    preprocessing: Preprocessing,
    pixels: PixelArray,
    path: Path,
    *,
    provenance: Provenance = Provenance(),
    overwrite: bool = False,
) -> Artefact:
    """Writes a network as one ONNX file and returns its description.

    The file appears under its name only when it agrees with PyTorch on real images; written again, it is the same byte
    for byte.

    Args:
        network: with its weights.
        preprocessing: what it was trained with.
        pixels: real images (N, S, S, 3) uint8 for the parity gate.
        path: the file to write.
        provenance: what the file says of its origin.
        overwrite: whether an older file may be replaced.

    Raises:
        ExistsError: the file exists.
        InputError: the folder cannot be written to.
        ModelError: the network cannot be exported.
        VerificationError: the file does not agree with PyTorch, or its graph is not what was asked for.
    """
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists; choose another --out, or replace it with --overwrite")
    deployed = DeployedNetwork(network, preprocessing)
    artefact = Artefact(
        name=_strip_folders(network.spec),
        embedding_dim=deployed.embed_pixels(pixels[:1]).shape[1],
        preprocessing=preprocessing,
        precision="fp32",
        teacher=_strip_folders(provenance.teacher),
        weights_sha256=hash_weights(network.module),
        data_fingerprint=provenance.data_fingerprint,
        verification={},
        version=__version__,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            draft = Path(folder, path.name)
            model = _convert(deployed, preprocessing.image_size)
            _describe(model, artefact)
            _check_graph(model, artefact)
            onnx.save(model, draft)
            reference = DeployedNetwork(network, preprocessing, fold=False).eval()  # so that folding is checked too
            parity = measure_parity(EmbeddingSession(draft), reference.embed_pixels, pixels)
            require_parity(parity)
            artefact = replace(artefact, verification=parity.to_dict())
            _describe(model, artefact)
            onnx.save(model, draft)
            draft.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return artefact


def hash_weights(module: nn.Module) -> str:
    """Returns the SHA-256 of a network's state dict: names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _convert(deployed: DeployedNetwork, side: int) -> onnx.ModelProto:
    example = torch.zeros(EXAMPLE_BATCH, side, side, 3, dtype=torch.uint8)
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # of what cannot be exported, whole graphs are printed
            program = torch.onnx.export(
                deployed.eval(),
                (example,),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: "batch"},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ModelError(
            f"the network cannot be exported to ONNX: {reason} (what its forward pass does may depend on the size of "
            "the images, never on their values)"
        ) from error
    finally:
        logging.disable(disabled)
    if program is None:
        raise ModelError("the network cannot be exported to ONNX: PyTorch's exporter gave nothing")
    return program.model_proto


def _describe(model: onnx.ModelProto, artefact: Artefact) -> None:
    """Removes traces of this machine (source lines, paths) and writes the description."""
    parts: Iterable[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto] = (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
    )
    for part in parts:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("doc_string")
    model.ClearField("doc_string")
    model.graph.name = "indistill"
    onnx.helper.set_model_props(model, artefact.to_metadata())


def _check_graph(model: onnx.ModelProto, artefact: Artefact) -> None:
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    side = artefact.preprocessing.image_size
    expected = {INPUT_NAME: ["batch", side, side, 3], OUTPUT_NAME: ["batch", artefact.embedding_dim]}
    found = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if opsets.get("") != OPSET or found != expected:
        raise VerificationError(
            f"the exporter gave opset {opsets.get('')} with {found}; opset {OPSET} with {expected} was asked for"
        )


def _strip_folders(spec: str) -> str:
    """Returns a model spec without the folders in it, its arguments' too."""
    location, question, query = spec.partition("?")
    if ".py:" in location:
        location = _strip_path(location)
    arguments = (item.partition("=") for item in query.split("&"))
    return location + question + "&".join(name + equals + _strip_path(value) for name, equals, value in arguments)


def _strip_path(text: str) -> str:
    return text.replace("\\", "/").rsplit("/", 1)[-1]
