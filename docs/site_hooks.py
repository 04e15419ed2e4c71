"""Takes `benchmarks/` and `examples/` into the site, where the pages that link to them find them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

BESIDE = ("benchmarks/*.md", "benchmarks/*.json", "examples/*")
LINK = re.compile(r"\]\(((?:\.\./)+)(benchmarks|examples|docs)/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies beside `docs/`, at its path in the repository."""
    root = Path(config.docs_dir).parent
    for path in sorted(path for pattern in BESIDE for path in root.glob(pattern) if path.is_file()):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turns links that are right in the repository into those of the site, where `docs/` is the root."""

    def shorten(found: re.Match[str]) -> str:
        up, folder = found[1], found[2]
        return f"]({up}" if folder == "docs" else f"]({up.removeprefix('../')}{folder}/"

    return LINK.sub(shorten, markdown)
