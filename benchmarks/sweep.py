"""Pairs of teachers and students out of timm and torchvision, with stages that are found by themselves.

    python -m benchmarks.sweep --out docs/sweep.md [--only WORD]

All weights are random and the training is one short epoch a phase on 64 digits, so the table says nothing of quality:
it says which pairs can be compressed, exported with the parity gate passed, and evaluated, all by the command line, and
which stages were paired. A pair that cannot says why in one line.
"""

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from indistill.cli.main import main as run_main
from indistill.cli.walk import write_images
from indistill.data.sets import sample_images
from indistill.data.specs import open_images
from indistill.export.session import EmbeddingSession

SIDE, IMAGES, QUERIES = 64, 64, 32
RESNET, SENET, VGG = "torchvision:resnet18", "timm:seresnet18", "torchvision:vgg11_bn"
DENSE, MOBILE, CONVNEXT = "torchvision:densenet121", "torchvision:mobilenet_v2", "timm:convnext_atto"
VIT, SWIN = "timm:vit_tiny_patch16_224?img_size=64", "timm:swin_tiny_patch4_window7_224?img_size=64"
PVT, MOBILE_VIT, GHOST = "timm:pvt_v2_b0", "timm:mobilevit_xxs", "timm:ghostnet_050"
SMALL_RESNET, SMALL_EFFICIENT = "timm:test_resnet", "timm:test_efficientnet"
SMALL_CONVNEXT, SMALL_VIT = "timm:test_convnext", "timm:test_vit?img_size=64"
PAIRS = (
    (VIT, SMALL_VIT),
    (DENSE, SMALL_RESNET),
    (SWIN, SMALL_CONVNEXT),
    (MOBILE, "timm:mobilenetv3_small_050"),
    (CONVNEXT, SMALL_CONVNEXT),
    (VIT, SMALL_RESNET),
    (RESNET, SMALL_VIT),
    (MOBILE_VIT, SMALL_EFFICIENT),
    (RESNET, SMALL_RESNET),
    ("timm:coatnet_nano_rw_224", SMALL_RESNET),
    ("timm:deit_tiny_distilled_patch16_224?img_size=64", SMALL_EFFICIENT),
    (VGG, "torchvision:squeezenet1_1"),
    (PVT, SMALL_EFFICIENT),
    ("torchvision:efficientnet_b0", SMALL_EFFICIENT),
    ("torchvision:shufflenet_v2_x1_0", "torchvision:shufflenet_v2_x0_5"),
    (SENET, GHOST),
    ("paper:resnet18?width=16", SMALL_EFFICIENT),
    ("timm:mambaout_femto", SMALL_CONVNEXT),
    ("torchvision:swin_t", SMALL_RESNET),
    ("timm:resnetv2_18", SMALL_RESNET),
    ("torchvision:regnet_y_400mf", SMALL_EFFICIENT),
    ("timm:mixer_s32_224?img_size=64", SMALL_RESNET),
    (VGG, SMALL_RESNET),
    (RESNET, MOBILE_VIT),
    (RESNET, PVT),
    (DENSE, "torchvision:mobilenet_v3_small"),
)


def call(*arguments: object) -> str:
    """Runs a command in this process and returns what it printed on standard output.

    Raises:
        RuntimeError: it failed; with its message.
    """
    out, err = io.StringIO(), io.StringIO()
    given, sys.argv = sys.argv, ["indistill", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(err.getvalue().strip().splitlines()[-1].removeprefix("indistill: error: ")) from end
    finally:
        sys.argv = given
    return out.getvalue()


def try_pair(teacher: str, student: str, gallery: Path, queries: Path, out: Path) -> tuple[str, str, str]:
    """Returns the pairs of stages with the channels kept, how far the exported file is from PyTorch and how far
    its own resize is from Pillow's, and mAP."""
    options = ("--data", gallery, "--image-size", SIDE, "--batch-size", 32, "--epochs", 1, "--set", "data.crop=1")
    run, file = out / "run", out / "run" / "student.onnx"
    call("compress", "-t", teacher, "-s", student, *options, "--no-report", "--out", run)
    call("export", run, "--onnx")
    evaluated = call("evaluate", "--model", file, "--gallery", gallery, "--queries", queries)
    rows = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["alignment"]
    stages = ", ".join(f"`{row['teacher']}:{row['student']}` {row['kept']}/{row['teacher_width']}" for row in rows)
    figures = EmbeddingSession(file).artefact.verification
    agreement = f"{figures['max_difference']:.0e} | {figures['min_size_cosine']:.6f}"
    (score,) = [line.split()[1] for line in evaluated.splitlines() if line.split()[:1] == ["map"]]
    return stages, agreement, score


def format_page(out: Path, lines: list[str], done: int) -> str:
    """Returns the Markdown page."""
    head = [
        "# Pairs tried",
        "",
        f"Made by `python -m benchmarks.sweep --out {out}`: random weights, {SIDE} pixels, an epoch a phase on",
        f"{IMAGES} digits, stages found by themselves. {done} of {len(lines)} pairs compress, export, agree with",
        "PyTorch and evaluate; the others say why. The largest difference is over batches of 1, 2, 3 and 32; the",
        "cosine is the smallest of images of five sizes, resized by the file and by Pillow. mAP (percent) of random",
        "weights says nothing but that the file was evaluated.",
        "",
        "| teacher | student | stages paired, channels kept | ONNX and PyTorch differ by | sizes, cosine | mAP |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def main() -> None:
    """Tries all pairs and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    parser.add_argument("--only", default="", help="pairs with this word in a name alone")
    options = parser.parse_args()
    pairs = [pair for pair in PAIRS if options.only in " ".join(pair)]
    lines, done = [], 0
    with TemporaryDirectory() as folder:
        place = Path(folder)
        gallery = write_images(sample_images(open_images("digits/train"), IMAGES), place / "gallery")
        queries = write_images(sample_images(open_images("digits/test"), QUERIES), place / "queries")
        for number, (teacher, student) in enumerate(pairs):
            started = time.monotonic()
            try:
                cells = try_pair(teacher, student, gallery, queries, place / str(number))
                done += 1
            except RuntimeError as error:
                cells = (str(error), " | ", "")
            lines.append(f"| `{teacher}` | `{student}` | {' | '.join(cells)} |")
            print(f"{time.monotonic() - started:.0f} s  {lines[-1]}", file=sys.stderr, flush=True)
            options.out.write_text(format_page(options.out, lines, done), encoding="utf-8")


if __name__ == "__main__":
    main()
