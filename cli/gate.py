"""The images that an export is verified and calibrated with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indistill.data.pixels import Pixels
from indistill.data.sets import sample_images
from indistill.data.specs import locate_data, open_images
from indistill.errors import InputError
from indistill.export.quantise import MINIMUM_IMAGES, check_calibration
from indistill.export.verify import Quality
from indistill.images import SkippedImage
from indistill.preprocess import PixelArray, Preprocessing
from indistill.training.split import has_classes

CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class GateImages:
    """What an export is verified with.

    Attributes:
        pixels: (N, S, S, 3) uint8.
        quality: `map` where the images have classes; without them the gate measures `recall@10`.
        calibration: images for int8; None where there is none to write.
    """

    pixels: PixelArray
    quality: Quality | None
    calibration: PixelArray | None


def read_gate_images(
    spec: str | None, calibrate: str | None, preprocessing: Preprocessing, count: int, *, int8: bool, root: Path | None
) -> GateImages:
    """Returns the images of the gates, and for int8 those of the calibration: others, where there are enough.

    Args:
        spec: data of the gates.
        calibrate: data of the calibration; None for those of the gates.
        preprocessing: what they go through.
        count: of the gates' images, at most.
        int8: whether there is anything to calibrate.
        root: where data sets by name lie.

    Raises:
        DataError: the data cannot be read, or the images to calibrate with are too few or noise.
        InputError: no data is named.
    """
    if spec is None:
        raise InputError("real images are needed: name them with --data")
    own = int8 and calibrate is None
    pixels = _read(spec, preprocessing, count + (CALIBRATION_IMAGES if own else 0), root)
    gate, calibration = np.arange(len(pixels)), None
    if own:
        wanted = min(CALIBRATION_IMAGES, max(len(pixels) - count, len(pixels) // 2))
        others = np.linspace(0, len(pixels) - 1, wanted).astype(int)
        if len(others) < MINIMUM_IMAGES:  # few images: all of them for both
            others = gate
        else:
            gate = np.setdiff1d(gate, others)
        gate = gate[np.linspace(0, len(gate) - 1, min(count, len(gate))).astype(int)]
        calibration = pixels.images[others]
    elif int8 and calibrate is not None:
        known = pixels.skipped if locate_data(calibrate) == locate_data(spec) else ()
        calibration = _read(calibrate, preprocessing, CALIBRATION_IMAGES, root, known).images
    if calibration is not None:
        check_calibration(calibration)
    return GateImages(pixels.images[gate], make_quality(pixels, gate), calibration)


def make_quality(pixels: Pixels, chosen: NDArray[np.int64]) -> Quality | None:
    """Returns `map` by cosine, each image looked for among the others; None where no two share one of several classes.

    Args:
        pixels: images with their classes.
        chosen: positions (N,) of the images whose vectors are measured.
    """
    from indistill.retrieval.evaluation.evaluate import measure_map_among

    labels = pixels.labels[chosen]
    known = labels >= 0
    _, counts = np.unique(labels[known], return_counts=True)
    if not has_classes(pixels.classes) or len(counts) < 2 or counts.max() < 2:
        return None
    return Quality("map", lambda vectors: measure_map_among(vectors[known], labels[known]))


def _read(
    spec: str, preprocessing: Preprocessing, count: int, root: Path | None, known: Sequence[SkippedImage] = ()
) -> Pixels:
    """Returns some images; says which were skipped, but for those that are known."""
    from indistill.cli.inputs import report_skipped
    from indistill.data.pixels import load_pixels
    from indistill.progress import show_progress

    images = sample_images(open_images(spec, root=root), count)
    with show_progress(f"reading {images.name}", len(images.names)) as advance:
        pixels = load_pixels(images, preprocessing, advance)
    report_skipped([image for image in pixels.skipped if image not in known])
    return pixels
