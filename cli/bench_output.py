"""The table and the page of `bench`, and what `--compare` says."""

from collections.abc import Sequence
from pathlib import Path

from indistill.cli.output import print_json, print_table
from indistill.errors import IndistillError
from indistill.export.bench_compare import Change, list_regressions
from indistill.export.bench_report import BenchReport, Include, Quality, Result, Row
from indistill.run_folder import write_text
from indistill.talk import say

NONE = "-"
INCLUDED: dict[Include, str] = {
    "network": "the network is timed, neither decoding nor resizing",
    "resize": "resizing by Pillow and the network are timed, not decoding",
    "decode": "decoding and resizing by Pillow and the network are timed",
}
MARKERS = {"pytorch": "o", "compiled": "s", "onnxruntime": "^", "onnxruntime-cuda": "D", "openvino": "v"}


def print_bench(report: BenchReport, *, as_json: bool) -> None:
    """Prints a row for each engine, batch size and number of threads, and the warnings."""
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print_table(*tabulate_bench(report))
        say(describe_bench(report))
    for warning in report.warnings:
        say(f"warning: {warning}")


def describe_bench(report: BenchReport) -> str:
    """Returns the sentences that say what the table holds."""
    reference = report.reference
    rounds = "1 round" if report.protocol.rounds == 1 else f"{report.protocol.rounds} rounds"
    lines = [
        f"{report.environment.cpu}; {INCLUDED[report.protocol.include]}. Times faster than {reference.model} by "
        f"{reference.engine}: median of {rounds}, smallest and largest in brackets."
    ]
    quality = _find_quality(report)
    if quality is not None:
        ranked = "" if quality.map is None else "mAP: each is looked for among the others, by cosine. "
        lines.append(
            f"Of {quality.images:,} images. {ranked}Overlap: share of the ten nearest that {reference.model} finds too."
        )
    return " ".join(lines)


def tabulate_bench(report: BenchReport) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows; what failed has its reason in the last column."""
    quality = _find_quality(report)
    models = _name_models(report)
    header = ["engine", "precision", "batch", "threads", "p50 ms", "p95 ms", "p99 ms", "images/s", "size MB", "RSS MB"]
    header += ["first s"]
    header += [] if quality is None else ["overlap"] if quality.map is None else ["mAP %", "overlap"]
    rows = [_describe_row(result, models) + _format_result(result, quality) for result in report.results]
    blanks = [NONE] * (len(header) - len(_describe_row(report.results[0], models)))
    rows += [
        [*_describe_row(failure, models), *blanks, f"cannot be timed: {failure.reason}"] for failure in report.failures
    ]
    return [*header, "times faster"], rows


def print_changes(changes: Sequence[Change], differences: Sequence[str], *, as_json: bool) -> None:
    """Prints a line for each row that is compared; beside JSON, on standard error."""
    rows = [
        [
            f"{change.key.role}, {change.key.engine}",
            change.key.model,
            change.key.precision,
            str(change.key.batch),
            str(change.key.threads),
            f"{change.old:.3f}",
            NONE if change.new is None else f"{change.new:.3f}",
            NONE if change.new is None else f"{100 * change.change:+.1f} %",
            NONE if change.new is None else f"{100 * change.noise:.1f} %",
            change.verdict,
        ]
        for change in changes
    ]
    header = ["engine", "model", "precision", "batch", "threads", "old", "new", "change", "noise", "verdict"]
    if as_json:
        for row in rows:
            say("  ".join(f"{name} {cell}" for name, cell in zip(header, row, strict=True)))
    else:
        print_table(header, rows)
    for difference in differences:
        say(f"warning: {difference}")


def require_no_regression(changes: Sequence[Change], old: str) -> None:
    """Raises IndistillError, with the rows, if any is slower than before or fails now."""
    found = [
        f"{change.key.model} by {change.key.engine} ({change.key.precision}, batch {change.key.batch}, "
        f"{change.key.threads} threads) "
        + ("cannot be timed any more" if change.new is None else f"{change.old:.2f} to {change.new:.2f} times faster")
        for change in list_regressions(changes)
    ]
    if found:
        raise IndistillError(f"slower than in {old}, beyond the noise of both: {'; '.join(found)}")


def write_bench_page(page: Path, report: BenchReport) -> None:
    """Writes one page that needs no other file: a chart for each batch size and number of threads, and the table."""
    from indistill.reports.page import ReportSection, render_report

    header, rows = tabulate_bench(report)
    charts = [
        ReportSection(
            f"Batch {batch}, {threads} thread{'s' if threads > 1 else ''}",
            note="Up and to the left is better; the line goes from the median to the 95th percentile.",
            figure=draw_results(chosen, report),
        )
        for batch in report.protocol.batches
        for threads in report.protocol.threads
        if (chosen := [row for row in report.results if (row.batch, row.threads) == (batch, threads)])
    ]
    parameters = {row.model: row.parameters for row in report.results if row.parameters is not None}
    facts = [
        ["machine", f"{report.environment.cpu}, {report.environment.logical_cores} cores"],
        ["versions", ", ".join(f"{name} {version}" for name, version in report.environment.packages.items())],
        *([f"parameters of {model}", f"{count:,}"] for model, count in parameters.items()),
        *(["warning", warning] for warning in report.warnings),
    ]
    table = ReportSection("Measurements", describe_bench(report), header, rows)
    sections = [*charts, table, ReportSection("About", header=("", ""), rows=facts)]
    write_text(page, render_report("indistill bench", sections))
    say(f"wrote {page}")


def draw_results(results: Sequence[Result], report: BenchReport) -> str:
    """Returns an SVG of latency against mAP, or the overlap of neighbours where there are no labels: a point each.

    Without either, each has a height of its own.
    """
    from matplotlib.figure import Figure

    from indistill.reports.page import save_svg, write_label

    quality, models = _find_quality(report), _name_models(report)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.add_subplot()
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(map(_name_network, report.results)))}
    for number, result in enumerate(results):
        if quality is None:
            height: float | None = -number
        else:
            height = None if result.quality is None else 100 * _read_quality(result.quality)
        if height is None:
            continue
        latency, colour = result.latency_ms, colours[_name_network(result)]
        axes.plot([latency.p50, latency.p95], [height, height], color=colour, linewidth=1, alpha=0.6)
        label = write_label(" ".join(_describe_row(result, models)[:2]))
        axes.plot(latency.p50, height, MARKERS[result.engine], color=colour, label=label)
    heights = "mAP %" if quality is not None and quality.map is not None else "overlap of the 10 nearest, %"
    axes.set(xlabel="latency of a call in ms", xscale="log", ylabel="" if quality is None else heights)
    if quality is None:
        axes.set_yticks([])
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return save_svg(figure)


def _describe_row(row: Row, models: dict[str, str]) -> list[str]:
    name = f"{row.role}, {row.engine}" + (f", {models[row.model]}" if models else "")
    return [name, row.precision, str(row.batch), str(row.threads)]


def _name_models(report: BenchReport) -> dict[str, str]:
    """Returns the models' names where role, engine and precision do not tell the rows apart, else nothing."""
    rows = {(row.role, row.engine, row.precision, row.model) for row in (*report.results, *report.failures)}
    if len({row[:3] for row in rows}) == len(rows):
        return {}
    return {row[3]: row[3] for row in rows}


def _name_network(row: Row) -> tuple[str, str, str]:
    return (row.role, row.model, row.precision)


def _find_quality(report: BenchReport) -> Quality | None:
    """Returns what was judged of the reference, None where nothing was."""
    return report.results[0].quality


def _read_quality(quality: Quality) -> float:
    return quality.neighbour_overlap if quality.map is None else quality.map


def _format_result(result: Result, quality: Quality | None) -> list[str]:
    latency, ratio, own = result.latency_ms, result.speedup, result.quality
    judged: list[str] = []
    if quality is not None:
        judged = [NONE if own is None or own.map is None else f"{100 * own.map:.2f}"] if quality.map is not None else []
        judged.append(NONE if own is None else f"{own.neighbour_overlap:.3f}")
    return [
        *(f"{value:.2f}" for value in (latency.p50, latency.p95, latency.p99)),
        f"{result.throughput_images_per_s:,.0f}",
        f"{result.size_bytes / 1e6:.2f}",
        NONE if result.peak_rss_mb is None else f"{result.peak_rss_mb:,.0f}",
        f"{result.first_result_s:.2f}",
        *judged,
        f"{ratio.p50:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
    ]
