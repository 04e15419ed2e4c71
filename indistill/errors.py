"""Every error that the command line turns into one line of text.

IndistillError            exit code 1: we failed
├── VerificationError     an exported file does not compute what PyTorch computes
├── TrainingError         the loss is not finite
└── InputError            exit code 2: bad usage or input
    ├── ConfigError       a recipe, or --set
    ├── DataError         images and data specs
    ├── ModelError        model specs, weights, networks
    ├── StageError        stages that do not exist or cannot be paired
    ├── ExistsError       an output that would be overwritten
    └── IndexFolderError  an index that is missing, damaged or belongs to another model
"""

import difflib
from collections.abc import Iterable

LONGEST_MESSAGE = 4000


class IndistillError(Exception):
    """A failure of ours, with a message for the user: one line, whatever the names in it hold."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(escape_line(message))


class VerificationError(IndistillError):
    """An exported file does not agree with PyTorch."""


class TrainingError(IndistillError):
    """Training cannot go on."""


class InputError(IndistillError):
    """Input or usage that the user can mend."""

    exit_code = 2


class ConfigError(InputError):
    """A recipe or an override that does not validate."""


class DataError(InputError):
    """Images or a data spec that cannot be used."""


class ModelError(InputError):
    """A model spec or weights that cannot be used."""


class StageError(InputError):
    """Stages that do not exist or cannot be paired."""


class ExistsError(InputError):
    """An output that exists and may not be overwritten."""


class IndexFolderError(InputError):
    """An index that cannot be used, or not with this model."""


def suggest_nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean X?' for the nearest known name, or the empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def describe_error(error: BaseException) -> str:
    """Returns what another library's error says, in one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def describe_os_error(error: OSError) -> str:
    """Returns the reason of the operating system, or what there is in its place."""
    return error.strerror or describe_error(error)


def escape_line(text: str) -> str:
    """Returns a line with names of anyone's as it may be shown; of one that is too long the middle is left out."""
    if len(text) > LONGEST_MESSAGE:
        text = f"{text[: LONGEST_MESSAGE // 2]} ... {text[-LONGEST_MESSAGE // 2 :]}"
    return escape_text(text, len(text))


def escape_text(text: str, limit: int = 200) -> str:
    """Returns text from anyone as it may be shown: in one line, short, with nothing that steers a terminal."""
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text[:limit])
    return shown + "..." * (len(text) > limit)
