"""What `bench --json` prints, as data that validates itself: see docs/bench.md, and docs/bench.schema.json."""

import json
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indistill.errors import InputError
from indistill.export.bench_engines import EngineKind
from indistill.files.documents import read_json
from indistill.files.formats import BENCH_REPORT, require_format

Role = Literal["teacher", "student"]
Include = Literal["network", "resize", "decode"]


class Part(BaseModel):
    """A part of the report: unknown keys are errors, values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Environment(Part):
    """The machine and what was installed, and how busy it was."""

    cpu: str
    cpu_flags: list[str]  # those that decide how fast a network runs
    logical_cores: int
    os: str
    python: str
    packages: dict[str, str]
    governor: str | None
    loadavg_before: float
    loadavg_after: float


class ProtocolRecord(Part):
    """How the engines were timed."""

    include: Include
    batches: list[int]
    threads: list[int]
    rounds: int
    warmup: int
    iterations: int
    min_seconds: float
    isolated_process: Literal[True] = True
    order: Literal["reversed from round to round"] = "reversed from round to round"


class Reference(Part):
    """The engine that the others are compared with."""

    role: Role
    engine: EngineKind
    model: str
    precision: str


class Latency(Part):
    """Milliseconds for a call, over all turns; nothing is clipped."""

    count: int
    min: float
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float


class Speedup(Part):
    """How many times as fast as the reference: median, smallest and largest ratio of the rounds, and each of them."""

    p50: float
    low: float
    high: float
    rounds: list[float]


class Quality(Part):
    """How good the engine's vectors are.

    `neighbour_overlap` is the share of the reference's ten nearest neighbours that this engine finds too; `map` ranks
    all other images by the cosine, and is null where there are no labels. Both are fractions of 1.
    """

    images: int
    neighbour_overlap: float
    map: float | None


class RowKey(NamedTuple):
    """What a row is compared by in another report."""

    role: Role
    model: str
    engine: EngineKind
    precision: str
    batch: int
    threads: int


class Row(Part):
    """What was asked of one engine."""

    role: Role
    engine: EngineKind
    model: str
    precision: str
    batch: int
    threads: int

    @property
    def key(self) -> RowKey:
        """What the row is compared by."""
        return RowKey(self.role, self.model, self.engine, self.precision, self.batch, self.threads)


class Result(Row):
    """What was measured."""

    image_size: int
    parameters: int | None
    size_bytes: int
    sha256: str | None
    latency_ms: Latency
    turn_medians_ms: list[float]
    throughput_images_per_s: float
    first_result_s: float
    peak_rss_mb: float | None
    speedup: Speedup
    quality: Quality | None = None


class Failure(Row):
    """Why there is no measurement."""

    reason: str


class BenchReport(Part):
    """All of it."""

    schema_version: Literal[2] = 2
    tool: Literal["indistill"] = "indistill"
    version: str
    environment: Environment
    warnings: list[str]
    protocol: ProtocolRecord
    reference: Reference
    results: list[Result] = Field(min_length=1)
    failures: list[Failure]


def format_schema() -> str:
    """Returns the contents of docs/bench.schema.json."""
    return json.dumps(BenchReport.model_json_schema(), indent=2) + "\n"


def read_report(path: Path) -> BenchReport:
    """Returns a report that `bench --json` printed.

    Raises:
        InputError: there is no such file, or it is none of this layout.
    """
    try:
        data = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise InputError(f"{path} cannot be read: {reason}; write one by 'indistill bench ... --json'") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not what 'indistill bench --json' prints: no object")
    require_format(BENCH_REPORT, data.get("schema_version"), f"the report {path}")
    try:
        return BenchReport.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is not what 'indistill bench --json' prints: {place}: {first['msg']}") from error
