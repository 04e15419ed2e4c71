"""`indistill bench`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.cli.options import DataRootOption, JsonOption, OverwriteOption


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_FILE", help="Runs, or .onnx files; with files alone, the first is what they compare to."
        ),
    ],
    onnx: Annotated[
        list[Path] | None,
        typer.Option("--onnx", help="The runs' exported files; repeatable.", show_default="student*.onnx in each RUN"),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Another teacher than the first run's.")
    ] = None,
    teacher_weights: Annotated[Path | None, typer.Option("--teacher-weights", help="Weights of that teacher.")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="pytorch, compiled, onnxruntime, onnxruntime-cuda or openvino; repeatable.",
            show_default="all that are installed but compiled",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Real images.", show_default="the first run's own")] = None,
    include: Annotated[
        Literal["network", "resize", "decode"],
        typer.Option("--include", help="What is timed: the network, resizing too, or decoding and resizing too."),
    ] = "network",
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Batch size; repeatable.", show_default="1, 32")
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", min=1, help="Of each engine; repeatable.", show_default="all cores"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Each engine has a turn in each round.")] = 5,
    min_seconds: Annotated[
        float, typer.Option("--min-seconds", min=0, max=3600, help="Length of a turn, at least.")
    ] = 0.3,
    evaluate: Annotated[
        str | None,
        typer.Option(
            "--evaluate",
            help="Images for mAP (with labels) and the overlap with the teacher's neighbours.",
            show_default="with --html, those of --data",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=20, help="Of the evaluated images, at most, spread evenly.")
    ] = 2000,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a chart.")] = None,
    overwrite: OverwriteOption = False,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="OLD.json", help="Exit with 1 where a row is slower than in this output."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Of --compare: a smaller share is no change.")
    ] = 0.05,
    data_root: DataRootOption = None,
    json: JsonOption = False,
) -> None:
    """Time students against their teacher: every engine side by side. See docs/bench.md."""
    from indistill.cli.bench_images import prepare_examination, read_timed_images
    from indistill.cli.bench_output import print_bench, print_changes, require_no_regression, write_bench_page
    from indistill.cli.engines import TeacherChoice, choose_engines, find_data, list_engines, read_subjects
    from indistill.cli.standings import check_page
    from indistill.export.bench import Protocol, count_turns, run_bench
    from indistill.export.bench_compare import check_comparable, compare_reports, list_differences
    from indistill.export.bench_report import read_report
    from indistill.progress import show_progress

    check_page(html, overwrite=overwrite)
    old = read_report(compare) if compare is not None else None
    subjects = read_subjects(models)
    engines = list_engines(subjects, choose_engines(engine), onnx or (), TeacherChoice(teacher, teacher_weights))
    protocol = Protocol(
        tuple(dict.fromkeys(batch or (1, 32))),
        tuple(dict.fromkeys(threads or (count_cores(),))),
        rounds,
        min_seconds=min_seconds,
        include=include,
    )
    if old is not None:
        check_comparable(old, engines[0], protocol)
    spec = data or find_data(subjects)
    judged = evaluate or (spec if html is not None else None)
    timed = read_timed_images(spec or evaluate, include, root=data_root)
    examination = prepare_examination(judged, images, root=data_root) if judged is not None else None
    with show_progress("timing", count_turns(engines, protocol), "turns") as advance:
        report = run_bench(engines, timed, protocol, advance, examination)
    print_bench(report, as_json=json)
    if html is not None:
        write_bench_page(html, report)
    if old is not None:
        changes = compare_reports(old, report, tolerance)
        print_changes(changes, list_differences(old, report), as_json=json)
        require_no_regression(changes, str(compare))


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
