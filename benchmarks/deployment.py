"""The deployed file: our settings of ONNX Runtime, its preprocessing, and a narrow student against a heavy teacher.

    python -m benchmarks.deployment --photos FOLDER [--json deployment.json] [--only settings preprocessing student]

FOLDER holds photographs. All ratios are of one run; each side has turns in every round.

- settings: the session as `EmbeddingSession` makes it with one thread and with one for each core, against a grid of
  ONNX Runtime's own settings (threads, spinning, graph optimisation, memory arena). Each has a process of its own in
  each round.
- preprocessing: that of the file on decoded images of 500x375 pixels, against Pillow's resize and NumPy's
  normalisation, at 224 of 256 pixels; processor time, one thread.
- student: `width:0.25` of timm's resnet50 (random weights: speed and size alone) at 224 pixels in its fastest
  precision, against the teacher in eager PyTorch, batch 1, one thread.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime as ort
import psutil
import torch
from PIL import Image

from benchmarks.machine import describe_machine, measure_spread, report_machine, write_figures
from indistill.data.pixels import load_pixels
from indistill.data.sets import sample_images
from indistill.data.specs import open_images
from indistill.export.bench import Protocol, run_bench
from indistill.export.bench_process import Engine
from indistill.export.onnx import Exporter, ExportOptions
from indistill.models.loading import load_network
from indistill.models.students import StudentChoice, make_student
from indistill.preprocess import Preprocessing

PREPROCESSING = Preprocessing(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TEACHER, WIDTH = "timm:resnet50", "width:0.25"
PHOTO = (500, 375)
LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
WORKER = """
import json, sys, time
import numpy as np
path, setting, batch, ours = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "ours"
pixels = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)
if ours:
    from pathlib import Path
    from indistill.export.session import EmbeddingSession
    call = EmbeddingSession(Path(path), setting["threads"]).embed_pixels
else:
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting["threads"], 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(setting["spinning"])))
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, setting["level"])
    options.enable_cpu_mem_arena = setting["arena"]
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    around = ((0, 0), (16, 16), (16, 16), (0, 0))
    call = lambda pixels: session.run(None, {"image": np.pad(pixels, around)})
for _ in range(5):
    call(pixels)
taken = []
while len(taken) < 20 or sum(taken) < 0.5:
    begin = time.perf_counter()
    call(pixels)
    taken.append(time.perf_counter() - begin)
print(json.dumps(float(np.median(taken)) * 1e3))
"""


def export_student(photos: Path, folder: Path) -> dict[str, Path]:
    """Returns the files of the narrow student, by precision."""
    torch.manual_seed(0)
    teacher = load_network(TEACHER)
    student = make_student(StudentChoice(WIDTH, None, seed=0), teacher, {"image_size": 224}, 224)
    images = load_pixels(sample_images(open_images(str(photos)), 192), PREPROCESSING).images
    exporter = Exporter(student, PREPROCESSING, images[::3])
    files: dict[str, Path] = {}
    for precision in ("fp32", "fp16", "int8"):
        files[precision] = folder / f"student_{precision}.onnx"
        exporter.write(files[precision], ExportOptions(precision, calibration=images[np.arange(192) % 3 > 0]))
    return files


def compare_settings(file: Path, rounds: int) -> dict[str, object]:
    """Returns, for each batch and number of threads, our latency over the best setting's, round by round."""
    found: dict[str, object] = {}
    for batch, threads in itertools.product((1, 8), sorted({1, psutil.cpu_count(logical=True) or 1})):
        grid = [
            {"threads": threads, "spinning": spinning, "level": level, "arena": arena}
            for spinning, level, arena in itertools.product((False, True), LEVELS.values(), (True, False))
        ]
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for side, setting in [("ours", {"threads": threads}), *(("grid", setting) for setting in grid)]:
                name = "ours" if side == "ours" else json.dumps(setting)
                times.setdefault(name, []).append(_time_setting(file, setting, batch, side))
        ours = times.pop("ours")
        best = min(times, key=lambda name: median(times[name]))
        found[f"batch {batch}, threads {threads}"] = {
            "ours_ms": median(ours),
            "best_ms": median(times[best]),
            "best": json.loads(best),
            "ratio": measure_spread(_divide(ours, times[best])),
        }
    return found


def compare_preprocessing(file: Path, rounds: int) -> dict[str, object]:
    """Returns the processor time of the file's preprocessing over that of Pillow and NumPy, round by round.

    The file's is the time of a decoded image less that of a resized one, which passes unchanged.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(_cut_preprocessing(file), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    rough = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    image = np.asarray(rough.resize(PHOTO, Image.Resampling.BICUBIC))

    def prepare_by_pillow() -> object:
        return PREPROCESSING.normalise(PREPROCESSING.resize(Image.fromarray(image))[None])

    def prepare_by_one_resize() -> object:
        edge, (width, height) = PREPROCESSING.shortest_edge, PHOTO
        resized = Image.fromarray(image).resize((width * edge // height, edge), Image.Resampling.BILINEAR)
        left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
        return PREPROCESSING.normalise(np.asarray(resized.crop((left, top, left + 224, top + 224)))[None])

    sides: dict[str, Callable[[], object]] = {
        "graph": lambda: session.run(None, {"image": image[None]}),
        "ours by Pillow and NumPy": prepare_by_pillow,
        "one resize by Pillow, and NumPy": prepare_by_one_resize,
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            times.setdefault(name, []).append(_measure_cpu_ms(side))
    return {
        "ms": {name: median(values) for name, values in times.items()},
        "ratio_to_ours": measure_spread(_divide(times["graph"], times["ours by Pillow and NumPy"])),
        "ratio_to_one_resize": measure_spread(_divide(times["graph"], times["one resize by Pillow, and NumPy"])),
    }


def compare_student(files: dict[str, Path], photos: Path, rounds: int) -> dict[str, object]:
    """Returns how many times as fast, and how much smaller, each file is than the teacher in eager PyTorch."""
    sample = sample_images(open_images(str(photos)), 32)
    images = [sample.fetch(position).content for position in range(len(sample.names))]
    engines = [
        Engine("teacher", "pytorch", TEACHER, PREPROCESSING),
        *(Engine("student", "onnxruntime", str(path), PREPROCESSING, precision=name) for name, path in files.items()),
    ]
    report = run_bench(engines, images, Protocol(batches=(1,), threads=(1,), rounds=rounds))
    teacher, *students = report.results
    return {
        "teacher": {"ms": teacher.latency_ms.p50, "bytes": teacher.size_bytes},
        **{
            result.precision: {
                "ms": result.latency_ms.p50,
                "bytes": result.size_bytes,
                "speedup": measure_spread(result.speedup.rounds),
                "size_ratio": teacher.size_bytes / result.size_bytes,
            }
            for result in students
        },
    }


def _time_setting(file: Path, setting: dict[str, object], batch: int, side: str) -> float:
    command = [sys.executable, "-c", WORKER, str(file), json.dumps(setting), str(batch), side]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _cut_preprocessing(file: Path) -> bytes:
    """Returns a model that ends where the network begins."""
    import onnx

    model = onnx.load(file)
    end = next(i for i, node in enumerate(model.graph.node) if "preprocessed" in node.output)
    del model.graph.node[end + 1 :]
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.output[:]
    (output,) = (value for value in model.graph.value_info if value.name == "preprocessed")
    model.graph.output.append(output)
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


def _divide(first: list[float], second: list[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]


def _measure_cpu_ms(call: Callable[[], object], calls: int = 40) -> float:
    call()
    taken = []
    for _ in range(calls):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return median(taken) * 1e3


PARTS = ("settings", "preprocessing", "student")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    machine = describe_machine()
    figures: dict[str, object] = {"rounds": options.rounds}
    with tempfile.TemporaryDirectory() as folder:
        files = export_student(options.photos, Path(folder))
        if "settings" in options.only:
            figures["settings"] = compare_settings(files["fp32"], options.rounds)
        if "preprocessing" in options.only:
            figures["preprocessing"] = compare_preprocessing(files["fp32"], options.rounds)
        if "student" in options.only:
            figures["student"] = compare_student(files, options.photos, options.rounds)
    print(json.dumps(figures, indent=2))
    report_machine(machine)
    write_figures(options.json, machine, figures)


if __name__ == "__main__":
    main()
