"""The options of every command, drawn from its own parameters: wrong types, bounds, numbers that are none, texts.

Where training, timing or serving would begin, all has been read and the attempt has passed.
"""

import importlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args
from unittest.mock import patch

import typer

from benchmarks.fuzz.command import check_command, reach
from benchmarks.fuzz.texts import NUMBERS, draw_text
from benchmarks.fuzz.workspace import find_workspace
from indistill.cli.main import build_app

LINES = {
    "train": "--model paper:cnn-s --data {gallery} --recipe digits --epochs 1 --out out",
    "compress": "--teacher {teacher} --student paper:cnn-s --data {gallery} --recipe digits --epochs 3 --out out",
    "report": "{run} --images 20",
    "compare": "{run} --no-latency",
    "export": "{run} --onnx --out out.onnx",
    "info": "{model}",
    "pack": "{model} --out out --license mit",
    "push": "{run} owner/name --dry-run",
    "pull": "owner/name --out out",
    "bench": "{run} --rounds 1",
    "index build": "{gallery} --model {model} --out out",
    "index add": "{index} {query}",
    "index sync": "{index}",
    "index remove": "{index} --id 1",
    "index info": "{index}",
    "index push": "{index} --to file.db --collection c",
    "index verify": "{index}",
    "index rebuild": "{index}",
    "index compact": "{index}",
    "index merge": "{index} {index} --out out",
    "search": "{index} {query} -k 3",
    "dedupe": "{index}",
    "evaluate": "{index} --queries {gallery}",
    "serve": "{index}",
    "plan": "--images 1e6 --model {model}",
    "demo": "--out out",
}
WORK = (
    "indistill.training.devices.check_compilation",
    "indistill.runs.supervise.run_supervised",
    "indistill.runs.compress.run_compress",
    "indistill.runs.auxiliary.run_chain",
    "indistill.models.students.settle_width",
    "indistill.cli.closeness.report_run",
    "indistill.cli.exporting.write_files",
    "indistill.export.bench.run_bench",
    "indistill.cli.comparison.time_groups",
    "indistill.cli.walk.walk_digits",
    "indistill.retrieval.serve.server.run_server",
    "indistill.retrieval.milvus.push.push_index",
    "indistill.retrieval.cluster.building.build_on_cluster",
    "indistill.retrieval.capacity.measure_rates",
    "indistill.export.hub.push_folder",
    "indistill.export.hub.pull_folder",
)
CHANGING = ("index add", "index sync", "index remove", "index rebuild", "index compact")


def prepare() -> None:
    """Imports what the commands do, so that the attempts need not."""
    find_workspace()
    for work in WORK:
        importlib.import_module(work.rpartition(".")[0])


def attempt(random: Random, folder: Path) -> None:
    """Gives one command line."""
    here = folder / "one" / "two"  # so that .. stays within
    here.mkdir(parents=True)
    os.chdir(here)
    name = random.choice(list(LINES))
    places = {key: find_workspace() / key for key in ("gallery", "teacher", "run", "index")}
    places |= {
        "model": find_workspace() / "run" / "student.onnx",
        "query": min(find_workspace().glob("gallery/*/*.png")),
    }
    if name in CHANGING:
        places["index"] = Path(shutil.copytree(find_workspace() / "index", here / "index"))
    given = [word.format(**places) for word in LINES[name].split()]
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3))):
        given = change_options(random, given, list_options(name))
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "COLUMNS": "200"}
    patches = [patch(work, reach) for work in WORK]
    for one in (*patches, patch("indistill.training.devices.start_processes", _start)):
        one.start()
    try:
        check_command([*name.split(), *given])
    finally:
        patch.stopall()


def _start(device: str, count: int, command: Callable[[], None]) -> Any:
    from indistill.training.devices import check_devices, choose_device

    check_devices(device, count)
    if count > 1:
        reach()
    return choose_device(device)


def list_options(name: str) -> list[Any]:
    """Returns the options of a command, as Typer has them."""
    found: Any = typer.main.get_command(build_app())
    for part in name.split():
        found = found.commands[part]
    return [parameter for parameter in found.params if parameter.opts[0].startswith("-")]


def change_options(random: Random, given: list[str], options: list[Any]) -> list[str]:
    """Returns a command line with an option more, a word less, or a word changed."""
    match random.randrange(8):
        case 0:
            place = random.randrange(len(given) + 1)
            return given[:place] + given[place + 1 :]
        case 1:
            place = random.randrange(len(given) + 1)
            return [*given[:place], _clean(draw_text(random)), *given[place + 1 :]]
        case 2:
            return [*given, _clean(draw_text(random))]
        case _:
            option = random.choice(options)
            name = random.choice([*option.opts, *option.secondary_opts])
            if getattr(option, "is_flag", False):
                return [*given, name]
            value = _clean(draw_option_value(random, option))
            return [*given, f"{name}={value}"] if random.random() < 0.3 else [*given, name, value]


def draw_option_value(random: Random, option: Any) -> str:
    """Returns a value for an option: near its bounds, a choice, a number, or any text."""
    if random.random() < 0.35:
        return draw_text(random)
    kind = option.type_descriptor.annotation
    inner = [kind, *get_args(kind), *(part for outer in get_args(kind) for part in get_args(outer))]
    choices = [part for part in inner if isinstance(part, str)]
    if choices:
        return random.choice(choices)
    bounds = [bound for bound in (option.min, option.max) if bound is not None]
    if bounds or int in inner or float in inner:
        near = [bound + step for bound in bounds for step in (-1, 0, 1, 0.5)]
        return str(random.choice([*near, *NUMBERS, 2, 3]))
    places = ("none", "", ".", "..", "one two", "/dev/null", "digits/train", "a.yaml", "x.csv", "paper:cnn-a", "x?y=z")
    return random.choice(places)


def _clean(text: str) -> str:
    """Returns what a shell can pass on: no NUL, and no path that lies outside."""
    return re.sub(r"^/+(?!dev/null)", "", text.replace("\0", ""))
