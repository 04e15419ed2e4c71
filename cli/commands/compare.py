"""`indistill compare`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, DownloadOption, JsonOption, OverwriteOption


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; those that differ in seed group.")],
    gallery: Annotated[
        str | None, typer.Option("--gallery", "-g", help="Labelled images that are searched, with --queries.")
    ] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", "-q", help="Labelled images that are looked for, with --gallery.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", help="Name of a group, or one of its runs.", show_default="the first run's"),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time one run of each group.")] = True,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Of each engine.", show_default="all cores")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots.")] = None,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    json: JsonOption = False,
) -> None:
    """Compare runs: mAP, closeness, size and latency side by side, seeds with their spread."""
    from indistill.cli.commands.bench import count_cores
    from indistill.cli.comparison import check_sets, measure_runs, open_sets, time_groups
    from indistill.cli.standings import check_page, print_standings, write_standings
    from indistill.reports.comparison import compare_groups, find_group, group_runs
    from indistill.run_folder import read_run

    check_sets(gallery, queries)
    check_page(html, overwrite=overwrite)
    found = [read_run(run) for run in runs]
    groups = group_runs(found)
    chosen = find_group(groups, baseline)
    evaluated = open_sets(gallery, queries, data_root, download=download)
    figures = measure_runs(found, evaluated)
    standings = {
        "baseline": chosen.name,
        "gallery": gallery,
        "queries": queries,
        "groups": compare_groups(groups, figures, chosen),
        "latency": time_groups(groups, queries, data_root, threads or count_cores()) if latency else None,
    }
    print_standings(standings, as_json=json)
    if html is not None:
        write_standings(html, standings)
