"""From PyTorch to one ONNX file: preprocessing, network and L2 norm inside, in the precision that is asked for."""

import contextlib
import hashlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill import __version__
from indistill.closeness import MINIMUM_IMAGES
from indistill.errors import ExistsError, InputError, ModelError, VerificationError, describe_os_error
from indistill.export.artefact import GRAPH_SHA256, INPUT_NAMES, OUTPUT_NAME, Artefact, InputKind, Precision
from indistill.export.graph import FEATURES, SHORTEST, append_norm, prepend_preprocessing
from indistill.export.opening import open_file
from indistill.export.processor import PROCESSOR_FILE, format_processor
from indistill.export.quantise import METHODS, convert_to_fp16, convert_to_int8
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.export.verify import Agreement, Quality, find_failures, measure_agreement, require_agreement
from indistill.files.durable import move_into_place, sync_file
from indistill.models.loading import Network
from indistill.models.specs import name_network
from indistill.preprocess import PixelArray, Preprocessing
from indistill.stages.graph import Embedder, end_at_embedding, freeze

OPSET = 20
EXAMPLE_BATCH = 2  # a batch of one may be taken for a constant
BLOCK = 32


@dataclass(frozen=True)
class Provenance:
    """Where an exported network comes from: the teacher's spec and the data's fingerprint, empty where not known."""

    teacher: str = ""
    data_fingerprint: str = ""


@dataclass(frozen=True)
class ExportOptions:
    """What kind of file is written, and what it must keep to.

    Attributes:
        precision: of the weights, and for int8 of the activations.
        input: what the file takes; see `Artefact`.
        calibration: real images (N, S, S, 3) uint8 that int8 is calibrated with.
        quality: what the gate measures retrieval by; without it, `recall@10`.
        max_drop: how much of it a file may lose.
    """

    precision: Precision = "fp32"
    input: InputKind = "image"
    calibration: PixelArray | None = None
    quality: Quality | None = None
    max_drop: float = 0.01


class DeployedNetwork(nn.Module):
    """What is exported, in PyTorch: resized images in, unit vectors out.

    Args:
        network: gives the embedding.
        preprocessing: its mean and std are applied.
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
        return F.normalize(self.embedder(image.permute(0, 3, 1, 2).float() * self.scale - self.shift), eps=SHORTEST)

    def embed_pixels(self, pixels: PixelArray) -> Embeddings:
        """Returns unit vectors (B, D) float32 for pixels (B, S, S, 3) uint8."""
        with torch.inference_mode():
            embeddings: Embeddings = self(torch.tensor(pixels)).numpy()
        return embeddings


class Exporter:
    """A network converted once, from which files of several precisions are written.

    Args:
        network: with its weights.
        preprocessing: what it was trained with.
        pixels: real images (N, S, S, 3) uint8 for the gates.
        provenance: what the files say of their origin.
        on_progress: called with the number of images that PyTorch has just embedded; there are N.

    Raises:
        ModelError: the network cannot be exported, or gives vectors that are not finite.
        VerificationError: the exporter gave another opset or other shapes than those asked for.
    """

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        pixels: PixelArray,
        provenance: Provenance = Provenance(),
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._pixels = pixels
        self.model = _convert(DeployedNetwork(network, preprocessing).embedder, preprocessing.image_size)
        # The reference is not folded, so that folding is checked too. It comes second: looking for the embedding's
        # node again would put the layers that both share back into training mode.
        self._compute_reference = DeployedNetwork(network, preprocessing, fold=False).eval().embed_pixels
        blocks = []
        for start in range(0, len(pixels), BLOCK):
            blocks.append(self._compute_reference(pixels[start : start + BLOCK]))
            on_progress(len(blocks[-1]))
        self._reference = np.concatenate(blocks)
        if not np.isfinite(self._reference).all():
            raise ModelError("the network gives vectors that are not finite for the images that it is verified with")
        width = None if network.narrowing is None else network.narrowing.width
        self._artefact = Artefact(
            name=name_network(_strip_folders(network.spec), width),
            embedding_dim=self._reference.shape[1],
            preprocessing=preprocessing,
            input="tensor",
            precision="fp32",
            quantisation={},
            teacher=_strip_folders(provenance.teacher),
            weights_sha256=hash_weights(network.module),
            data_fingerprint=provenance.data_fingerprint,
            verification={},
            version=__version__,
        )
        _describe(self.model, self._artefact)  # local paths are not written even for a moment

    def write(self, path: Path, options: ExportOptions = ExportOptions(), *, overwrite: bool = False) -> Artefact:
        """Writes a file, with `preprocessor_config.json` beside it, and returns its description.

        It appears under its name only when it has passed every gate; written again, it is the same byte for byte. Of
        int8, the ways to calibrate are tried until one passes.

        Args:
            path: the file to write.
            options: its kind and its gates.
            overwrite: whether an older file of the same precision may be replaced.

        Raises:
            ExistsError: the file exists, or another model's `preprocessor_config.json` does.
            InputError: the folder cannot be written to, or there are too few images for the gates.
            ModelError: the network cannot be quantised.
            VerificationError: the file fails a gate.
        """
        require_free(path, self._artefact.preprocessing, options.precision, overwrite=overwrite)
        if options.precision != "fp32" and len(self._pixels) < MINIMUM_IMAGES:
            raise InputError(
                f"the gates of {options.precision} need {MINIMUM_IMAGES} readable images at least, not "
                f"{len(self._pixels)}: name others with --data"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
                draft = Path(folder, path.name)
                artefact = self._write_draft(draft, options)
                processor = Path(folder, PROCESSOR_FILE)
                processor.write_bytes(format_processor(artefact.preprocessing).encode())
                for file, target in ((processor, path.parent / PROCESSOR_FILE), (draft, path)):  # the model comes last
                    sync_file(file)
                    move_into_place(file, target)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error
        return artefact

    def _write_draft(self, draft: Path, options: ExportOptions) -> Artefact:
        failed: list[Agreement] = []
        for model, quantisation in self._make_models(options):
            artefact = replace(
                self._artefact, input=options.input, precision=options.precision, quantisation=quantisation
            )
            whole = append_norm(model)
            if options.input == "image":
                whole = prepend_preprocessing(whole, artefact.preprocessing)
            _describe(whole, artefact)
            _check_graph(whole, artefact)
            onnx.save(whole, draft)
            agreement = measure_agreement(
                EmbeddingSession(draft), self._compute_reference, self._pixels, self._reference, options.quality
            )
            if not find_failures(agreement, options.precision, options.max_drop):
                artefact = replace(artefact, verification=agreement.to_dict())
                _describe(whole, artefact)
                onnx.save(whole, draft)
                return artefact
            failed.append(agreement)
        best = max(failed, key=lambda agreement: agreement.min_cosine)
        require_agreement(best, options.precision, options.max_drop)
        raise AssertionError("a file that failed a gate fails it again")

    def _make_models(self, options: ExportOptions) -> Iterator[tuple[onnx.ModelProto, dict[str, Any]]]:
        """Yields the graphs to try, each with how it was quantised."""
        if options.precision == "fp32":
            model = onnx.ModelProto()
            model.CopyFrom(self.model)
            yield model, {}
        elif options.precision == "fp16":
            yield convert_to_fp16(self.model), {}
        else:
            if options.calibration is None:
                raise InputError("int8 is calibrated with real images: name them with --calibrate")
            for method in METHODS:
                try:
                    yield convert_to_int8(self.model, self._artefact.preprocessing, options.calibration, method)
                except ModelError:  # histograms cannot be made of values that hardly differ
                    if method == METHODS[0]:
                        raise


def export_onnx(
    network: Network,
    preprocessing: Preprocessing,
    pixels: PixelArray,
    path: Path,
    *,
    provenance: Provenance = Provenance(),
    overwrite: bool = False,
) -> Artefact:
    """Writes a network as one float32 file and returns its description; see `Exporter` for more."""
    require_free(path, preprocessing, "fp32", overwrite=overwrite)  # before the work
    return Exporter(network, preprocessing, pixels, provenance).write(path, overwrite=overwrite)


def hash_weights(module: nn.Module) -> str:
    """Returns the SHA-256 of a network's state dict: names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_free(path: Path, preprocessing: Preprocessing, precision: Precision, *, overwrite: bool) -> None:
    """Raises ExistsError if a file would be replaced without being told to, or one of another precision at all."""
    if path.is_dir():
        raise ExistsError(f"{path} is a folder; name a file with --out")
    if path.exists():
        if not overwrite:
            raise ExistsError(f"{path} exists; choose another --out, or replace it with --overwrite")
        with contextlib.suppress(ModelError):  # anything else may be replaced
            _, present = open_file(path)
            if present is not None and present.precision != precision:
                raise ExistsError(
                    f"{path} is the {present.precision} file, which {precision} does not replace: choose another --out"
                )
    config = path.parent / PROCESSOR_FILE
    if config.is_dir():
        raise ExistsError(f"{config} is a folder; choose another folder with --out")
    if not overwrite and config.exists() and config.read_bytes() != format_processor(preprocessing).encode():
        raise ExistsError(
            f"{config} describes another preprocessing; choose a folder of its own with --out, or replace it with "
            "--overwrite"
        )


def _convert(embedder: nn.Module, side: int) -> onnx.ModelProto:
    example = torch.zeros(EXAMPLE_BATCH, 3, side, side)
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # of what cannot be exported, whole graphs are printed
            program = torch.onnx.export(
                embedder.eval(),
                (example,),
                input_names=[INPUT_NAMES["tensor"]],
                output_names=[FEATURES],
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
    digest = hashlib.sha256(model.graph.SerializeToString()).hexdigest()
    onnx.helper.set_model_props(model, artefact.to_metadata() | {GRAPH_SHA256: digest})


def _check_graph(model: onnx.ModelProto, artefact: Artefact) -> None:
    onnx.checker.check_model(model, full_check=True)
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    side = artefact.preprocessing.image_size
    shapes: dict[InputKind, list[str | int]] = {
        "image": ["batch", "height", "width", 3],
        "tensor": ["batch", 3, side, side],
    }
    expected = {INPUT_NAMES[artefact.input]: shapes[artefact.input], OUTPUT_NAME: ["batch", artefact.embedding_dim]}
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
