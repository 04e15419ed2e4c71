"""The images of `bench`: those that are timed, and those on which the engines' vectors are judged."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indistill.cli.inputs import report_skipped
from indistill.closeness import MINIMUM_IMAGES, measure_overlaps, prepare_vectors
from indistill.data.pixels import require_readable
from indistill.data.sets import UNLABELLED, sample_images
from indistill.data.specs import open_images
from indistill.errors import DataError, InputError
from indistill.export.bench import Examination
from indistill.export.bench_report import Include, Quality
from indistill.export.session import Embeddings
from indistill.images import SkippedImage, decode_image
from indistill.retrieval.evaluation.evaluate import measure_map_among

IMAGES = 64
JPEG_QUALITY = 90


@dataclass(frozen=True)
class EncodedImages:
    """Images as they are stored, and their labels (N,): None unless each has one, and map can be measured by them."""

    contents: list[bytes]
    labels: NDArray[np.int64] | None


def read_encoded(spec: str | None, count: int, *, root: Path | None) -> EncodedImages:
    """Returns some readable images of a set, spread evenly over it; one of a set without files is a PPM file.

    Raises:
        DataError: there is no such data, or it cannot be read.
        InputError: no data is named.
    """
    if spec is None:
        raise InputError("real images are needed: name them with --data")
    sample = sample_images(open_images(spec, root=root), count)
    kept, contents, skipped = list[int](), list[bytes](), list[SkippedImage]()
    for position, name in enumerate(sample.names):
        try:
            content = sample.fetch(position).content
            decode_image(content)
        except (DataError, OSError) as error:
            skipped.append(SkippedImage(name, str(error)))
        else:
            kept.append(position)
            contents.append(content)
    require_readable(spec, len(kept), skipped)
    report_skipped(skipped)
    labels = sample.labels[kept]
    counts = np.unique(labels, return_counts=True)[1]
    is_labelled = len(counts) > 1 and counts.max() > 1 and UNLABELLED not in labels
    return EncodedImages(contents, labels if is_labelled else None)


def read_timed_images(spec: str | None, include: Include, *, root: Path | None) -> list[bytes]:
    """Returns the images of which batches are made; those of a set without files are JPEG where decoding is timed."""
    contents = read_encoded(spec, IMAGES, root=root).contents
    if include != "decode":
        return contents
    return [_encode_jpeg(content) if content.startswith(b"P6") else content for content in contents]


def prepare_examination(spec: str | None, count: int, *, root: Path | None) -> Examination:
    """Returns how vectors are judged: by `map` among the images where they have labels, and by the reference's nearest.

    Raises:
        DataError: there is no such data, it cannot be read, or there are too few images.
        InputError: no data is named.
    """
    images = read_encoded(spec, count, root=root)
    if len(images.contents) < MINIMUM_IMAGES:
        raise DataError(
            f"data '{spec}': {MINIMUM_IMAGES} readable images at least are needed to judge vectors, "
            f"not {len(images.contents)}: name others with --evaluate"
        )

    def judge(reference: Embeddings, vectors: Embeddings) -> Quality:
        expected, found = prepare_vectors(reference, "reference"), prepare_vectors(vectors, "engine")
        return Quality(
            images=len(vectors),
            neighbour_overlap=float(measure_overlaps(expected.neighbours, found.neighbours).mean()),
            map=None if images.labels is None else measure_map_among(found.vectors, images.labels),
        )

    return Examination(images.contents, judge)


def _encode_jpeg(content: bytes) -> bytes:
    stream = io.BytesIO()
    decode_image(content).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
