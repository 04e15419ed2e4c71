"""The model card of a folder: a README.md whose every figure comes from the files' own metadata. Needs no torch.

The texts of that metadata are anyone's. In the block of YAML they are scalars that PyYAML quotes; in Markdown they
stand in code spans, whose fence is longer than any row of backticks in them, on one line. No text can end either.

Reference:
    https://huggingface.co/docs/hub/model-cards and
    https://github.com/huggingface/hub-docs/blob/main/modelcard.md (the keys of the metadata)
    https://spec.commonmark.org/0.31.2/#code-spans
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from indistill import __version__
from indistill.errors import ModelError, escape_text
from indistill.export.artefact import Artefact
from indistill.files.documents import read_yaml

TASK = "image-feature-extraction"
TAGS = ["onnx", "indistill", "image-retrieval", "embeddings", "knowledge-distillation"]
METRICS = {
    "map": "mAP by the cosine, each image looked for among the others",
    "recall@10": "share of images whose nearest neighbour by PyTorch is among the file's ten nearest",
}
# The Hub has a repository for each set of weights of timm, named as the network and the tag of the weights.
_TIMM_WEIGHTS = re.compile(r"timm:([A-Za-z0-9_]+\.[A-Za-z0-9_]+)(?:\?.*)?")
_METADATA = re.compile(r"---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)

_USE_IMAGE = """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
image = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
(embedding,) = session.run(None, {"image": image[np.newaxis]})
"""
_USE_TENSOR = """\
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

with open("preprocessor_config.json") as stream:
    config = json.load(stream)
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
shorter, edge, side = min(image.size), config["size"]["shortest_edge"], config["crop_size"]["height"]
width, height = (length * edge // shorter for length in image.size)
left, top = (width - side) // 2, (height - side) // 2
square = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
values = (np.asarray(square) * config["rescale_factor"] - config["image_mean"]) / config["image_std"]
pixel_values = values.astype(np.float32).transpose(2, 0, 1)[np.newaxis]

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(embedding,) = session.run(None, {"pixel_values": pixel_values})
"""
_LOADERS_IMAGE = """\
Resizing and normalisation are in the file. Loaders that do both themselves by `preprocessor_config.json` (fastembed,
the image processors of transformers) need a file of `indistill export --input tensor` instead.
"""
_LOADERS_TENSOR = """\
Loaders that prepare images by `preprocessor_config.json` (fastembed, the image processors of transformers) read this
folder as it is.
"""


@dataclass(frozen=True)
class PackedFile:
    """A file of a folder: its name there, what it says of itself, and what it is."""

    name: str
    artefact: Artefact
    size_bytes: int
    sha256: str


def format_card(files: Sequence[PackedFile], title: str = "", license_id: str = "") -> str:
    """Returns the content of README.md.

    Args:
        files: of one student, float32 first.
        title: of the card; the network's name where there is none.
        license_id: as the Hub calls it; empty where none was given.
    """
    metadata = describe_card(files, title, license_id)
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10_000)
    parts = [
        f"# {quote_text(title or files[0].artefact.name)}",
        _introduce(files[0].artefact),
        "## The model\n\n" + _list_facts(files[0].artefact),
        "## Files\n\n" + _tabulate_files(files),
        "## Figures\n\n" + _tabulate_figures(files),
        "## How to use\n\n" + _show_use(files[0].artefact),
        "## Licence\n\n" + _state_licence(license_id),
    ]
    return f"---\n{header}---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def describe_card(files: Sequence[PackedFile], title: str = "", license_id: str = "") -> dict[str, Any]:
    """Returns the card's metadata, by the keys of the Hub.

    `base_model` is there where the teacher's spec names weights of timm (`timm:resnet50.a1_in1k`), which have a
    repository each; other teachers have none that could be named.
    """
    artefact = files[0].artefact
    metadata: dict[str, Any] = {"library_name": "indistill", "pipeline_tag": TASK, "tags": TAGS}
    if license_id:
        metadata["license"] = license_id
    weights = _TIMM_WEIGHTS.fullmatch(artefact.teacher)
    if weights:
        metadata["base_model"] = f"timm/{weights[1]}"
    results = _list_results(files)
    if results:
        metadata["model-index"] = [{"name": escape_text(title or artefact.name), "results": results}]
    return metadata


def read_metadata(card: str) -> dict[str, Any]:
    """Returns the metadata of a card.

    Raises:
        ModelError: it has none, or none that can be read; the message is the reason alone.
    """
    block = _METADATA.match(card)
    try:
        metadata = read_yaml(block[1]) if block else None
    except ValueError as error:
        raise ModelError(f"its metadata is no YAML: {escape_text(str(error))}") from error
    if not isinstance(metadata, dict):
        raise ModelError("it does not begin with a block of metadata between two lines '---'")
    return metadata


def quote_text(text: str) -> str:
    """Returns text from anyone as a code span of Markdown: in one line, short, and nothing in it is markup."""
    shown = escape_text(text) or " "
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest or shown.startswith(" ") else f"{fence}{shown}{fence}"


def _introduce(artefact: Artefact) -> str:
    text = (
        f"Gives for an image a vector of {artefact.embedding_dim} numbers, of length one: images are alike where the "
    )
    text += "product of their vectors is large."
    if artefact.teacher:
        text += (
            f" A student of {quote_text(artefact.teacher)}, distilled by [InDistill](https://arxiv.org/abs/2205.10003)."
        )
    return text


def _list_facts(artefact: Artefact) -> str:
    preprocessing = artefact.preprocessing
    side = preprocessing.image_size
    takes = {
        "image": "`image`, decoded RGB images, uint8, batch × height × width × 3, of any size; a batch holds one size",
        "tensor": f"`pixel_values`, normalised RGB, float32, batch × 3 × {side} × {side}",
    }
    facts = {
        "network": quote_text(artefact.name),
        "teacher": quote_text(artefact.teacher) if artefact.teacher else "none is named in the files",
        "training images": f"fingerprint {quote_text(artefact.data_fingerprint)}"
        if artefact.data_fingerprint
        else "not named in the files",
        "takes": takes[artefact.input],
        "gives": f"`embedding`, float32, batch × {artefact.embedding_dim}, of length one",
        "preprocessing": f"shorter side to {preprocessing.shortest_edge} pixels (bilinear, antialiased), centre square "
        f"of {side}, divided by 255, mean {_join(preprocessing.mean)}, std {_join(preprocessing.std)}"
        + (", all in the file" if artefact.input == "image" else ", by whoever calls it"),
        "weights": f"SHA-256 {quote_text(artefact.weights_sha256)}",
        "written by": f"indistill {quote_text(artefact.version)}, packed by indistill {__version__}",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items())


def _tabulate_files(files: Sequence[PackedFile]) -> str:
    rows = [
        [f"`{file.name}`", file.artefact.precision, f"{file.size_bytes / 1e6:.2f}", f"`{file.sha256}`"]
        for file in files
    ]
    return _format_table(["file", "precision", "MB", "SHA-256"], rows)


def _tabulate_figures(files: Sequence[PackedFile]) -> str:
    header = ["file", "images", "largest difference", "smallest cosine", "overlap of the ten nearest"]
    keys = ["images", "max_difference", "min_cosine", "overlap"]
    rows = [[f"`{file.name}`", *(_show_figure(file.artefact, key) for key in keys)] for file in files]
    text = "Measured by the export on real images, each file against its network in PyTorch in float32.\n\n"
    found = sorted({name for name in map(_find_metric, files) if name is not None})
    for name in found:
        header += [name, f"{name} of PyTorch"]
        for row, file in zip(rows, files, strict=True):
            measured = _find_metric(file) == name
            row += [_show_figure(file.artefact, key) if measured else "-" for key in ("quality", "reference_quality")]
    text += _format_table(header, rows)
    if found:
        text += "\n\n" + "\n".join(f"- {name}: {METRICS[name]}" for name in found)
    return text


def _list_results(files: Sequence[PackedFile]) -> list[dict[str, Any]]:
    """Returns the results of `model-index`: how good each file is at retrieval, where it was measured."""
    metrics = [
        {"type": name, "name": f"{name} of {file.name}", "value": value}
        for file in files
        if (name := _find_metric(file)) is not None and (value := _read_figure(file.artefact, "quality")) is not None
    ]
    if not metrics:
        return []
    dataset = {"type": "private", "name": "the images that the export was verified with"}
    return [{"task": {"type": TASK, "name": "image retrieval"}, "dataset": dataset, "metrics": metrics}]


def _show_use(artefact: Artefact) -> str:
    code, loaders = (_USE_IMAGE, _LOADERS_IMAGE) if artefact.input == "image" else (_USE_TENSOR, _LOADERS_TENSOR)
    commands = "indistill index build IMAGES --model model.onnx --out INDEX\nindistill search INDEX photo.jpg\n"
    return (
        f"With ONNX Runtime and Pillow:\n\n```python\n{code}```\n\n"
        f"With indistill, which indexes and searches images by it:\n\n```bash\n{commands}```\n\n{loaders}"
    )


def _state_licence(license_id: str) -> str:
    if license_id:
        return f"{quote_text(license_id)}."
    return "No licence was given with this model: ask its author before you use it."


def _find_metric(file: PackedFile) -> str | None:
    """Returns what a file's retrieval was measured by; None if it was not, or by something unknown."""
    name = file.artefact.verification.get("metric")
    return name if isinstance(name, str) and name in METRICS else None


def _read_figure(artefact: Artefact, key: str) -> float | None:
    """Returns a figure of the export's gates; None where it was not measured, or is no number."""
    value: object = artefact.verification.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _show_figure(artefact: Artefact, key: str) -> str:
    value = _read_figure(artefact, key)
    return "-" if value is None else f"{value:.6g}"


def _join(values: Sequence[float]) -> str:
    return " / ".join(f"{value:g}" for value in values)


def _format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
