"""The parity gate: an exported file computes what PyTorch computes, or it is not written. Needs no torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from indistill.errors import VerificationError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.preprocess import PixelArray

BATCHES = (1, 2, 3, 32)
MAX_DIFFERENCE = 1e-5
MIN_COSINE = 0.99999
MAX_NORM_ERROR = 1e-3


@dataclass(frozen=True)
class Parity:
    """How far the file is from PyTorch, over all batch sizes.

    Attributes:
        max_difference: largest absolute difference of a coordinate of the unit vectors.
        min_cosine: smallest cosine of an image's two vectors.
        max_norm_error: largest distance of a vector's length from one.
    """

    max_difference: float
    min_cosine: float
    max_norm_error: float

    def to_dict(self) -> dict[str, float]:
        """Returns the figures with two digits, as they are written into the file."""
        rounded = {name: float(f"{value:.1e}") for name, value in asdict(self).items()}
        return rounded | {"min_cosine": round(self.min_cosine, 6)}


def measure_parity(
    session: EmbeddingSession, compute_reference: Callable[[PixelArray], Embeddings], pixels: PixelArray
) -> Parity:
    """Compares a file with PyTorch in batches of 1, 2, 3 and 32 real images.

    Args:
        session: the file.
        compute_reference: gives PyTorch's unit vectors (B, D) for pixels (B, S, S, 3) uint8.
        pixels: the images, repeated where there are fewer than a batch.
    """
    differences, cosines, norms = [], [], []
    for size in BATCHES:
        batch = pixels[np.arange(size) % len(pixels)]
        found, expected = session.embed_pixels(batch), compute_reference(batch)
        lengths = np.linalg.norm(found, axis=1)
        differences.append(np.abs(found - expected).max())
        cosines.append((np.sum(found * expected, axis=1) / np.maximum(lengths, 1e-12)).min())
        norms.append(np.abs(lengths - 1).max())
    return Parity(float(max(differences)), float(min(cosines)), float(max(norms)))


def require_parity(parity: Parity) -> None:
    """Raises VerificationError, with the figures, unless the file agrees with PyTorch (NaN does not)."""
    if (
        parity.max_difference <= MAX_DIFFERENCE
        and parity.min_cosine >= MIN_COSINE
        and parity.max_norm_error <= MAX_NORM_ERROR
    ):
        return
    raise VerificationError(
        "the exported file does not agree with PyTorch and was not kept: "
        f"largest difference {parity.max_difference:.2e} (at most {MAX_DIFFERENCE:.0e}), "
        f"smallest cosine {parity.min_cosine:.6f} (at least {MIN_COSINE}), "
        f"largest error of the norm {parity.max_norm_error:.2e} (at most {MAX_NORM_ERROR:.0e})"
    )
