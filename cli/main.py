"""The command line: registers the commands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 our failure, 2 the user's input or usage, 130 interrupted.
"""

import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # Typer's pydantic would look for plugins at each start

import typer

from indistill import __version__
from indistill.errors import IndistillError

COMMANDS = (
    "train",
    "compress",
    "report",
    "compare",
    "export",
    "info",
    "serve",
