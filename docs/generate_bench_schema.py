"""Writes docs/bench.schema.json from the classes: python docs/generate_bench_schema.py docs/bench.schema.json."""

import sys
from pathlib import Path

from indistill.export.bench_report import format_schema

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(format_schema(), encoding="utf-8")
