"""What a file or folder is, its format, and whether its checksums hold."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indistill.cli.doctor.findings import LONGEST, Finding, State
from indistill.errors import IndistillError, InputError, escape_text
from indistill.files.formats import (
    ARTEFACT,
    BENCH_REPORT,
    CHUNKS,
    INDEX,
    MODEL_FOLDER,
    RUN,
    SHARDS_FOLDER,
    Format,
)

HASHED = "as written, by their SHA-256"


class UnknownError(InputError):
    """What is whole perhaps, but nothing that is known here."""


@dataclass(frozen=True)
class Description:
    """What a file or folder is, its format if it has one, how far it was checked, and what is wrong with it."""

    what: str
    known: Format | None
    checked: str = HASHED
    wrong: Sequence[str] = ()


def inspect_artefact(path: Path) -> Iterator[Finding]:
    """Yields what something is that indistill wrote, its format and its checksums."""
    name = str(path)
    try:
        found = describe(path)
    except IndistillError as error:
        state: State = "unknown" if isinstance(error, UnknownError) else "broken"
        yield Finding(name, state, escape_text(str(error), LONGEST))
        return
    version = "" if found.known is None else f", format {found.known.version}"
    yield Finding(name, "ok", f"{escape_text(found.what, LONGEST)}{version}")
    if found.wrong:
        more = f" and {len(found.wrong) - 1} more" if len(found.wrong) > 1 else ""
        yield Finding("its content", "broken", escape_text(f"{found.wrong[0]}{more}", LONGEST))
    else:
        yield Finding("its content", "ok", found.checked)


def describe(path: Path) -> Description:
    """Returns what a path is; reads all of it.

    Raises:
        UnknownError: there is nothing there that is known here.
        IndistillError: it cannot be read.
    """
    if path.is_dir():
        return _describe_folder(path)
    if not path.exists():
        raise UnknownError("there is no such file or folder")
    if path.suffix == ".json":
        from indistill.export.bench_report import read_report

        report = read_report(path)
        return Description(f"a report of 'bench' with {len(report.results)} rows", BENCH_REPORT, "valid")
    from indistill.export.artefact import GRAPH_SHA256
    from indistill.export.opening import open_file

    model, artefact = open_file(path)
    if artefact is None:
        raise UnknownError("an ONNX file of another program: 'indistill info' shows what it is")
    what = f"an exported {artefact.precision} file, {artefact.embedding_dim} dimensions"
    return Description(what, ARTEFACT, HASHED if GRAPH_SHA256 in model.metadata else "states no checksum")


def _describe_folder(path: Path) -> Description:
    from indistill.retrieval.store.generations import CURRENT, PENDING, PENDING_CHUNKS, SHARDS, explain_absence
    from indistill.run_folder import is_run

    if (path / SHARDS).is_file() or (path / CURRENT).exists():
        from indistill.retrieval.opening import describe_index, verify_any

        manifest = describe_index(path)
        known = SHARDS_FOLDER if (path / SHARDS).is_file() else INDEX
        what = "a folder of shards" if known is SHARDS_FOLDER else "an index"
        return Description(f"{what} of {manifest.items:,} images", known, wrong=verify_any(path).problems)
    if (path / PENDING).exists() or (path / PENDING_CHUNKS).is_dir():
        raise explain_absence(path)
    if is_run(path):
        return _describe_run(path)
    if (path / "config.json").is_file():
        from indistill.export.folder import read_folder

        names = ", ".join(file.name for file in read_folder(path).files)
        return Description(f"a model folder with {names}", MODEL_FOLDER)
    manifests = sorted(path.glob("[0-9]*.json"))
    if manifests:
        what = f"embeddings of a build on a cluster, {len(manifests)} chunks"
        return Description(what, CHUNKS, wrong=_check_chunks(manifests))
    return _describe_images(path)


def _describe_images(path: Path) -> Description:
    from indistill.data.specs import open_images
    from indistill.errors import DataError

    try:
        images = open_images(str(path))
    except DataError as error:
        raise UnknownError(
            "not a run, a model folder, an index, a folder of shards, embeddings of a build on a cluster, or images"
        ) from error
    labels = f"in {len(images.classes)} classes" if images.classes else "without labels"
    return Description(f"{len(images.names):,} images {labels}", None, "not read: 'index build' names what is damaged")


def _describe_run(path: Path) -> Description:
    import yaml
    from safetensors import SafetensorError, safe_open

    from indistill.run_folder import CHECKPOINT_FOLDER, WEIGHTS_NAMES, require_run_format

    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    require_run_format(path, config)
    weights = path / WEIGHTS_NAMES[config["command"]]
    what = f"a run of '{config['command']}', {config['network'].get('spec')}"
    if weights.is_file():
        try:
            with safe_open(weights, framework="numpy") as stream:
                count = len(stream.keys())
        except (OSError, SafetensorError) as error:
            return Description(what, RUN, wrong=[f"{weights.name} cannot be read: {error}"])
        return Description(f"{what}, complete", RUN, f"{weights.name} can be read, {count} tensors; it has no checksum")
    wrong = _check_checkpoints(path / CHECKPOINT_FOLDER)
    return Description(f"{what}, not complete: go on with --resume", RUN, "its checkpoints are as written", wrong)


def _check_checkpoints(folder: Path) -> list[str]:
    from indistill.files.hashing import hash_file

    def is_whole(file: Path) -> bool:
        digits = file.stem.partition("-")[2]
        return bool(digits) and hash_file(file).startswith(digits)

    return [f"the checkpoint {file.name} is damaged" for file in sorted(folder.glob("*.pt")) if not is_whole(file)]


def _check_chunks(manifests: list[Path]) -> list[str]:
    from indistill.errors import IndexFolderError
    from indistill.files.formats import require_format
    from indistill.files.hashing import hash_file

    wrong = []
    for path in manifests:
        try:
            manifest = json.loads(path.read_bytes())
            require_format(CHUNKS, manifest["format"], f"the embeddings {path.parent}", IndexFolderError)
            whole = hash_file(path.with_suffix(".parquet")) == manifest["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            wrong.append(f"{path.stem} is not as it was written")
    return wrong
