"""`preprocessor_config.json`: preprocessing by the keys of Hugging Face's image processors. Needs no torch."""

import json
from typing import Any

from indistill.preprocess import Preprocessing

PROCESSOR_FILE = "preprocessor_config.json"
BILINEAR = 2  # PIL.Image.Resampling.BILINEAR


def describe_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """Returns preprocessing by the keys of `CLIPImageProcessor`, which resizes and crops as ours does.

    Reference:
        https://huggingface.co/docs/transformers/model_doc/clip#transformers.CLIPImageProcessor
    """
    side = preprocessing.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.shortest_edge},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def format_processor(preprocessing: Preprocessing) -> str:
    """Returns the content of `preprocessor_config.json`."""
    return json.dumps(describe_processor(preprocessing), indent=2) + "\n"
