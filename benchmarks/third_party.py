"""Model files that others wrote, used as teachers by their path alone: trained, compressed, exported, evaluated.

    python -m benchmarks.third_party --out docs/third_party.md

Fetches packages from PyPI (`pip install --no-deps --target`) into a temporary folder that Python does not search, and
names a file in it as `--teacher FILE.py:FACTORY`. Each network is trained for a few epochs on the digits; its state
dict, saved by torch.save as its authors would, is then the teacher's weights.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.sweep import call
from indistill.export.session import EmbeddingSession

PACKAGES = (
    "pytorchcv==0.0.74",
    "vit-pytorch==1.26.11",
    "einops==0.8.1",
    "efficientnet-pytorch==0.7.1",
)
VIT = "image_size=32&patch_size=8&num_classes=10&dim=64&depth=4&heads=4&mlp_dim=128"
PAIRS = (
    ("pytorchcv/models/resnet_cifar.py:resnet20_cifar10", "width:0.5"),
    ("efficientnet_pytorch/model.py:EfficientNet.from_name?model_name=efficientnet-b0&num_classes=10", "width:0.5"),
    (f"vit_pytorch/simple_vit.py:SimpleViT?{VIT}", "paper:cnn-s"),
)
TEACHER_EPOCHS, EPOCHS = 3, 7
COMMON = ("--data", "digits/train", "--recipe", "digits")


def try_pair(spec: str, student: str, out: Path) -> tuple[str, str, str, str]:
    """Returns the pairs of stages, how far the exported file is from PyTorch, and mAP of teacher and file (percent)."""
    call("train", "--model", spec, *COMMON, "--epochs", TEACHER_EPOCHS, "--out", out / "teacher")
    weights, run, file = out / "teacher.pt", out / "run", out / "run" / "student.onnx"
    torch.save({"state_dict": load_file(out / "teacher" / "model.safetensors")}, weights)
    pair = ("--teacher", spec, "--teacher-weights", weights, "--student", student)
    call("compress", *pair, *COMMON, "--epochs", EPOCHS, "--no-report", "--out", run)
    call("export", run, "--onnx")
    rows = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["alignment"]
    stages = ", ".join(f"`{row['teacher']}:{row['student']}` {row['kept']}/{row['teacher_width']}" for row in rows)
    difference = EmbeddingSession(file).artefact.verification["max_difference"]
    return stages, f"{difference:.0e}", read_map(out / "teacher"), read_map(file)


def read_map(model: Path) -> str:
    """Returns mAP of a run or a file on the digits, in percent."""
    table = call("evaluate", "--model", model, "--gallery", "digits/train", "--queries", "digits/test")
    return next(line.split()[1] for line in table.splitlines() if line.split()[:1] == ["map"])


def main() -> None:
    """Tries all files and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    options = parser.parse_args()
    lines = []
    with TemporaryDirectory() as folder:
        place = Path(folder)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place / "theirs")]
        subprocess.run([*install, *PACKAGES], check=True)
        for number, (spec, student) in enumerate(PAIRS):
            started = time.monotonic()
            try:
                cells = try_pair(f"{place / 'theirs'}/{spec}", student, place / str(number))
            except RuntimeError as error:
                cells = (str(error), "", "", "")
            lines.append(f"| `{spec}` | `{student}` | {' | '.join(cells)} |")
            print(f"{time.monotonic() - started:.0f} s  {lines[-1]}", file=sys.stderr, flush=True)
    head = [
        "# Teachers out of files that others wrote",
        "",
        f"Made by `python -m benchmarks.third_party --out {options.out}` from {', '.join(PACKAGES)}. Each teacher has",
        f"{TEACHER_EPOCHS} epochs on the digits and a state dict in a .pt file, its student {EPOCHS}",
        "epochs. mAP in percent on the digits; that of the student is the exported file's.",
        "",
        "| teacher | student | stages paired, channels kept | ONNX differs by | mAP, teacher | mAP, student |",
        "|---|---|---|---|---|---|",
    ]
    options.out.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
