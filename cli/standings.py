"""The table and the page of `compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from indistill.cli.output import print_json, print_table
from indistill.errors import ExistsError
from indistill.reports.page import ReportSection, render_report, save_svg, write_label
from indistill.run_folder import write_text
from indistill.talk import say

MAP, RECALL, OVERLAP, LOSS = "cosine.map", "cosine.recall@1", "neighbour_overlap", "last_loss"
COLUMNS = {  # title, factor and format of each figure that has a column
    MAP: ("mAP %", 100, ".2f"),
    RECALL: ("R@1 %", 100, ".2f"),
    OVERLAP: ("neighbour overlap", 1, ".3f"),
    LOSS: ("last loss", 1, ".4g"),
    "parameters": ("parameters", 1, ",.0f"),
    "size_mb": ("weights MB", 1, ".3f"),
}
COMPARED = (MAP, OVERLAP)  # the first of these that there is has a column of differences
NONE = "-"


def print_standings(standings: dict[str, Any], *, as_json: bool) -> None:
    """Prints a row for each group, and the warnings."""
    if as_json:
        print_json(standings)
    else:
        header, rows = tabulate_groups(standings)
        print_table(header, rows)
        for line in describe_standings(standings):
            say(line)
    for warning in (standings["latency"] or {}).get("warnings", ()):
        say(f"warning: {warning}")


def check_page(page: Path | None, *, overwrite: bool) -> None:
    """Raises ExistsError if a page would be overwritten without being told to."""
    if page is not None and page.exists() and not overwrite:
        raise ExistsError(f"{page} exists; choose another --html, or replace it with --overwrite")


def write_standings(page: Path, standings: dict[str, Any]) -> None:
    """Writes the page: the table, and mAP against latency and size where it was measured."""
    header, rows = tabulate_groups(standings)
    runs = [
        [group["name"], ", ".join(group["runs"]), ", ".join(group["runs"].values())] for group in standings["groups"]
    ]
    sections = [ReportSection("Groups", " ".join(describe_standings(standings)), header, rows)]
    if all(MAP in group["figures"] for group in standings["groups"]):
        note = "Up and to the left is better. Bars are one standard deviation over the seeds."
        sections.append(ReportSection("Quality against cost", note, figure=draw_costs(standings)))
    sections.append(ReportSection("Runs", header=("group", "seeds", "folders"), rows=runs))
    write_text(page, render_report("indistill compare", sections))
    say(f"wrote {page}")


def describe_standings(standings: dict[str, Any]) -> list[str]:
    """Returns the sentences that say what the table holds."""
    lines = ["Mean ± standard deviation over the seeds."]
    if len(standings["groups"]) > 1:
        lines.append(
            f"Differences are paired by seed, to '{standings['baseline']}', with their 95 % t interval in brackets."
        )
    if standings["gallery"] is not None:
        lines.append(f"Gallery {standings['gallery']}, queries {standings['queries']}; ranked by cosine.")
    latency = standings["latency"]
    if latency is not None:
        lines.append(
            f"Latency: median of one image by {latency['engine']}, {latency['threads']} threads, {latency['cpu']}; "
            "decoding and resizing are not timed."
        )
    return lines


def tabulate_groups(standings: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows; figures that no group has are left out, and the loss where there is a better one."""
    groups = standings["groups"]
    keys = [key for key in COLUMNS if any(key in group["figures"] for group in groups)]
    if MAP in keys:
        keys = [key for key in keys if key != LOSS]  # of different losses it tells nothing
    compared = next((key for key in COMPARED if key in keys), None) if len(groups) > 1 else None
    header, rows = ["group", "seeds"], [[group["name"], str(len(group["runs"]))] for group in groups]
    for key in keys:
        header.append(COLUMNS[key][0])
        _extend(rows, [_format_spread(key, group["figures"].get(key)) for group in groups])
        if key == compared:
            header.append("to the baseline")
            _extend(rows, [_format_difference(key, group, standings["baseline"]) for group in groups])
    if standings["latency"] is not None:
        header.append("latency ms")
        _extend(rows, [f"{standings['latency']['latency_ms'][group['name']]:.2f}" for group in groups])
    return header, rows


def draw_costs(standings: dict[str, Any]) -> str:
    """Returns an SVG of mAP against latency, where it was measured, and against the size of the weights."""
    costs = {"weights MB": [group["figures"]["size_mb"]["mean"] for group in standings["groups"]]}
    if standings["latency"] is not None:
        latency_ms = standings["latency"]["latency_ms"]
        costs = {"latency ms": [latency_ms[group["name"]] for group in standings["groups"]]} | costs
    groups = standings["groups"]
    figure = Figure(figsize=(9, 3.2 + 0.25 * len(groups)), layout="constrained")
    for axes, (label, values) in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs.items(), strict=True):
        for group, value in zip(groups, values, strict=True):
            found = group["figures"][MAP]
            axes.errorbar(value, 100 * found["mean"], 100 * (found["std"] or 0), marker="o", capsize=3)
        axes.set(xlabel=label, ylabel="mAP %")
        axes.grid(alpha=0.3)
    names = [write_label(group["name"]) for group in groups]
    figure.legend(axes.containers, names, loc="outside lower left", fontsize="small")
    return save_svg(figure)


def _extend(rows: Sequence[list[str]], cells: Sequence[str]) -> None:
    for row, cell in zip(rows, cells, strict=True):
        row.append(cell)


def _format_spread(key: str, spread: dict[str, Any] | None) -> str:
    if spread is None:
        return NONE
    _, factor, form = COLUMNS[key]
    mean = f"{factor * spread['mean']:{form}}"
    return mean if not spread["std"] else f"{mean} ± {factor * spread['std']:{form}}"


def _format_difference(key: str, group: dict[str, Any], baseline: str) -> str:
    difference = group["differences"].get(key)
    if difference is None:
        return NONE if group["name"] == baseline else "no common seed"
    _, factor, form = COLUMNS[key]
    mean, low, high = (
        None if value is None else f"{factor * value:+{form}}"
        for value in (difference["mean"], difference["low"], difference["high"])
    )
    return str(mean) if low is None else f"{mean} ({low} to {high})"
