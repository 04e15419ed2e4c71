"""Training throughput in float32, bfloat16 and float16, and through torch.compile, on one device.

    python -m benchmarks.precision --data IMAGES [--json FILE] [--teacher timm:resnet50] [--image-size 224]

Both commands as a user types them: `indistill train` of the teacher, and `indistill compress` of it to width:0.25
without the warm-up (the teacher forwards, the student forwards and backwards). The weights are random: the time of a
step does not depend on them. The images/s are the median of metrics.jsonl without the first epoch. One run each.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.cifar10 import call
from benchmarks.machine import describe_machine, report_machine, write_figures

KINDS = {
    "float32": ("--precision", "32"),
    "bfloat16": ("--precision", "bf16"),
    "float16": ("--precision", "16"),
    "bfloat16, compiled": ("--precision", "bf16", "--compile"),
}


def measure_rate(command: str, kind: str, out: Path, arguments: argparse.Namespace) -> float:
    """Returns the images/s of a training."""
    model = (
        ("--model", arguments.teacher)
        if command == "train"
        else (
            "--teacher",
            arguments.teacher,
            "--student",
            "width:0.25",
            "--from-scratch",
            "--no-warm-up",
            "--no-report",
        )
    )
    sizes = ("--image-size", str(arguments.image_size), "--batch-size", str(arguments.batch_size))
    common = ("--data", arguments.data, "--epochs", str(arguments.epochs), "--device", arguments.device, "--overwrite")
    call(command, *model, *sizes, *common, *KINDS[kind], "--out", str(out))
    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return median(epoch["images_per_s"] for epoch in epochs[1:])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images with classes")
    parser.add_argument("--teacher", default="timm:resnet50", help="model spec (timm:resnet50)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batch-size", type=int, default=128, help="images (128)")
    parser.add_argument("--epochs", type=int, default=4, help="of each run; the first is not timed (4)")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device", default="auto", help="as of the commands (auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    rates: dict[str, dict[str, float]] = {"train": {}, "compress": {}}
    print(f"| {arguments.teacher}, {arguments.image_size} px | images/s | times float32 |\n|---|---|---|")
    with TemporaryDirectory() as folder:
        for command, found in rates.items():
            for kind in arguments.kinds:
                found[kind] = measure_rate(command, kind, Path(folder) / "run", arguments)
                print(
                    f"| {command}, {kind} | {found[kind]:.0f} | {found[kind] / found[arguments.kinds[0]]:.2f} |",
                    flush=True,
                )
    report_machine(machine)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    write_figures(arguments.json, machine, {"benchmark": "precision", "settings": settings, "images_per_s": rates})


if __name__ == "__main__":
    main()
