"""The gates: an exported file says what PyTorch says, or it is not written. Needs no torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.closeness import MINIMUM_IMAGES, find_neighbours, measure_overlaps
from indistill.errors import VerificationError
from indistill.export.artefact import Precision
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.preprocess import PixelArray, Preprocessing

BATCHES = (1, 2, 3, 32)
BLOCK = 32
NEIGHBOURS = 10
# Width and height in sides of the network's square: the same, odd, portrait, landscape, smaller.
SIZES = ((1.0, 1.0), (1.37, 1.91), (1.0, 2.3), (3.1, 2.0), (0.7, 0.6))

Reference = Callable[[PixelArray], Embeddings]


@dataclass(frozen=True)
class Limits:
    """What a file of a precision must keep to; see `Agreement` for the names.

    Without `min_overlap`, neighbours and retrieval are measured but cannot fail: vectors that agree to 1e-5 can only
    swap images that are as near as makes no difference, which in a network that hardly tells images apart are many.
    """

    max_difference: float
    min_cosine: float
    min_size_cosine: float
    min_overlap: float | None
    max_norm_error: float = 1e-3


# Measured noise of float32 is 4e-7. One 8-bit level of the resize moves a quantised network further than a float one.
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-5, 0.99999, 0.999, None),
    "fp16": Limits(5e-3, 0.9999, 0.999, 0.9),
    "int8": Limits(0.25, 0.95, 0.99, 0.7),
}


@dataclass(frozen=True)
class Quality:
    """How good embeddings of the gate's images are at retrieval, one being best.

    Attributes:
        name: of the metric.
        measure: gives it for the embeddings (N, D) of all images, in their order.
    """

    name: str
    measure: Callable[[Embeddings], float]


@dataclass(frozen=True)
class Agreement:
    """How far a file is from PyTorch in float32, over all batch sizes and image sizes.

    Attributes:
        max_difference: largest absolute difference of a coordinate of the unit vectors.
        min_cosine: smallest cosine of an image's two vectors.
        max_norm_error: largest distance of a vector's length from one.
        min_size_cosine: smallest cosine of the file's vector of an image of another size and its vector of the same
            image resized by Pillow; one where the file does not resize.
        images: whose neighbours were compared.
        overlap: share of the ten nearest neighbours that both have, mean over the images; None if there are too few.
        metric: what `quality` is: `map` with labels; without, `recall@10`, the share of images whose nearest neighbour
            by PyTorch is among the file's ten nearest. None if there are too few images.
        quality: of the file.
        reference_quality: of PyTorch.
    """

    max_difference: float
    min_cosine: float
    max_norm_error: float
    min_size_cosine: float
    images: int = 0
    overlap: float | None = None
    metric: str | None = None
    quality: float | None = None
    reference_quality: float | None = None

    @property
    def drop(self) -> float:
        """How much retrieval loses; zero if it was not measured."""
        if self.quality is None or self.reference_quality is None:
            return 0.0
        return self.reference_quality - self.quality

    def to_dict(self) -> dict[str, float | str]:
        """Returns the figures rounded, as they are written into the file; those not measured are left out."""
        digits = {"min_cosine": 6, "min_size_cosine": 6, "overlap": 4, "quality": 4, "reference_quality": 4}
        return {
            name: round(value, digits[name])
            if name in digits
            else float(f"{value:.1e}")
            if isinstance(value, float)
            else value
            for name, value in asdict(self).items()
            if value is not None
        }


def measure_agreement(
    session: EmbeddingSession,
    compute_reference: Reference,
    pixels: PixelArray,
    reference: Embeddings,
    quality: Quality | None = None,
) -> Agreement:
    """Compares a file with PyTorch in batches of 1, 2, 3 and 32 real images, of five sizes, and by their neighbours.

    Args:
        session: the file.
        compute_reference: gives PyTorch's unit vectors (B, D) for pixels (B, S, S, 3) uint8.
        pixels: the images (N, S, S, 3), repeated where there are fewer than a batch.
        reference: PyTorch's unit vectors (N, D) of them.
        quality: of retrieval; without it, `recall@10`.
    """
    differences, cosines, norms = [], [], []
    for size in BATCHES:
        batch = pixels[np.arange(size) % len(pixels)]
        found, expected = session.embed_pixels(batch), compute_reference(batch)
        differences.append(np.abs(found - expected).max())
        cosines.append(_compute_cosines(found, expected).min())
        norms.append(np.abs(np.linalg.norm(found, axis=1) - 1).max())
    sizes = _compare_sizes(session, pixels)
    agreement = Agreement(float(np.max(differences)), float(np.min(cosines)), float(np.max(norms)), sizes)
    if len(pixels) < MINIMUM_IMAGES:
        return agreement
    found = np.concatenate([session.embed_pixels(pixels[i : i + BLOCK]) for i in range(0, len(pixels), BLOCK)])
    return _compare_neighbours(agreement, found, reference, quality)


def find_failures(agreement: Agreement, precision: Precision, max_drop: float) -> list[str]:
    """Returns, for each gate that a file fails, its figure and limit; NaN fails."""
    limits = LIMITS[precision]
    checks = [
        ("largest difference", agreement.max_difference, "at most", limits.max_difference),
        ("smallest cosine", agreement.min_cosine, "at least", limits.min_cosine),
        ("largest error of the norm", agreement.max_norm_error, "at most", limits.max_norm_error),
        ("smallest cosine of an image of another size", agreement.min_size_cosine, "at least", limits.min_size_cosine),
    ]
    if agreement.overlap is not None and limits.min_overlap is not None:
        checks.append(("overlap of the ten nearest neighbours", agreement.overlap, "at least", limits.min_overlap))
        checks.append((f"drop of {agreement.metric}", agreement.drop, "at most", max_drop))
    return [
        f"{name} {value:.4g} ({kind} {limit:g})"
        for name, value, kind, limit in checks
        if not (value <= limit if kind == "at most" else value >= limit)
    ]


def require_agreement(agreement: Agreement, precision: Precision, max_drop: float) -> None:
    """Raises VerificationError, with the figures, if a gate fails."""
    failures = find_failures(agreement, precision, max_drop)
    if failures:
        raise VerificationError(
            f"the {precision} file does not agree with PyTorch and was not kept: {', '.join(failures)}"
        )


def _compare_sizes(session: EmbeddingSession, pixels: PixelArray) -> float:
    if session.artefact.input == "tensor":
        return 1.0
    preprocessing: Preprocessing = session.artefact.preprocessing
    cosines = []
    for position, (across, down) in enumerate(SIZES):
        image = Image.fromarray(pixels[position % len(pixels)])
        width, height = (max(1, round(factor * preprocessing.image_size)) for factor in (across, down))
        enlarged = image.resize((width, height), Image.Resampling.BICUBIC)
        found = session.embed_decoded(np.asarray(enlarged)[None])
        expected = session.embed_pixels(preprocessing.resize(enlarged)[None])
        cosines.append(_compute_cosines(found, expected).min())
    return float(np.min(cosines))  # which is NaN if one is


def _compare_neighbours(
    agreement: Agreement, found: Embeddings, reference: Embeddings, quality: Quality | None
) -> Agreement:
    """Returns the agreement with the figures of neighbours and retrieval in it; NaN where the file gives NaN."""
    if not np.isfinite(found).all():
        overlap, value = np.nan, np.nan
    else:
        wanted, given = find_neighbours(reference, NEIGHBOURS), find_neighbours(found, NEIGHBOURS)
        overlap = float(measure_overlaps(wanted, given).mean())
        value = quality.measure(found) if quality else float((given == wanted[:, :1]).any(axis=1).mean())
    return Agreement(
        agreement.max_difference,
        agreement.min_cosine,
        agreement.max_norm_error,
        agreement.min_size_cosine,
        len(found),
        overlap,
        quality.name if quality else "recall@10",
        value,
        quality.measure(reference) if quality else 1.0,
    )


def _compute_cosines(found: Embeddings, expected: Embeddings) -> NDArray[np.float32]:
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines: NDArray[np.float32] = np.sum(found * expected, axis=1) / np.maximum(lengths, 1e-12)
    return cosines
