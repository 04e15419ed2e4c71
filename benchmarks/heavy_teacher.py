"""A heavy teacher trained here, and students of a quarter of its widths: InDistill against its loss without warm-up.

    python -m benchmarks.heavy_teacher --data FOLDER --out FOLDER [--epochs 20] [--teacher-epochs 30] [--only NAME ...]

FOLDER of --data holds `train` and `test` with a sub-folder for each class, as benchmarks.cifar10 has it. Teacher:
timm:resnet18 from random weights, by `indistill train`. Students: width:0.25 of it. All in bfloat16 on the device that
is there, images resized to 64 pixels. `map` is exact, of the float32 networks, `test` against `train`. What is in --out
already is not done again; the table is printed as it grows, and kept in OUT/figures.json. One seed.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmarks.cifar10 import call, read_figures
from benchmarks.machine import describe_machine, report_machine, write_figures

SIZES = ("--recipe", "default", "--image-size", "64", "--set", "data.crop=1.0", "--set", "data.crop_padding=8")
TRAINING = (*SIZES, "--batch-size", "256", "--precision", "bf16")
STUDENTS = {
    "InDistill (PKT)": "",
    "PKT alone": "--no-warm-up",
    "InDistill (contrastive)": "--loss contrastive",
    "contrastive alone": "--loss contrastive --no-warm-up",
    "InDistill (PKT), from random weights": "--from-scratch",
    "PKT alone, from random weights": "--from-scratch --no-warm-up",
}


def measure_map(run: Path, data: Path) -> float:
    """Returns the exact mAP by the cosine of a run's network, percent."""
    exact = run.with_name(f"{run.name}.json")
    if not exact.exists():
        sets = ("--gallery", str(data / "train"), "--queries", str(data / "test"), "--json")
        call("evaluate", "--model", str(run), *sets, into=exact)
    return read_figures(exact)["cosine map"]


def measure_minutes(run: Path) -> float:
    """Returns the time of a run's epochs, minutes."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["seconds"] for line in lines) / 60


def main() -> None:
    """Makes what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20, help="of each student in all (20)")
    parser.add_argument("--teacher-epochs", type=int, default=30, help="(30)")
    parser.add_argument("--only", nargs="*", choices=STUDENTS, default=list(STUDENTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    common = ("--data", str(options.data / "train"), "--overwrite")
    teacher = options.out / "teacher"
    if not (teacher / "model.safetensors").exists():
        epochs = ("--epochs", str(options.teacher_epochs))
        call("train", "--model", "timm:resnet18", *TRAINING, *common, *epochs, "--out", str(teacher))
    figures: dict[str, dict[str, float]] = {}
    print("| | map | minutes of training |\n|---|---|---|")
    for name in ("teacher", *options.only):
        run = teacher if name == "teacher" else options.out / f"student-{list(STUDENTS).index(name)}"
        if name != "teacher" and not (run / "student.safetensors").exists():
            models = ("--teacher", str(teacher), "--student", "width:0.25")
            epochs = ("--epochs", str(options.epochs))
            call("compress", *models, *TRAINING, *common, *epochs, *STUDENTS[name].split(), "--out", str(run))
        figures[name] = {"map": measure_map(run, options.data), "minutes": measure_minutes(run)}
        print(f"| {name} | {figures[name]['map']:.2f} | {figures[name]['minutes']:.1f} |", flush=True)
        settings = {"epochs": options.epochs, "teacher_epochs": options.teacher_epochs}
        described = {"benchmark": "heavy_teacher", "settings": settings, "figures": figures}
        write_figures(options.out / "figures.json", machine, described)
    report_machine(machine)


if __name__ == "__main__":
    main()
