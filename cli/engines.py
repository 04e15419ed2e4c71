"""What `bench` times: from runs, files and options to engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indistill.cli.inputs import describe_teacher
from indistill.errors import InputError, suggest_nearest
from indistill.export.artefact import Artefact
from indistill.export.bench_engines import ENGINES, EngineKind, find_missing
from indistill.export.bench_process import Engine
from indistill.export.session import EmbeddingSession
from indistill.preprocess import Preprocessing
from indistill.run_folder import Run, read_run

OF_NETWORKS: tuple[EngineKind, ...] = ("pytorch", "compiled")
ON_REQUEST: tuple[EngineKind, ...] = ("compiled",)  # compiling takes longer than all the rest of a bench


@dataclass(frozen=True)
class ExportedFile:
    """An `.onnx` file, and what it says of itself; the parameters where its run is known."""

    path: Path
    artefact: Artefact
    parameters: int | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        return self.artefact.preprocessing


@dataclass(frozen=True)
class TeacherChoice:
    """A teacher that is named instead of the first run's: a spec or run, and its weights."""

    source: str | None = None
    weights: Path | None = None


Subject = Run | ExportedFile


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """Returns the runs and files that are to be timed, each once.

    Raises:
        ModelError: one is neither.
    """
    return [read_exported(path) if path.suffix == ".onnx" else read_run(path) for path in dict.fromkeys(paths)]


def read_exported(path: Path, parameters: int | None = None) -> ExportedFile:
    """Returns what an exported file says of itself.

    Raises:
        ModelError: it is missing, damaged, or was not written by `indistill export`.
    """
    return ExportedFile(path, EmbeddingSession(path).artefact, parameters)


def find_data(subjects: Sequence[Subject]) -> str | None:
    """Returns the data spec of the first run, or None where there are files alone."""
    return next((str(subject.config["data"]) for subject in subjects if isinstance(subject, Run)), None)


def choose_engines(names: Sequence[str] | None) -> tuple[EngineKind, ...]:
    """Returns the engines of `--engine`, or all that can be used here but those that are only made on request.

    Raises:
        InputError: there is no engine of a name, or it cannot be used here.
    """
    if not names:
        return tuple(kind for kind in ENGINES if kind not in ON_REQUEST and find_missing(kind) is None)
    for name in names:
        if name not in ENGINES:
            raise InputError(
                f"--engine '{name}' is not known: use {', '.join(ENGINES)}." + suggest_nearest(name, ENGINES)
            )
    chosen = tuple(kind for kind in ENGINES if kind in names)
    for kind in chosen:
        reason = find_missing(kind)
        if reason is not None:
            raise InputError(f"--engine {kind}: {reason}")
    return chosen


def list_engines(
    subjects: Sequence[Subject], kinds: Sequence[EngineKind], onnx: Sequence[Path], teacher: TeacherChoice
) -> list[Engine]:
    """Returns what `bench` times, first what the rest is compared with: the teacher, else the first file.

    Args:
        subjects: runs and files; of several runs, the first one's teacher is taken.
        kinds: the engines.
        onnx: the runs' files, where they are not those that lie beside their weights.
        teacher: another teacher.

    Raises:
        InputError: the first run has no teacher and none is named, nothing is exported, or there is nothing to time.
        ModelError: a file cannot be used.
    """
    of_networks = [kind for kind in OF_NETWORKS if kind in kinds]
    of_files = [kind for kind in kinds if kind not in OF_NETWORKS]
    runs = [subject for subject in subjects if isinstance(subject, Run)]
    if onnx and not runs:
        raise InputError("--onnx names the file of a run: name files beside one another without it")
    engines: list[Engine] = []
    if runs or teacher.source is not None:
        first = _describe_teacher(subjects[0].preprocessing, runs, teacher)
        wanted: list[EngineKind] = ["pytorch", *(kind for kind in of_networks if kind != "pytorch")]
        engines += [
            Engine("teacher", kind, first.source, first.preprocessing, first.weights, first.arguments)
            for kind in wanted
        ]
    for subject in subjects:
        files = [subject] if isinstance(subject, ExportedFile) else []
        if isinstance(subject, Run):
            engines += [Engine("student", kind, str(subject.folder), subject.preprocessing) for kind in of_networks]
            files = _find_files(subject) if of_files and not onnx else []
        engines += _list_file_engines(files, of_files)
    engines += _list_file_engines(
        [read_exported(path) for path in _check_files(tuple(dict.fromkeys(onnx)), runs)], of_files
    )
    if not any(engine.role == "student" for engine in engines):
        raise InputError(f"an .onnx file is not run by {', '.join(kinds)}: name another --engine, or a run")
    return engines


def _list_file_engines(files: Sequence[ExportedFile], kinds: Sequence[EngineKind]) -> list[Engine]:
    return [
        Engine(
            "student",
            kind,
            str(file.path),
            file.preprocessing,
            precision=file.artefact.precision,
            input=file.artefact.input,
            parameters=file.parameters,
        )
        for file in files
        for kind in kinds
    ]


def _find_files(run: Run) -> list[ExportedFile]:
    """Returns the files that `export` wrote beside a run's weights: student.onnx, student_int8.onnx and so on."""
    stem = run.weights.with_suffix("").name
    paths = [run.folder / f"{stem}.onnx", *sorted(run.folder.glob(f"{stem}_*.onnx"))]
    found = [path for path in paths if path.is_file()]
    return [read_exported(path, run.config.get("parameters")) for path in _check_files(found or paths[:1], [run])]


def _check_files(paths: Sequence[Path], runs: Sequence[Run]) -> Sequence[Path]:
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"there is no {path}: write it by 'indistill export {runs[0].folder} --onnx', or name it with --onnx"
            )
    return paths


def _describe_teacher(preprocessing: Preprocessing, runs: Sequence[Run], teacher: TeacherChoice) -> Engine:
    if teacher.source is not None:
        weights = str(teacher.weights) if teacher.weights else None
        size = {"image_size": preprocessing.image_size}
        return Engine("teacher", "pytorch", teacher.source, preprocessing, weights, size)
    described = describe_teacher(runs[0])
    return Engine(
        "teacher",
        "pytorch",
        described["source"],
        runs[0].preprocessing,
        described.get("weights"),
        described["arguments"],
    )
