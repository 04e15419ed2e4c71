"""Takes what lies beside `docs/` into the site, and refuses a page that loads something from elsewhere."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

BESIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "benchmarks/*.md", "benchmarks/*.json", "examples/*")
LINK = re.compile(r"\]\(((?:\.\./)*)(benchmarks|examples|docs)/")
ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies beside `docs/` at its path in the repository; the README, so that its links are checked."""
    root = Path(config.docs_dir).parent
    for path in sorted(path for pattern in BESIDE for path in root.glob(pattern) if path.is_file()):
        files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "repository.md", abs_src_path=str(root / "README.md")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turns links that are right in the repository into those of the site, where `docs/` is the root."""

    def shorten(found: re.Match[str]) -> str:
        up, folder = found[1], found[2]
        return f"]({up}" if folder == "docs" else f"]({up.removeprefix('../')}{folder}/"

    return LINK.sub(shorten, markdown)


def on_post_page(output: str, **_: object) -> str:
    """Returns the page as it is.

    Raises:
        PluginError: it would load something from elsewhere.
    """
    found = ELSEWHERE.search(output)
    if found is not None:
        raise PluginError(f"a page loads from elsewhere: {found[0]}")
    return output
