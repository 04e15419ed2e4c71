"""Files of one or several precisions: written, timed side by side, and one of them recommended."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indistill.cli.interruption import NOTHING, note_on_interruption
from indistill.cli.output import print_json, print_table
from indistill.cli.stdout import emit
from indistill.errors import IndistillError, ModelError, VerificationError
from indistill.export.artefact import Artefact, Precision
from indistill.export.bench_process import Engine
from indistill.files.hashing import hash_file
from indistill.progress import show_progress
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.export.onnx import Exporter, ExportOptions
    from indistill.export.verdict import TimedFile


@dataclass(frozen=True)
class WrittenFile:
    """A file and what it says of itself."""

    path: Path
    artefact: Artefact


@dataclass(frozen=True)
class Exports:
    """What became of an export: the files, and for each precision that failed a gate the reason."""

    files: tuple[WrittenFile, ...]
    refused: Mapping[Precision, str]


@dataclass(frozen=True)
class Verdict:
    """The files of an export timed side by side, with float32 whether it is kept or not, and what to ship."""

    timed: "Sequence[TimedFile]"
    sentence: str


def name_files(target: Path, precisions: Sequence[Precision], *, named: bool) -> dict[Precision, Path]:
    """Returns the file of each precision: `target`, or beside it with the precision after the name.

    Args:
        target: the float32 file.
        precisions: those that are written.
        named: whether the user named the file; then a single precision is written there.
    """
    if named and len(precisions) == 1:
        return {precisions[0]: target}
    return {
        precision: target if precision == "fp32" else target.with_stem(f"{target.stem}_{precision}")
        for precision in precisions
    }


def write_files(
    exporter: "Exporter", files: Mapping[Precision, Path], options: "ExportOptions", *, overwrite: bool
) -> Exports:
    """Writes the files that pass their gates.

    Raises:
        ModelError: the only one cannot be made.
        VerificationError: none passes.
    """
    written: list[WrittenFile] = []
    refused: dict[Precision, IndistillError] = {}
    with show_progress("writing and verifying", len(files), "files") as advance:
        for precision, path in files.items():
            try:
                with note_on_interruption(lambda: list_written(written)):
                    artefact = exporter.write(path, replace(options, precision=precision), overwrite=overwrite)
            except (VerificationError, ModelError) as error:
                refused[precision] = error
            else:
                written.append(WrittenFile(path, artefact))
            advance(1)
    if not written:
        raise next(iter(refused.values()))
    return Exports(tuple(written), {precision: str(error) for precision, error in refused.items()})


def list_written(files: Sequence[WrittenFile]) -> str:
    """Returns which files were written, for a command that is interrupted."""
    if not files:
        return NOTHING
    return f"{', '.join(str(file.path) for file in files)} {'were' if len(files) > 1 else 'was'} written, and no other"


def judge_files(
    exporter: "Exporter", exports: Exports, options: "ExportOptions", images: Sequence[bytes], threads: int
) -> Verdict:
    """Returns the verdict: each file by ONNX Runtime with one image a call, each in a process of its own.

    Args:
        exporter: writes the float32 file to compare with, where it is not among the exports.
        exports: the files.
        options: of the export.
        images: real images, encoded.
        threads: of each engine.
    """
    from indistill.export.bench import Protocol, count_turns, run_bench
    from indistill.export.verdict import TimedFile, give_verdict

    with tempfile.TemporaryDirectory(prefix="indistill-verdict-") as folder:
        files = list(exports.files)
        if files[0].artefact.precision != "fp32":
            path = Path(folder, "float32.onnx")
            files.insert(0, WrittenFile(path, exporter.write(path, replace(options, precision="fp32"))))
        engines = [
            Engine(
                "student",
                "onnxruntime",
                str(file.path),
                file.artefact.preprocessing,
                precision=file.artefact.precision,
                input=file.artefact.input,
            )
            for file in files
        ]
        protocol = Protocol(batches=(1,), threads=(threads,))
        with show_progress("timing", count_turns(engines, protocol), "turns") as advance:
            report = run_bench(engines, images, protocol, advance)
    timed = [
        TimedFile(
            file.artefact.precision,
            file.path.name,
            result.size_bytes,
            result.latency_ms.p50,
            result.speedup.p50,
            result.speedup.low,
            result.speedup.high,
            str(file.artefact.verification.get("metric", "recall@10")),
            measure_drop(file.artefact),
        )
        for file, result in zip(files, report.results, strict=True)
    ]
    return Verdict(timed, give_verdict(timed, tuple(exports.refused)))


def measure_drop(artefact: Artefact) -> float:
    """Returns how much retrieval loses, as a file says of itself; zero where it was not measured."""
    figures = artefact.verification
    return float(figures.get("reference_quality", 0)) - float(figures.get("quality", 0))


def print_exports(exports: Exports, verdict: Verdict | None, *, as_json: bool) -> None:
    """Prints the files with their figures, and what to ship.

    Raises:
        VerificationError: at the end, if a precision was refused.
    """
    if as_json:
        described: list[dict[str, Any]] = [_describe(file) for file in exports.files]
        judged = None if verdict is None else _describe_verdict(verdict)
        data = described[0] if len(described) == 1 and not judged else {"files": described, "verdict": judged}
        print_json(data | ({"refused": dict(exports.refused)} if exports.refused else {}))
    else:
        for file in exports.files:
            _print_file(file)
        if verdict is not None:
            _print_verdict(verdict)
        if not exports.refused:
            say(f"Next: indistill index build IMAGES --model {exports.files[0].path} --out INDEX")
    if exports.refused:
        raise VerificationError("; ".join(exports.refused.values()))


def _describe(file: WrittenFile) -> dict[str, Any]:
    artefact = file.artefact
    return {
        "file": str(file.path),
        "size_bytes": file.path.stat().st_size,
        "sha256": hash_file(file.path),
        "embedding_dim": artefact.embedding_dim,
        "precision": artefact.precision,
        "input": artefact.input,
        "preprocessing": artefact.preprocessing.to_dict(),
        "quantisation": dict(artefact.quantisation),
        "verification": dict(artefact.verification),
    }


def _describe_verdict(verdict: Verdict) -> dict[str, Any]:
    return {"files": [vars(file) for file in verdict.timed], "sentence": verdict.sentence}


def _print_file(file: WrittenFile) -> None:
    artefact, figures = file.artefact, file.artefact.verification
    size = file.path.stat().st_size / 1e6
    emit(f"{file.path}  {size:.2f} MB  {artefact.precision}  {artefact.embedding_dim} dimensions")
    text = f"agrees with PyTorch: largest difference {figures['max_difference']:.1e}"
    text += f", smallest cosine {figures['min_cosine']:.6f}"
    if "overlap" in figures:
        text += f", overlap of the ten nearest {figures['overlap']:.4f}"
        text += f", {figures['metric']} {figures['quality']:.4f} (PyTorch {figures['reference_quality']:.4f})"
    emit(text)


def _print_verdict(verdict: Verdict) -> None:
    metric = verdict.timed[0].metric
    rows = [
        [
            file.precision,
            f"{file.size_bytes / 1e6:.2f}",
            f"{file.latency_ms:.3f}",
            f"{file.speedup:.2f} ({file.speedup_low:.2f} to {file.speedup_high:.2f})",
            f"{file.drop:+.4f}",
        ]
        for file in verdict.timed
    ]
    print_table(["precision", "MB", "ms, one image", "times as fast as float32", f"{metric} lost"], rows)
    emit(f"Verdict: {verdict.sentence}")
