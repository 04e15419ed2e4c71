"""What each engine of `bench` does with pixels. Runs in the engine's own process: see `indistill.export.bench_worker`.

Imports stand in the functions, so that a process holds its own engine and no other.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from indistill.errors import InputError, ModelError, describe_error
from indistill.export.artefact import INPUT_NAMES, OUTPUT_NAME, make_input
from indistill.preprocess import PixelArray, Preprocessing

if TYPE_CHECKING:
    from indistill.export.session import Embeddings

EngineKind = Literal["pytorch", "compiled", "onnxruntime", "onnxruntime-cuda", "openvino"]
EmbedPixels = Callable[[PixelArray], "Embeddings"]
MakeInputs = Callable[[PixelArray], Mapping[str, NDArray[Any]]]
ENGINES: dict[EngineKind, str] = {  # in the order of the table
    "pytorch": "PyTorch, eager",
    "compiled": "PyTorch, torch.compile",
    "onnxruntime": "ONNX Runtime on the CPU",
    "onnxruntime-cuda": "ONNX Runtime on an NVIDIA GPU",
    "openvino": "OpenVINO on the CPU",
}
CUDA = "CUDAExecutionProvider"
COMPILED_SIZES = 64  # batch sizes for which torch.compile may make code of their own


@dataclass(frozen=True)
class LoadedEngine:
    """An engine that is ready: from pixels (B, S, S, 3) uint8 to unit vectors (B, D), and its network's size.

    `parameters` and `size_bytes` are None where the engine runs a file.
    """

    embed: EmbedPixels
    parameters: int | None = None
    size_bytes: int | None = None


def find_missing(kind: EngineKind) -> str | None:
    """Returns why an engine cannot be used here, or None where it can."""
    if kind == "openvino" and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed: pip install 'indistill[openvino]'"
    if kind == "onnxruntime-cuda":
        import onnxruntime as ort

        providers = ort.get_available_providers()
        if CUDA not in providers:
            return f"ONNX Runtime has no {CUDA} here ({', '.join(providers)}): install onnxruntime-gpu"
    return None


def load_engine(order: dict[str, Any]) -> LoadedEngine:
    """Returns the engine that an order of `EngineProcess` describes.

    Raises:
        InputError: the model or its weights, or the engine cannot run it.
    """
    kind: EngineKind = order["kind"]
    path, threads = Path(order["source"]), int(order["threads"])
    if kind == "onnxruntime":
        from indistill.export.session import EmbeddingSession

        return LoadedEngine(EmbeddingSession(path, threads).embed_pixels)
    if kind == "onnxruntime-cuda":
        return LoadedEngine(_load_cuda(path, threads, _make_inputs(order)))
    if kind == "openvino":
        return LoadedEngine(_load_openvino(path, threads, order["preprocessing"]["image_size"], _make_inputs(order)))
    return _load_network(order, compiled=kind == "compiled")


def _load_network(order: dict[str, Any], *, compiled: bool) -> LoadedEngine:
    import torch

    from indistill.export.onnx import DeployedNetwork
    from indistill.models.loading import load_network

    torch.set_num_threads(order["threads"])
    torch.set_num_interop_threads(1)
    weights = Path(order["weights"]) if order["weights"] else None
    network = load_network(order["source"], weights=weights, arguments=order["arguments"])
    deployed = DeployedNetwork(network, Preprocessing.from_dict(order["preprocessing"]), fold=False).eval()
    state = network.module.state_dict().values()
    size_bytes = sum(value.numel() * value.element_size() for value in state)
    parameters = network.count_parameters()
    if not compiled:
        return LoadedEngine(deployed.embed_pixels, parameters, size_bytes)
    import torch._dynamo

    torch._dynamo.config.recompile_limit = COMPILED_SIZES  # beyond it PyTorch would go on eagerly, and not say so
    forward = torch.compile(deployed, dynamic=False)

    def embed_pixels(pixels: PixelArray) -> "Embeddings":
        with torch.inference_mode():
            embeddings: Embeddings = forward(torch.tensor(pixels)).numpy()
        return embeddings

    return LoadedEngine(embed_pixels, parameters, size_bytes)


def _make_inputs(order: dict[str, Any]) -> MakeInputs:
    """Returns a function from resized pixels (B, S, S, 3) uint8 to what a file takes, by its inputs' names."""
    preprocessing, kind = Preprocessing.from_dict(order["preprocessing"]), order["input"]

    def make_inputs(pixels: PixelArray) -> Mapping[str, NDArray[Any]]:
        return {INPUT_NAMES[kind]: make_input(pixels, preprocessing, kind)}

    return make_inputs


def _load_cuda(path: Path, threads: int, make_inputs: MakeInputs) -> EmbedPixels:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=[CUDA, "CPUExecutionProvider"])
    if session.get_providers()[0] != CUDA:  # it goes on with the CPU where the GPU's libraries are missing
        raise InputError(f"ONNX Runtime could not start {CUDA} and would run on the CPU")

    def embed_pixels(pixels: PixelArray) -> "Embeddings":
        embeddings: Embeddings = session.run([OUTPUT_NAME], make_inputs(pixels))[0]
        return embeddings

    return embed_pixels


def _load_openvino(path: Path, threads: int, side: int, make_inputs: MakeInputs) -> EmbedPixels:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it, and the row would not say so
    }
    core = openvino.Core()
    try:
        model = core.read_model(path)
        example = make_inputs(np.zeros((1, side, side, 3), dtype=np.uint8))
        model.reshape({name: [-1, *value.shape[1:]] for name, value in example.items()})
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot run {path.name}: {describe_error(error)}") from error

    def embed_pixels(pixels: PixelArray) -> "Embeddings":
        embeddings: Embeddings = request.infer(dict(make_inputs(pixels)), share_inputs=True)[OUTPUT_NAME]
        return embeddings

    return embed_pixels
