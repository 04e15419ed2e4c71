"""A model folder: the files of one student with a card, as the Hub and other loaders take it. Needs no torch.

    model.onnx                float32; beside it model_fp16.onnx and model_int8.onnx, where there are any
    preprocessor_config.json  how images are prepared, see `processor.py`
    config.json               names the kind of model; optimum and transformers.js do not go on without one
    README.md                 the model card

The names are those that loaders look for. At the top of the folder, `model.onnx` is what optimum's `ORTModel` and
fastembed open by themselves; `_fp16` and `_int8` are the ends that transformers.js puts to a name for its `dtype`. It
alone looks in a folder `onnx` first, and is told not to by `subfolder: ""`.

Reference:
    https://huggingface.co/docs/optimum-onnx/onnxruntime/package_reference/modeling
    https://huggingface.co/docs/transformers.js/guides/dtypes
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from indistill.errors import ExistsError, InputError, ModelError, escape_text
from indistill.export.artefact import Artefact, Precision
from indistill.export.card import PackedFile, format_card, read_metadata
from indistill.export.opening import open_file
from indistill.export.processor import PROCESSOR_FILE, describe_processor, format_processor
from indistill.files.bounded import read_bounded
from indistill.files.documents import read_json
from indistill.files.durable import sync_file
from indistill.files.formats import MODEL_FOLDER, require_format

MODEL_NAMES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
TEXT_FILES = (PROCESSOR_FILE, CONFIG_FILE, CARD_FILE)
FOLDER_FILES = (*MODEL_NAMES.values(), *TEXT_FILES)
MODEL_TYPE = "indistill"
MAX_TEXT_BYTES = 2**20
MAX_TITLE = 100
# What the files of one student have in common.
_SHARED = ("weights_sha256", "name", "embedding_dim", "preprocessing", "input", "teacher", "data_fingerprint")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that was looked at, and its `.onnx` files, float32 first."""

    path: Path
    files: tuple[PackedFile, ...]

    def list_sizes(self) -> dict[str, int]:
        """Returns the name and size in bytes of each of our files."""
        return {name: (self.path / name).stat().st_size for name in FOLDER_FILES if (self.path / name).is_file()}


def pack_folder(
    sources: Sequence[Path], out: Path, *, title: str = "", license_id: str = "", overwrite: bool = False
) -> ModelFolder:
    """Writes a folder of the files of one export; it appears when it is complete.

    Args:
        sources: files of `indistill export`: the float32 one, and others of the same student.
        out: the folder.
        title: of the card.
        license_id: as the Hub calls it.
        overwrite: whether an older model folder may be replaced.

    Raises:
        ExistsError: the folder exists.
        InputError: a title or a licence that is none, or the folder cannot be written.
        ModelError: a file that cannot be opened or is not ours, no float32 file, or files of several students.
    """
    if license_id and not _LICENSE.fullmatch(license_id):
        raise InputError(f"--license '{escape_text(license_id)}' is no licence of the Hub, as apache-2.0, mit or other")
    if len(title) > MAX_TITLE or not title.isprintable() or (title and not title.strip()):
        raise InputError(f"--name '{escape_text(title)}' is no name: one line of at most {MAX_TITLE} signs is needed")
    opened = [_open_packed(path, str(path)) for path in sources]
    require_one_student(opened)
    chosen = {file.artefact.precision: (path, file) for path, file in zip(sources, opened, strict=True)}
    files = [replace(chosen[kind][1], name=name) for kind, name in MODEL_NAMES.items() if kind in chosen]
    artefact = files[0].artefact
    texts = {
        PROCESSOR_FILE: format_processor(artefact.preprocessing),
        CONFIG_FILE: format_config(artefact),
        CARD_FILE: format_card(files, title, license_id),
    }
    with write_folder(out, overwrite=overwrite) as draft:
        for kind, (path, _) in chosen.items():
            shutil.copyfile(path, draft / MODEL_NAMES[kind])
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8", newline="\n")
        packed = read_folder(draft)
    return replace(packed, path=out)


def format_config(artefact: Artefact) -> str:
    """Returns the content of `config.json`; the model is none of the `transformers` package and says so by its type."""
    config = {
        "model_type": MODEL_TYPE,
        "format": MODEL_FOLDER.version,
        "hidden_size": artefact.embedding_dim,
        "image_size": artefact.preprocessing.image_size,
    }
    return json.dumps(config, indent=2) + "\n"


def read_folder(path: Path) -> ModelFolder:
    """Returns what a model folder holds, if all of it belongs together; the files are not run.

    Raises:
        ModelError: a file is missing, damaged or not safe, or says something else than the others.
    """
    if (path / CONFIG_FILE).is_file():
        config = _read_object(path / CONFIG_FILE)
        if config.get("model_type") == MODEL_TYPE:
            require_format(MODEL_FOLDER, config.get("format", 1), f"the model folder {path}", ModelError)
    missing = [name for name in (MODEL_NAMES["fp32"], *TEXT_FILES) if not (path / name).is_file()]
    if missing:
        raise ModelError(f"{path} is no model folder, as 'indistill pack' writes it: there is no {', '.join(missing)}")
    files = [
        replace(_open_packed(path / name, str(path / name)), name=name)
        for name in MODEL_NAMES.values()
        if (path / name).exists()
    ]
    for file in files:
        if MODEL_NAMES[file.artefact.precision] != file.name:
            raise ModelError(f"{path / file.name} is the {file.artefact.precision} file by its metadata: pack it again")
    require_one_student(files)
    artefact = files[0].artefact
    processor = _read_object(path / PROCESSOR_FILE)
    expected = describe_processor(artefact.preprocessing)
    wrong = [key for key, value in expected.items() if processor.get(key) != value]
    if wrong:
        raise ModelError(
            f"{path / PROCESSOR_FILE} describes another preprocessing than {MODEL_NAMES['fp32']} ({', '.join(wrong)}): "
            "pack the folder again"
        )
    if _read_object(path / CONFIG_FILE).get("model_type") != MODEL_TYPE:
        raise ModelError(f"{path / CONFIG_FILE} is of another kind of model: pack the folder again")
    try:
        read_metadata(_read_text(path / CARD_FILE))
    except ModelError as error:
        raise ModelError(f"{path / CARD_FILE} is no model card: {error}") from error
    return ModelFolder(path, tuple(files))


def require_one_student(files: Sequence[PackedFile]) -> None:
    """Raises ModelError unless files are of one student, one for each precision and float32 among them."""
    first = files[0]
    for file in files[1:]:
        for key in _SHARED:
            found, expected = getattr(file.artefact, key), getattr(first.artefact, key)
            if found != expected:
                raise ModelError(
                    f"{first.name} and {file.name} are not of one student and one export: their {key} differs "
                    f"({escape_text(str(expected), 40)} and {escape_text(str(found), 40)})"
                )
    precisions = [file.artefact.precision for file in files]
    for precision in set(precisions):
        if precisions.count(precision) > 1:
            same = " and ".join(file.name for file in files if file.artefact.precision == precision)
            raise ModelError(f"{same} are both {precision}: a folder holds one file of each precision")
    if "fp32" not in precisions:
        raise ModelError(
            f"there is no float32 file among {', '.join(file.name for file in files)}: loaders look for it as "
            f"{MODEL_NAMES['fp32']}; name it too"
        )


@contextmanager
def write_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the place of `out` when the context ends without an error.

    Raises:
        ExistsError: see `check_folder_output`.
        InputError: the place cannot be written to.
    """
    out = out.resolve()  # a folder behind a link is replaced, not the link
    check_folder_output(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield draft
            for path in draft.iterdir():
                sync_file(path)
            draft.chmod(0o755)
            _put_in_place(draft, out)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise InputError(f"the folder {out} cannot be written: {error.strerror or error}") from error


def check_folder_output(out: Path, *, overwrite: bool) -> None:
    """Raises ExistsError if a folder would be replaced without being told to, or holds what is not ours."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ExistsError(f"{out} is a file; choose another --out")
    others = sorted({path.name for path in out.iterdir()} - set(FOLDER_FILES))
    if others or not _is_ours(out):
        raise ExistsError(
            f"{out} exists and is no model folder, or holds other files too"
            + (f" ({escape_text(others[0])})" if others else "")
            + "; choose another --out"
        )
    if not overwrite:
        raise ExistsError(f"the model folder {out} exists; choose another --out, or replace it with --overwrite")


def _is_ours(folder: Path) -> bool:
    try:
        return _read_object(folder / CONFIG_FILE).get("model_type") == MODEL_TYPE
    except ModelError:
        return False


def _open_packed(path: Path, name: str) -> PackedFile:
    model, artefact = open_file(path)
    if artefact is None:
        raise ModelError(
            f"{path} was not written by 'indistill export': only its files say what a card and a loader must know"
        )
    return PackedFile(name, artefact, model.size_bytes, model.sha256)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(_read_text(path))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: pack the folder again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is no JSON object: pack the folder again")
    return value


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TEXT_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is no text in UTF-8") from error


def _put_in_place(draft: Path, out: Path) -> None:
    """Renames a complete folder to `out`; an older one is put back if that fails."""
    old = draft.with_name(draft.name + "-old")
    if out.exists():
        out.rename(old)
    try:
        draft.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if os.name == "posix":  # other systems cannot open a folder
        sync_file(out.parent)
