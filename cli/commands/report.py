"""`indistill report`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, DeviceOption, DownloadOption, JsonOption


def report(
    run: Annotated[Path, typer.Argument(help="The run folder that 'indistill compress' wrote.")],
    data: Annotated[str | None, typer.Option("--data", help="Other images.", show_default="the run's own")] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            "--gallery", "-g", help="Labelled images that are searched.", show_default="every other image of the data"
        ),
    ] = None,
    images: Annotated[int, typer.Option("--images", min=20, help="Of the data, at most, spread evenly.")] = 1000,
    teacher: Annotated[str | None, typer.Option("--teacher", "-t", help="Another teacher than the run's.")] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="Its weights, or where the run's teacher's lie now.")
    ] = None,
    device: DeviceOption = "auto",
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how close a student is to its teacher, without labels, and write it into the run's report.html."""
    from indistill.cli.closeness import Subject, report_run
    from indistill.cli.inputs import load_teacher
    from indistill.cli.output import print_closeness
    from indistill.data.sets import require_labels
    from indistill.data.specs import open_images
    from indistill.run_folder import read_run
    from indistill.training.devices import choose_device

    found = read_run(run)
    subject = Subject(found, load_teacher(found, teacher, teacher_weights), choose_device(device))
    measured = open_images(data or found.config["data"], root=data_root, download=download)
    searched = open_images(gallery, root=data_root, download=download) if gallery is not None else None
    if searched is not None:
        require_labels(measured, "report with --gallery")
        require_labels(searched, "report with --gallery")
    print_closeness(run, report_run(subject, measured, searched, images), as_json=json)
