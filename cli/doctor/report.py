"""All that `doctor` looks at, and how it is printed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import typer

from indistill.cli.doctor.findings import FAILING, Finding, State, look
from indistill.cli.output import print_json
from indistill.cli.stdout import emit

STATE_WIDTH = max(map(len, get_args(State)))


def inspect_all(*, test: bool) -> Iterator[Finding]:
    """Yields what is found of this machine and its packages, and whether all of it works together."""
    from indistill.cli.doctor.machine import inspect_machine
    from indistill.cli.doctor.packages import inspect_extras, inspect_packages, run_self_test

    yield from _go_on("machine", inspect_machine)
    yield from _go_on("packages", inspect_packages)
    yield from _go_on("extras", inspect_extras)
    if test:
        yield look("self test", run_self_test)


def inspect_path(path: Path) -> Iterator[Finding]:
    """Yields what something is that indistill wrote, its format and whether it is whole."""
    from indistill.cli.doctor.artefact import inspect_artefact

    yield from _go_on(str(path), lambda: inspect_artefact(path))


def print_findings(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Prints the findings; exits with 1 if one is broken or unknown."""
    found = list(findings)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        width = max(len(finding.name) for finding in found)
        for finding in found:
            text = "; ".join(filter(None, [finding.found, finding.hint]))
            emit(f"{finding.name:<{width}}  {finding.state:<{STATE_WIDTH}}  {text}".rstrip())
    if any(finding.state in FAILING for finding in found):
        raise typer.Exit(1)


def _go_on(name: str, inspect: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yields findings; what keeps all of them from being made is one itself."""
    found: list[Finding] = []

    def collect() -> Finding:
        found.extend(inspect())
        return Finding(name, "ok", "")

    ended = look(name, collect)
    yield from found
    if ended.state == "broken":
        yield ended
