"""Settings, recipes and options that cannot be, alone or together, are refused."""

import re

import pytest

from tests.cli.calls import assert_refused, fill, run_cli, run_process
from tests.cli.lines import BUILD, COMPRESS, EVALUATE, TRAIN, Places, Refuse

SETTINGS = {
    "recipe unknown": (
        "--recipe digit",
        "recipe 'digit' is not one of cifar10, cifar100, cub200, default, digits",
        "mean 'digits'?",
    ),
    "key unknown": ("--set data.image_sise=64", "data.image_sise: no such key. Did you mean 'image_size'?"),
    "section unknown": ("--set optimizer.lr=1", "optimizer: no such key. Did you mean 'optimiser'?"),
    "all problems at once": ("--set data.crop=2 --set optimiser.lrr=1", "data.crop: ", "optimiser.lrr: no such key"),
    "value of another type": ("--set data.flip=perhaps", "data.flip: ", "not 'perhaps'"),
    "value that is no YAML": ("--set data.crop=[", "data.crop: '[' cannot be read"),
    "no value": ("--set data.crop", "--set 'data.crop' is not of the form section.key=value"),
    "device unknown": ("--device toaster", "--device 'toaster' cannot be used here"),
    "image size too small": ("--image-size 8", "image_size 8 is too small"),
    "image size too large": ("--image-size 5000", "data.image_size: input should be less than or equal to 4096"),
}


@pytest.mark.parametrize("case", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_not_validate_are_refused(refuse: Refuse, case: tuple[str, ...]) -> None:
    options, *words = case
    refuse(f"{TRAIN} {options}", *words)


SIZES = {
    "export": "export {run} --onnx --out {out} --data {loose} --recipe default",
    "evaluate": EVALUATE.replace("{model}", "{run}") + " --recipe default",
}


@pytest.mark.parametrize("line", SIZES.values(), ids=SIZES)
def test_a_recipe_of_another_image_size_than_the_networks_is_refused(refuse: Refuse, line: str) -> None:
    refuse(line, "cannot take images of", "224")


@pytest.mark.parametrize("options", ["--seed 99999999999999999999", "--set data.crop=1e-9"])
def test_a_number_out_of_all_bounds_is_no_failure_of_ours(places: Places, options: str) -> None:
    result = run_cli(*fill(f"{TRAIN} {options}", places))
    assert result.code == 2, result.err
    assert not places["out"].exists()


RECIPES = {"not UTF-8": b"\xff\xfe\x00", "not YAML": b"data: [1\nloss: }\n", "a list": b"- data\n", "empty": b""}


@pytest.mark.parametrize("content", RECIPES.values(), ids=RECIPES)
def test_a_damaged_recipe_file_is_refused(places: Places, refuse: Refuse, content: bytes) -> None:
    (places["here"] / "recipe.yaml").write_bytes(content)
    refuse(TRAIN.replace("digits", "{here}/recipe.yaml"), "recipe '{here}/recipe.yaml'")


COMBINATIONS = {
    "criterion without pruning": (COMPRESS + " --no-warm-up --criterion l2", "of a warm-up that prunes"),
    "strict without pruning": (COMPRESS + " --set targets.alignment=regressor --strict", "of a warm-up that prunes"),
    "evaluate nothing": ("evaluate --queries {queries}", "name either an INDEX, or --model with --gallery"),
    "evaluate both": (EVALUATE.replace("evaluate", "evaluate {index}"), "name either an INDEX, or --model"),
    "evaluate without gallery": ("evaluate --model {model} --queries {queries}", "--model with --gallery"),
    "evaluate an index with gallery": ("evaluate {index} --gallery {gallery} --queries {queries}", "name either"),
    "export without a format": ("export {run} --out {out}", "say which format to export to: --onnx"),
    "export a spec without a file": ("export paper:cnn-s --onnx --data {loose}", "name the file to write with --out"),
    "export a spec without data": ("export paper:cnn-s --onnx --out {out}", "name them with --data"),
    "bench a run of train": ("bench {teacher}", "it has no teacher: name one with --teacher"),
    "bench an unknown teacher": ("bench {run} --teacher paper:nothing --rounds 1", "paper has no model 'nothing'"),
    "data set unknown": (TRAIN.replace("{gallery}", "digit/train"), "no data set of this name", "mean 'digits'?"),
    "split unknown": (TRAIN.replace("{gallery}", "digits/val"), "digits has no split 'val'"),
    "data set not fetched": (TRAIN.replace("{gallery}", "cifar10/test") + " --data-root {none}", "--download fetches"),
}


@pytest.mark.parametrize("case", COMBINATIONS.values(), ids=COMBINATIONS)
def test_options_that_do_not_go_together_are_refused(refuse: Refuse, case: tuple[str, ...]) -> None:
    line, *words = case
    refuse(line, *words)


USAGE = {
    "command unknown": "trian",
    "option unknown": "train --modle paper:cnn-s",
    "option missing": "train --model paper:cnn-s --data {gallery}",
    "argument missing": "search {index}",
    "number expected": TRAIN + " --epochs many",
    "number too small": "search {index} {query} -k 0",
    "choice unknown": COMPRESS + " --loss kl",
}


@pytest.mark.parametrize("line", USAGE.values(), ids=USAGE)
def test_wrong_usage_ends_with_exit_code_2_and_the_usage(places: Places, line: str) -> None:
    result = run_cli(*fill(line, places))
    assert result.code == 2
    assert "Usage: " in result.err
    assert "Traceback" not in result.err
    assert not places["out"].exists()


def test_a_loss_that_is_not_finite_is_our_failure_and_leaves_no_complete_run(places: Places) -> None:
    result = run_cli(*fill(TRAIN + " --lr 1e30", places))
    assert result.code == 1
    assert re.match(
        r"indistill: error: the loss of batch 1 of 1 in epoch \d .* is not finite", result.err.splitlines()[-1]
    )
    assert "Traceback" not in result.err
    assert_refused(run_cli("export", places["out"], "--onnx"), "is not complete")


def test_debug_shows_where_an_error_comes_from(places: Places) -> None:
    result = run_process("search", places["index"], places["none"], "--debug")
    assert result.code != 0
    assert result.err.startswith("Traceback (most recent call last):")
    assert f"indistill.errors.DataError: query {places['none']}: no such file" in result.err


NUMBERS = {
    "learning rate": TRAIN + " --lr {number}",
    "recipe": TRAIN + " --set optimiser.lr={number}",
    "upload": "serve {index} --max-upload-mb {number}",
    "rate": "serve {index} --rate {number}",
    "length of a turn": "bench {run} --min-seconds {number}",
    "recall": BUILD + " --recall {number}",
    "threshold": "search {index} {query} --threshold {number}",
    "memory": BUILD + f" --max-memory {'9' * 400}TB",
    "latency": BUILD + f" --max-latency {'9' * 400}s",
    "memory of a machine": f"plan --images 10 --model {{model}} --memory {'9' * 400}TB",
}


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("line", NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_is_not_finite_is_refused(places: Places, line: str, number: str) -> None:
    result = run_cli(*fill(line.replace("{number}", number), places))
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert not places["out"].exists()
