"""Embeddings of images by a PyTorch network, as they are: not normalised."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from indistill.models.loading import Network
from indistill.preprocess import PixelArray, Preprocessing
from indistill.stages.graph import Embedder, freeze

BATCH_SIZE = 256


def embed_pixels(
    network: Network,
    preprocessing: Preprocessing,
    pixels: PixelArray,
    on_progress: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float32]:
    """Returns embeddings (N, D) float32 for resized images (N, S, S, 3) uint8, N at least one.

    Args:
        network: with its weights, on the device that embeds.
        preprocessing: gives mean and std.
        pixels: the images.
        on_progress: called with the number of images just done.
    """
    embedder = freeze(Embedder(network.module, network.embedding))
    device = next(network.module.parameters(), torch.zeros(0)).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH_SIZE):
            batch = pixels[start : start + BATCH_SIZE]
            images = torch.from_numpy(preprocessing.normalise(batch)).contiguous(memory_format=torch.channels_last)
            parts.append(embedder(images.to(device)).cpu().numpy())
            on_progress(len(batch))
    return np.concatenate(parts)
