"""Sends a model folder to the Hugging Face Hub and fetches one, by `huggingface_hub`. Needs no torch.

Who may do what is the Hub's own login (`hf auth login`, or HF_TOKEN); which Hub it is, HF_ENDPOINT says.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indistill import __version__
from indistill.errors import IndistillError, InputError, ModelError, describe_error, escape_text
from indistill.export.folder import (
    CARD_FILE,
    FOLDER_FILES,
    MAX_TEXT_BYTES,
    MODEL_NAMES,
    TEXT_FILES,
    ModelFolder,
    read_folder,
    write_folder,
)
from indistill.export.opening import MAX_BYTES

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "log in with 'hf auth login', or set HF_TOKEN"


@dataclass(frozen=True)
class PushOptions:
    """How a folder is sent.

    Attributes:
        private: whether the repository must be one that others do not see.
        revision: the branch, made where it is not there; empty for the main one.
        message: of the commit; empty for one that names our version.
    """

    private: bool = False
    revision: str = ""
    message: str = ""


def open_hub() -> "HfApi":
    """Returns the Hub's client.

    Raises:
        InputError: the package `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise InputError(
            "push and pull need the package huggingface_hub, which is not installed: pip install 'indistill[hub]'"
        ) from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="indistill", library_version=__version__)


def check_repository(repo_id: str) -> None:
    """Raises InputError unless a text can be a repository's id; asks no network."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"'{escape_text(repo_id)}' is no repository: NAME or OWNER/NAME is needed ({_shorten(error)})"
        ) from error


def check_card(folder: ModelFolder) -> None:
    """Raises ModelError unless the Hub's own package reads the card; asks no network."""
    from huggingface_hub import ModelCard

    path = folder.path / CARD_FILE
    try:
        ModelCard(path.read_text(encoding="utf-8-sig"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # by these it says what it cannot use
        raise ModelError(f"{path} is no model card for the Hub: {_shorten(error)}") from error


def push_folder(api: "HfApi", folder: ModelFolder, repo_id: str, options: PushOptions = PushOptions()) -> str:
    """Sends our files of a folder, makes the repository where needed, and returns the address of the commit.

    `.onnx` files of ours that are in the repository and not in the folder are removed there, as they may be another
    student's.

    Raises:
        IndistillError: the Hub cannot be reached, or fails.
        InputError: the Hub refuses; or the repository must be private and is not.
    """
    with _explain_errors(repo_id, api.endpoint):
        repository = api.create_repo(repo_id, private=options.private or None, exist_ok=True).repo_id
        if options.private and not api.model_info(repository).private:
            raise InputError(f"'{repository}' is there already and is public: nothing was sent; make it private first")
        if options.revision:
            api.create_branch(repository, branch=options.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder.path,
            allow_patterns=list(FOLDER_FILES),
            delete_patterns=list(MODEL_NAMES.values()),
            revision=options.revision or None,
            commit_message=options.message or f"Model folder of indistill {__version__}",
        )
    return escape_text(commit.commit_url)


def pull_folder(api: "HfApi", repo_id: str, out: Path, *, revision: str = "", overwrite: bool = False) -> ModelFolder:
    """Fetches our files of a repository into a folder, which appears when they are complete and belong together.

    Raises:
        ExistsError: the folder exists.
        IndistillError: the Hub cannot be reached, or fails.
        InputError: there is no such repository, or it is no model folder.
        ModelError: a file is damaged or not safe, or says something else than the others.
    """
    with write_folder(out, overwrite=overwrite) as draft:
        with _explain_errors(repo_id, api.endpoint):
            found = api.model_info(repo_id, revision=revision or None, files_metadata=True)
            names = _choose_files(repo_id, {file.rfilename: file.size for file in found.siblings or ()})
            api.snapshot_download(repo_id, revision=found.sha, local_dir=draft, allow_patterns=names)
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # the package's notes of what it fetched
        try:
            pulled = read_folder(draft)
        except ModelError as error:  # the draft is gone when this is read
            raise ModelError(str(error).replace(f"{draft}/", f"{repo_id}: ").replace(str(draft), repo_id)) from error
    return replace(pulled, path=out)


def _choose_files(repo_id: str, sizes: dict[str, int | None]) -> list[str]:
    """Returns which files of a repository are fetched, before they are."""
    missing = [name for name in (MODEL_NAMES["fp32"], *TEXT_FILES) if name not in sizes]
    if missing:
        raise ModelError(f"'{repo_id}' is no model folder, as 'indistill push' sends it: no {', '.join(missing)}")
    names = [name for name in FOLDER_FILES if name in sizes]
    for name in names:
        limit, size = MAX_TEXT_BYTES if name in TEXT_FILES else MAX_BYTES, sizes[name]
        if size is not None and size > limit:
            raise ModelError(f"'{repo_id}': {name} has {size:,} bytes, at most {limit:,} are fetched")
    return names


@contextmanager
def _explain_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into errors of ours, in one line each."""
    from huggingface_hub import errors

    # The base of errors of the connection, from the package's own HTTP library, of which versions have different ones.
    transport: Any = vars(errors)["HTTPError"]
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"the Hub's package refuses '{escape_text(repo_id)}': {_shorten(error)}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"'{repo_id}' at {endpoint} has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"there is no repository '{repo_id}' at {endpoint}, or it is not open to you: check its name, or {LOGIN}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        said = escape_text(" ".join((error.server_message or "it gives no reason").split()))
        if status in (401, 403):
            raise InputError(f"{endpoint} does not let you do this with '{repo_id}' ({said}): {LOGIN}") from error
        if 400 <= status < 500 and status != 429:
            raise InputError(f"{endpoint} refuses this for '{repo_id}' (status {status}: {said})") from error
        raise IndistillError(f"{endpoint} failed (status {status}: {said}): try again later") from error
    except errors.LocalTokenNotFoundError as error:
        raise InputError(f"you are not logged in at {endpoint}: {LOGIN}") from error
    except errors.OfflineModeIsEnabled as error:
        raise InputError("HF_HUB_OFFLINE is set: unset it to reach the Hub") from error
    except (transport, ConnectionError, TimeoutError, errors.LocalEntryNotFoundError, RuntimeError) as error:
        raise IndistillError(  # RuntimeError is what the package's own transfer library raises
            f"{endpoint} cannot be reached, or broke off: {_shorten(error)}; check the network and try again"
        ) from error
    except ValueError as error:
        raise InputError(f"{endpoint} gave no answer that can be used for '{repo_id}': {_shorten(error)}") from error


def _shorten(error: BaseException) -> str:
    return escape_text(describe_error(error))
