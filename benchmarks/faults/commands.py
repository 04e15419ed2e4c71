"""The commands that write, each with a place that is ready for it and a look at what it left there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = 48
SMALL = "--image-size 32 --batch-size 8"
NETWORKS = """from torch import nn


def build(num_classes: int = 2, width: int = 4) -> nn.Module:
    def convolve(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 16), nn.ReLU(), nn.Linear(16, num_classes)]
    return nn.Sequential(*convolve(3, width), *convolve(width, 2 * width), *pool)
"""
NOTHING = "nothing"


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
        name: of its row.
        line: the command line; `{here}` is the place that it writes to, `{given}` what it reads.
        prepare: fills the place, from the folder of all that was made before.
        look: says what is in the place: `nothing`, or a text that tells results apart; fails where one is half written.
        workers: added to the line to have processes of its own that can be killed; None where it has none.
        resumes: whether it goes on with --resume.
    """

    name: str
    line: str
    prepare: Callable[[Path, Path], None]
    look: Callable[[Path], str]
    workers: str | None = None
    resumes: bool = False

    def make_words(self, here: Path, given: Path, *, again: bool = False) -> list[str]:
        """Returns the words of its line, the first time or again."""
        words = self.line.format(here=here, given=given).split()
        return [*words, "--resume"] if again and self.resumes and (here / "run" / "config.yaml").exists() else words


def make_base(base: Path, run: Callable[[str], None]) -> None:
    """Makes all that the commands begin with, by the commands themselves.

    Args:
        base: an empty folder.
        run: runs a command line.
    """
    source = np.random.default_rng(0)
    for number in range(IMAGES):
        path = base / "given" / "gallery" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = source.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(path)
    given = base / "given"
    shutil.copytree(given / "gallery" / "a", given / "more" / "a")
    for number, path in enumerate(sorted((given / "more" / "a").iterdir())):
        pixels = source.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(path.with_name(f"new-{number:02d}.png"))
        path.unlink()
    (given / "networks.py").write_text(NETWORKS, encoding="utf-8")
    network = f"{given}/networks.py:build"
    run(f"train --model {network}?width=8 --data {given}/gallery --out {given}/teacher {SMALL} --epochs 2")
    student = f"--teacher {given}/teacher --student {network} --data {given}/gallery --no-report {SMALL}"
    run(f"compress {student} --out {given}/run --epochs 6")
    run(f"report {given}/run --images 20")
    run(f"export {given}/run --onnx --out {base}/tensor/student.onnx --input tensor")
    run(f"export {given}/run --onnx --out {given}/student.onnx")
    run(f"index build {given}/gallery/a --model {given}/student.onnx --out {base}/index")
    run(f"index build {given}/more --model {given}/student.onnx --out {given}/other")
    run(f"pack {given}/student.onnx --license apache-2.0 --out {base}/folder")
    run(f"pack {given}/student.onnx --license mit --out {given}/folder")


def hash_bytes(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()[:12]


def look_at_run(here: Path) -> str:
    """Tells runs apart by weights and losses. Raises anything where a file with a final name is not whole."""
    import safetensors.numpy
    import yaml

    run = here / "run"
    if not (run / "config.yaml").exists():
        return NOTHING
    assert yaml.safe_load((run / "config.yaml").read_bytes())["network"]
    json.loads((run / "environment.json").read_bytes())
    for path in run.glob("*.safetensors"):
        assert "</html>" in (run / "report.html").read_text(encoding="utf-8")
        safetensors.numpy.load(path.read_bytes())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1)), lines
        losses = [line["loss"] for line in lines]
        return hash_bytes(path.read_bytes(), json.dumps(losses).encode())
    return NOTHING


def look_at_report(here: Path) -> str:
    run = here / "run"
    page = (run / "report.html").read_bytes()
    assert b"</html>" in page
    json.loads((run / "closeness.json").read_bytes())
    return f"{look_at_run(here)} {hash_bytes(page)}"


def look_at_export(here: Path) -> str:
    import onnx

    file = here / "student.onnx"
    if not file.exists():
        return NOTHING
    onnx.checker.check_model(onnx.load(file))
    return hash_bytes(file.read_bytes(), (here / "preprocessor_config.json").read_bytes())


def look_at_index(here: Path) -> str:
    from benchmarks.index_kills import read_state
    from indistill.retrieval.store.upkeep import verify_index

    index = here / "index"
    if not (index / "CURRENT").exists():
        return NOTHING
    assert not verify_index(index).problems
    return hash_bytes(json.dumps(sorted(read_state(index).items())).encode())


def look_at_hub(here: Path) -> str:
    from urllib.request import urlopen

    address = (here / "hub").read_text(encoding="utf-8")
    with urlopen(f"{address}/api/models/us/student/tree/main") as answer:
        return hash_bytes(json.dumps(json.load(answer)).encode())


def start_hub(here: Path, base: Path) -> None:
    """Starts a server that speaks as the Hub does, and sends it an older folder; it ends with the file `hub`."""
    import time

    here.mkdir(exist_ok=True)
    log = here.parent.parent / "hub.log"
    if not os.fork():
        from tests.export.hub_server import serve_hub

        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o666), 2)
        with serve_hub() as hub:
            file = here / "hub"
            file.with_suffix(".partial").write_text(hub.url, encoding="utf-8")
            file.with_suffix(".partial").rename(file)
            while file.exists():
                time.sleep(0.05)
        os._exit(0)
    while not (here / "hub").exists():
        time.sleep(0.01)
    if not (child := os.fork()):
        from indistill.export.folder import read_folder
        from indistill.export.hub import open_hub, push_folder

        os.environ |= read_hub_environment(here)
        push_folder(open_hub(), read_folder(base / "folder"), "us/student")
        os._exit(0)
    os.waitpid(child, 0)


def read_hub_environment(here: Path) -> dict[str, str]:
    """Returns the variables by which the Hub's package finds a server, and keeps its files beside it."""
    from tests.export.hub_server import TOKEN

    address = (here / "hub").read_text(encoding="utf-8")
    return {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HOME": str(here / "hf"), "HF_HUB_DISABLE_XET": "1"}


def copy_from(*names: str) -> Callable[[Path, Path], None]:
    """Returns what copies files and folders of the base into a place."""

    def prepare(here: Path, base: Path) -> None:
        here.mkdir(exist_ok=True)
        for name in names:
            source, target = base / name, here / Path(name).name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy2(source, target)

    return prepare


_TRAIN = f"{SMALL} --checkpoint-every 0.5 --device cpu"
COMMANDS = (
    Command(
        "train",
        f"train --model {{given}}/networks.py:build --data {{given}}/gallery --out {{here}}/run --epochs 8 {_TRAIN}",
        copy_from(),
        look_at_run,
        workers="--devices 2",
        resumes=True,
    ),
    Command(
        "compress",
        "compress --teacher {given}/teacher --student {given}/networks.py:build --data {given}/gallery "
        f"--out {{here}}/run --epochs 8 {_TRAIN}",
        copy_from(),
        look_at_run,
        workers="--devices 2",
        resumes=True,
    ),
    Command(
        "report",
        "report {here}/run --data {given}/gallery --teacher {given}/teacher --images 40 --device cpu",
        copy_from("given/run"),
        look_at_report,
    ),
    Command(
        "export",
        "export {given}/run --onnx --data {given}/gallery --out {here}/student.onnx --overwrite",
        copy_from("tensor/student.onnx", "tensor/preprocessor_config.json"),
        look_at_export,
    ),
    Command("push", "push {given}/folder us/student", start_hub, look_at_hub),
    Command(
        "index build",
        "index build {given}/gallery --model {given}/student.onnx --out {here}/index --overwrite",
        copy_from("index"),
        look_at_index,
    ),
    Command("index add", "index add {here}/index {given}/more", copy_from("index"), look_at_index),
    Command("index sync", "index sync {here}/index {given}/gallery", copy_from("index"), look_at_index),
    Command("index remove", "index remove {here}/index --where id<9", copy_from("index"), look_at_index),
    Command("index rebuild", "index rebuild {here}/index --factory HNSW8", copy_from("index"), look_at_index),
    Command("index compact", "index compact {here}/index", copy_from("index"), look_at_index),
    Command(
        "index merge",
        "index merge {here}/first {given}/other --out {here}/index",
        lambda here, base: shutil.copytree(base / "index", here / "first") and None,
        look_at_index,
    ),
)
