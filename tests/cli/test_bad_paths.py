"""A path that is not there is named, and nothing is left behind."""

import pytest

from tests.cli.lines import BUILD, COMPRESS, EVALUATE, TRAIN, Refuse

MISSING_PATHS = {
    "data of train": TRAIN.replace("{gallery}", "{none}"),
    "data of compress": COMPRESS.replace("{loose}", "{none}"),
    "data of export": "export {run} --onnx --out {out} --data {none}",
    "weights of train": TRAIN + " --weights {none}.safetensors",
    "weights of the teacher": COMPRESS.replace("{teacher}", "paper:cnn-a") + " --teacher-weights {none}.pt",
    "weights of the student": COMPRESS + " --student-weights {none}.safetensors",
    "weights of export": "export paper:cnn-s --onnx --data {loose} --out {out} --weights {none}.safetensors",
    "weights of an evaluated index": "evaluate {index} --queries {queries} --weights {none}.safetensors",
    "weights of an evaluated ONNX file": EVALUATE + " --weights {none}.safetensors",
    "weights of evaluate": EVALUATE.replace("{model}", "paper:cnn-s") + " --weights {none}.safetensors",
    "teacher": COMPRESS.replace("{teacher}", "{none}"),
    "model file": TRAIN.replace("paper:cnn-s", "{none}.py:build"),
    "recipe": TRAIN.replace("digits", "{none}.yaml"),
    "run of export": "export {none} --onnx",
    "run of bench": "bench {none}",
    "ONNX file of bench": "bench {run} --onnx {none}.onnx",
    "model of index build": BUILD.replace("{model}", "{none}.onnx"),
    "model of search": "search {index} {query} --model {none}.onnx",
    "model of evaluate": EVALUATE.replace("{model}", "{none}.onnx"),
    "images of index build": BUILD.replace("{gallery}", "{none}"),
    "index of index info": "index info {none}",
    "index of search": "search {none} {query}",
    "index of evaluate": "evaluate {none} --queries {queries}",
    "query": "search {index} {none}.png",
    "queries": EVALUATE.replace("{queries}", "{none}"),
    "gallery": EVALUATE.replace("{gallery}", "{none}"),
}


@pytest.mark.parametrize("line", MISSING_PATHS.values(), ids=MISSING_PATHS)
def test_a_path_that_does_not_exist_is_named(refuse: Refuse, line: str) -> None:
    refuse(line, "{none}")
