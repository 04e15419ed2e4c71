"""report.html: one page that needs no other file."""

import base64
import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from indistill.errors import escape_text
from indistill.models.specs import name_network
from indistill.preprocess import PixelArray
from indistill.run_folder import write_text

if TYPE_CHECKING:
    from indistill.training.loop import Record

THUMBNAIL = 96


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with its caption; `kind` is `query`, `shared` or `plain`."""

    image: str
    caption: str
    kind: str = "plain"


@dataclass(frozen=True)
class ReportSection:
    """A part of the page: a note, a table, a figure (SVG), rows of pictures, and HTML made by us; each may be left out.

    Rows of pictures have a title each.
    """

    title: str
    note: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: str = ""
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()
    html: str = ""


def render_report(title: str, sections: Sequence[ReportSection]) -> str:
    """Returns the page. All text is escaped, `figure` and `html` are not."""
    template = resources.files("indistill.reports").joinpath("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(template).render(title=title, sections=sections)


def write_training_report(
    path: Path, config: Mapping[str, Any], records: Sequence["Record"], more: Sequence[ReportSection] = ()
) -> None:
    """Writes the page of a run: what was trained, the schedule, the curves, and more sections where there are any."""
    network = name_network(config["network"]["spec"], config["network"].get("narrowing", {}).get("width"))
    facts = [("network", network), ("parameters", f"{config['parameters']:,}")]
    if "teacher" in config:
        teacher = config["teacher"]
        facts += [("teacher", teacher["spec"]), ("teacher's parameters", f"{teacher['parameters']:,}")]
        if "auxiliary" in config:
            auxiliary = config["auxiliary"]
            facts += [("auxiliary", f"{auxiliary['spec']}, {auxiliary['parameters']:,} parameters, in auxiliary/")]
        facts += [("stage pairs", ", ".join(config["pairs"]) or "none: no warm-up")]
    facts += [("data", config["data"]), ("seed", str(config["seed"])), ("device", config["device"])]
    held_out = config.get("held_out")
    if held_out is not None:
        facts += [("held out", f"{held_out['images']:,} images, {held_out['trained_on']:,} trained on")]
    schedule = [
        (phase["name"], str(phase["epochs"]), f"{phase['lr']:g}", f"{_last_loss(records, phase['name']):.5g}")
        for phase in config["schedule"]
    ]
    sections = [
        ReportSection("Run", header=("", ""), rows=facts),
        ReportSection("Schedule", header=("phase", "epochs", "learning rate", "last loss"), rows=schedule),
        ReportSection(
            "Training", note="Mean loss of each epoch; each phase has a loss of its own.", figure=draw_curves(records)
        ),
        *([] if held_out is None else [show_held_out(config, records)]),
        *more,
    ]
    write_text(path, render_report(f"{config['command']}: {network}", sections))


def encode_thumbnail(pixels: PixelArray) -> str:
    """Returns pixels (H, W, 3) uint8 as the data URI of a small JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def draw_curves(records: Sequence["Record"]) -> str:
    """Returns an SVG of the loss of each epoch, a line for each phase, on a logarithmic axis."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    _shade_phases(axes, records)
    for name in dict.fromkeys(str(record["phase"]) for record in records):
        points = [(record["epoch"], record["loss"]) for record in records if record["phase"] == name]
        axes.plot(*zip(*points, strict=True), marker=".", label=write_label(name))
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.legend(fontsize="small")
    return save_svg(figure)


def show_held_out(config: Mapping[str, Any], records: Sequence["Record"]) -> ReportSection:
    """Returns the section of the figure that was measured on held-out images."""
    held_out, options = config["held_out"], config["recipe"]["validation"]
    name = held_out["figure"]
    points = [(int(record["epoch"]), float(record[name])) for record in records if name in record]
    if not points:
        return ReportSection("Held-out images", note="No epoch was measured.")
    best, value = max(points, key=lambda point: (point[1], -point[0]))
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.add_subplot()
    _shade_phases(axes, records)
    axes.plot(*zip(*points, strict=True), marker=".", color="C0")
    axes.axvline(best, color="C1", linestyle="--", label=f"best: epoch {best}, {value:.4f}")
    axes.set(xlabel="epoch", ylabel=name)
    axes.legend(fontsize="small")
    kept = f"those of epoch {best}" if options["keep_best"] else f"those of the last epoch, {records[-1]['epoch']}"
    searched = (
        f"looked for in {held_out['gallery']:,} of the training images"
        if held_out["gallery"]
        else "compared with the teacher's nearest images among them"
    )
    note = f"{name} of {held_out['images']:,} held-out images, {searched}. The run's weights are {kept}."
    return ReportSection("Held-out images", note=note, figure=save_svg(figure))


def _shade_phases(axes: Axes, records: Sequence["Record"]) -> None:
    """Shades every other phase, from its first epoch to its last."""
    for number, (_, phase) in enumerate(itertools.groupby(records, key=lambda record: record["phase"])):
        epochs = [float(record["epoch"]) for record in phase]
        if number % 2 == 0:
            axes.axvspan(epochs[0] - 0.5, epochs[-1] + 0.5, color="0.93", zorder=0)


def write_label(text: str) -> str:
    """Returns text from anyone as Matplotlib may draw it: a pair of dollars would be taken for mathematics."""
    return escape_text(text).replace("$", r"\$")


def save_svg(figure: Figure) -> str:
    """Returns a figure as an SVG element, the same each time that it is drawn."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "indistill"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name may be in any script
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _last_loss(records: Sequence["Record"], phase: str) -> float:
    losses = [float(record["loss"]) for record in records if record["phase"] == phase]
    return losses[-1] if losses else float("nan")
