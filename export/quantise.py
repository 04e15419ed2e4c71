"""From a float32 graph to float16 and int8 ones. Needs no torch."""

import contextlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from indistill.errors import DataError, ModelError, describe_error
from indistill.export.artefact import INPUT_NAMES
from indistill.export.session import RUNTIME_ERRORS
from indistill.preprocess import PixelArray, Preprocessing

_ERRORS = (
    *RUNTIME_ERRORS,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
)
Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile")
MINIMUM_IMAGES = 128
HISTOGRAM_IMAGES = 32  # entropy and percentile keep every activation of every image in memory
BATCH = 16
MINIMUM_CORRELATION = 0.3  # of neighbouring pixels: photographs have above 0.8, noise none


def check_calibration(pixels: PixelArray) -> None:
    """Raises DataError if images (N, S, S, 3) uint8 are too few to calibrate with, or are noise."""
    if len(pixels) < MINIMUM_IMAGES:
        raise DataError(
            f"calibration needs {MINIMUM_IMAGES} readable images at least, not {len(pixels)}: with fewer, int8 can "
            "lose far more; name others with --calibrate"
        )
    levels = pixels.astype(np.float32).mean(axis=3)
    left, right = levels[:, :, :-1].reshape(len(levels), -1), levels[:, :, 1:].reshape(len(levels), -1)
    left, right = left - left.mean(axis=1, keepdims=True), right - right.mean(axis=1, keepdims=True)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    correlation = float(np.median((left * right).sum(axis=1) / np.maximum(scale, 1e-12)))
    if correlation < MINIMUM_CORRELATION:
        raise DataError(
            f"the images for calibration look like noise (correlation of neighbouring pixels {correlation:.2f}, real "
            f"images have {MINIMUM_CORRELATION} and much more): name real ones with --calibrate"
        )


def convert_to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model with float16 weights whose input and output are float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that float16 rounds to zero: the gate looks at the result
            converted = convert_float_to_float16(copy, keep_io_types=True)
    except _ERRORS as error:
        raise ModelError(f"the network cannot be converted to float16: {describe_error(error)}") from error
    OnnxModel(converted).topological_sort()  # the conversion puts casts at the end
    converted.graph.ClearField("value_info")  # and leaves the types of before
    model_with_casts: onnx.ModelProto = converted
    return model_with_casts


def convert_to_int8(
    model: onnx.ModelProto, preprocessing: Preprocessing, images: PixelArray, method: Method
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns a statically quantised model, per channel, and how it was made.

    All that can be quantised is, but for the last matrix product and what follows it.
    Activations are unsigned on x86, where signed ones are slow, and signed on Arm.

    Args:
        model: takes `pixel_values` (B, 3, S, S) float32.
        preprocessing: what its images go through.
        images: (N, S, S, 3) uint8 to calibrate with.
        method: how the ranges of the activations are chosen.

    Raises:
        ModelError: the graph cannot be quantised.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    used = images if method == "minmax" else images[np.linspace(0, len(images) - 1, HISTOGRAM_IMAGES).astype(int)]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = _read_batches(used, preprocessing)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    signed = platform.machine().lower() in ("aarch64", "arm64")
    reduce_range = not signed and not has_vnni()
    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="indistill-int8-") as folder,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            given, taken = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
            onnx.save(model, given)
            quantize_static(
                given,
                taken,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=find_head(model.graph),
                calibrate_method=methods[method],
            )
            quantised = onnx.load(taken)
    except _ERRORS as error:
        raise ModelError(f"the network cannot be quantised: {describe_error(error)}") from error
    finally:
        logging.disable(disabled)
    return quantised, {
        "method": method,
        "images": len(used),
        "activations": "int8" if signed else "uint8",
        "weights": "int8 per channel",
        "reduce_range": reduce_range,
    }


def find_head(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of the nodes that stay float: the last matrix product, and what follows it.

    Walking back from the output ends at a convolution or where two paths join: then nothing but plain steps (pooling,
    reshaping) is found.
    """
    producers = {output: node for node in graph.node if node.op_type != "Constant" for output in node.output}
    head: list[str] = []
    source = graph.output[0].name
    while (node := producers.get(source)) is not None:
        inputs = [name for name in node.input if name in producers]
        if node.op_type == "Conv" or len(inputs) != 1:
            break
        head.append(node.name)
        if node.op_type in ("Gemm", "MatMul"):
            break
        source = inputs[0]
    return head


def has_vnni() -> bool:
    """Returns whether this x86 processor multiplies bytes without overflow, as far as the system tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def _read_batches(images: PixelArray, preprocessing: Preprocessing) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(images), BATCH):
        yield {INPUT_NAMES["tensor"]: preprocessing.normalise(images[start : start + BATCH])}
