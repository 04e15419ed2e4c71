"""`indistill bench`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, JsonOption

IMAGES = 64


def bench(
    run: Annotated[Path, typer.Argument(help="The run folder that 'indistill compress' wrote.")],
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="The exported student.", show_default="RUN/student.onnx")
    ] = None,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Another teacher than the run's.")] = None,
    teacher_weights: Annotated[Path | None, typer.Option("--teacher-weights", help="Weights of that teacher.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Real images.", show_default="the run's own")] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Batch size; repeatable.", show_default="1, 32")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of each engine.", show_default="all cores")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each engine has a turn in each round.")] = 5,
    min_seconds: Annotated[float, typer.Option("--min-seconds", min=0, help="Length of a turn, at least.")] = 0.3,
    data_root: DataRootOption = None,
    json: JsonOption = False,
) -> None:
    """Time the student against its teacher: PyTorch and ONNX Runtime, side by side."""
    from indistill.cli.inputs import list_engines, read_sample
    from indistill.cli.output import print_bench
    from indistill.export.bench import Protocol, count_turns, run_bench
    from indistill.progress import show_progress
    from indistill.runs import read_run

    found = read_run(run)
    engines = list_engines(found, onnx, teacher, teacher_weights)
    pixels = read_sample(data or found.config["data"], found.preprocessing, IMAGES, root=data_root)
    protocol = Protocol(tuple(batch or (1, 32)), threads or count_cores(), rounds, min_seconds=min_seconds)
    with show_progress("timing", count_turns(engines, protocol), "turns") as advance:
        figures = run_bench(engines, pixels.images, found.preprocessing, protocol, advance)
    print_bench(figures, as_json=json)


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
