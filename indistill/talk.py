"""What is said on standard error beside the data: lines that steer no terminal, whatever the names in them hold."""

import sys
from typing import TextIO

from indistill.errors import escape_line


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line on standard error, or on a stream in its place, above a progress bar where there is one."""
    print(escape_line(line), file=file or sys.stderr, flush=True)
