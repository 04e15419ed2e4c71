"""What `serve` needs before it serves: the extra, the token, and a log."""

import importlib.util
import logging
import os
from pathlib import Path

from indistill.errors import InputError, describe_os_error

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
TOKEN_VARIABLE = "INDISTILL_TOKEN"


def require_extra() -> None:
    """Raises InputError if a package of the extra `serve` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve needs {', '.join(missing)}, which this installation lacks: pip install 'indistill[serve]'"
        )


def read_token(file: Path | None) -> str | None:
    """Returns the token of a file, or of the environment, or None.

    Raises:
        InputError: the file cannot be read, or is empty.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"--token-file {file} cannot be read: {describe_os_error(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--token-file {file} is not text") from error
    if not token:
        raise InputError(f"--token-file {file} is empty: write the token into it")
    return token


def log_to_stderr() -> None:
    """Sends the log of requests and what uvicorn warns of to standard error."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("indistill.serve").setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings quote what was uploaded
