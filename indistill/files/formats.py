"""The format versions of what indistill writes, and the one check of what it reads. Needs no torch.

A version is raised when an indistill that knows the one before would misread what is written now. docs/upgrades.md
lists them with the file that holds each, and what becomes of older ones.
"""

from dataclasses import dataclass

from indistill import __version__
from indistill.errors import InputError, escape_text

UPGRADE = "upgrade it by 'pip install --upgrade indistill'"


@dataclass(frozen=True)
class Format:
    """One kind of file or folder.

    Attributes:
        version: what is written, and read.
        again: how an older one is made anew.
    """

    version: int
    again: str


BUILD_AGAIN = "build it again by 'indistill index build --overwrite'"

RUN = Format(1, "train it again with --overwrite")
CHECKPOINT = Format(2, "start anew with --overwrite")
TEACHER_CACHE = Format(1, "")  # one of another version has another name, and is made again
CLOSENESS = Format(1, "")  # of another version: measured again
KEPT_EVALUATION = Format(1, "")  # of another version: measured again
ARTEFACT = Format(2, "write it again by 'indistill export RUN --onnx'")
MODEL_FOLDER = Format(1, "pack it again by 'indistill pack'")
INDEX = Format(2, BUILD_AGAIN)
SHARDS_FOLDER = Format(1, BUILD_AGAIN)
CHUNKS = Format(1, "choose another --embeddings")
COLLECTION = Format(1, "push the index again with --overwrite")
BENCH_REPORT = Format(2, "write it again by 'indistill bench ... --json'")
EVALUATION_REPORT = Format(1, "")  # printed, and never read


def require_format(known: Format, found: object, subject: str, error: type[InputError] = InputError) -> None:
    """Raises an error unless something that was read has the version that this indistill reads.

    Args:
        known: what it should be.
        found: the version that it states.
        subject: what it is and where, as the message begins.
        error: the class to raise.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise error(f"{subject} is damaged: its format is {escape_text(repr(found), 40)}; {known.again}")
    if found > known.version:
        raise error(
            f"{subject} has format {found}, of a later indistill; this one ({__version__}) knows {known.version}: "
            f"{UPGRADE}"
        )
    if found < known.version:
        raise error(
            f"{subject} has format {found}, of an earlier indistill; this one ({__version__}) reads {known.version}: "
            f"{known.again}"
        )
