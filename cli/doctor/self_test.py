"""The whole way in small: a model that is made here, images that are made here, an index of them, a search."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

from indistill import __version__
from indistill.data.specs import open_images
from indistill.export.artefact import Artefact
from indistill.export.session import EmbeddingSession
from indistill.preprocess import Preprocessing
from indistill.retrieval.search import search_images
from indistill.retrieval.store.build import build_index

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


def write_model(path: Path) -> None:
    """Writes a file whose embedding (B, 3) of an image (B, H, W, 3) uint8 is the direction of its mean colour."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["embedding"], axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "colour", [image], [embedding]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    preprocessing = Preprocessing(8, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    artefact = Artefact("colour", 3, preprocessing, "image", "fp32", {}, "", "", "", {}, __version__)
    helper.set_model_props(model, artefact.to_metadata())
    path.write_bytes(model.SerializeToString())


def run(folder: Path) -> str:
    """Embeds, indexes and searches in an empty folder; returns what was done. Raises AssertionError if it is wrong."""
    (folder / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.fromarray(np.full((9, 12, 3), colour, np.uint8)).save(folder / "images" / f"{name}.png")
    write_model(folder / "colour.onnx")
    session = EmbeddingSession(folder / "colour.onnx", threads=1)
    build_index(open_images(str(folder / "images")), session, folder / "index")
    hits = search_images(folder / "index", [folder / "images" / "green.png"], k=2).queries[0][1]
    assert hits[0].path == "green.png", f"the nearest image is {hits[0].path}, not green.png"
    assert abs(hits[0].score - 1) < 1e-5, f"the score of the same image is {hits[0].score}, not 1"
    return f"embedded, indexed and searched {len(COLOURS)} images: the right one has the score {hits[0].score:.3f}"
