"""Writes docs/cli.md from the help texts: python docs/generate_cli.py docs/cli.md."""

import os
import subprocess
import sys
from pathlib import Path

from indistill.cli.main import COMMANDS

OF_INDEX = ("build", "add", "sync", "remove", "info", "verify", "rebuild", "compact", "merge", "push")
PLACE = COMMANDS.index("index")
PAGES = [*COMMANDS[:PLACE], *(f"index {name}" for name in OF_INDEX), *COMMANDS[PLACE + 1 :]]
HEADER = "# Commands\n\nMade by `make docs` from the help texts; a test compares the options.\n"


def main() -> None:
    """Writes the page."""
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "110"}
    parts = [HEADER]
    for page in PAGES:
        command = [sys.executable, "-m", "indistill.cli.main", *page.split(), "--help"]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
        parts.append(f"## indistill {page}\n\n```text\n{lines}\n```\n")
    Path(sys.argv[1]).write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
