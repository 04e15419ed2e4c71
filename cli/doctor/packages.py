"""The packages: what is installed, in which version, and whether what is compiled can be loaded.

What is compiled is loaded by a process of its own: where it ends the process, or waits for ever, the others are told
of all the same.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata

from indistill.cli.doctor.findings import LONGEST, Finding, look
from indistill.errors import escape_text

TIMEOUT_S = 120
# What a process of its own prints of a package, after its version. torchvision is loaded with torch, as its operators
# are what a mismatch of both breaks.
FACTS = {
    "numpy": "import numpy; facts = []",
    "torch": (
        "import torch; facts = [f'CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA']\n"
        "facts += [f'cuda:{i} {torch.cuda.get_device_name(i)}' for i in range(torch.cuda.device_count())]\n"
        "facts += ['mps'] if torch.backends.mps.is_available() else []\n"
        "facts += [] if len(facts) > 1 else ['CPU alone']\n"
        "import numpy; torch.from_numpy(numpy.ones(1)).numpy()"
    ),
    "torchvision": "import torchvision, torchvision.ops; facts = ['its operators agree with torch']",
    "onnxruntime": "import onnxruntime; facts = onnxruntime.get_available_providers()",
    "faiss-cpu": "import faiss, numpy; faiss.IndexFlatIP(2).add(numpy.ones((1, 2), 'float32')); "
    "facts = [faiss.get_compile_options().strip()]",
    "pillow": (
        "import PIL._imaging\nfrom PIL import features\n"
        "names = {'jpg': 'JPEG', 'webp': 'WebP', 'zlib': 'PNG', 'libtiff': 'TIFF', 'avif': 'AVIF'}\n"
        "facts = [title for name, title in names.items() if name in features.get_supported()]\n"
        "assert 'JPEG' in facts and 'PNG' in facts, f'no JPEG or no PNG, it reads {facts}'"
    ),
}
SELF_TEST = (
    "import tempfile\nfrom pathlib import Path\nfrom indistill.cli.doctor.self_test import run\n"
    "with tempfile.TemporaryDirectory() as place: facts = [run(Path(place))]"
)
LATER = "import json, sys; print(); print(json.dumps(facts))"


@dataclass(frozen=True)
class Requirement:
    """A package that indistill names: by which extra (empty: it is needed), and from which version on."""

    package: str
    least: str
    extra: str


def list_requirements() -> list[Requirement]:
    """Returns what the installed indistill says that it needs, and what its extras do."""
    found = []
    for line in metadata.requires("indistill") or []:
        match = re.match(r"([A-Za-z0-9_.-]+)(?:\[.*?\])?>=([0-9.]+)", line)
        if match:
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
            found.append(Requirement(match[1], match[2], extra[1] if extra else ""))
    return found


def inspect_packages() -> Iterator[Finding]:
    """Yields what there is of each package that is needed."""
    needed = [requirement for requirement in list_requirements() if not requirement.extra]
    with ThreadPoolExecutor(len(FACTS)) as pool:
        loaded = {name: pool.submit(_load, name, code) for name, code in FACTS.items()}
        for requirement in needed:
            name = requirement.package
            finding = look(name, lambda requirement=requirement: _inspect(requirement))  # type: ignore[misc]
            if finding.state == "ok" and name in loaded:
                found = loaded[name].result()
                finding = Finding(name, found.state, f"{finding.found}{found.found}", found.hint)
            yield finding


def inspect_extras() -> Iterator[Finding]:
    """Yields whether the packages of each extra are installed."""
    extras: dict[str, list[Requirement]] = {}
    for requirement in list_requirements():
        if requirement.extra not in ("", "dev"):
            extras.setdefault(requirement.extra, []).append(requirement)
    for extra, requirements in extras.items():
        findings = [_inspect(requirement) for requirement in requirements]
        wrong = [finding for finding in findings if finding.state != "ok"]
        found = ", ".join(f"{finding.name} {finding.found}" for finding in wrong or findings)
        hint = f"pip install 'indistill[{extra}]'" if wrong else ""
        yield Finding(f"extra {extra}", "absent" if wrong else "ok", found, hint)


def run_self_test() -> Finding:
    """Returns whether a model made here embeds images made here, and the index of them finds the right one."""
    finding = _load("self test", SELF_TEST)
    return Finding(finding.name, finding.state, finding.found.lstrip(",: "), "")


def _inspect(requirement: Requirement) -> Finding:
    name, hint = requirement.package, f"pip install --upgrade '{requirement.package}>={requirement.least}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", hint)
    if _order(version) < _order(requirement.least):
        return Finding(name, "broken", f"{version}, {requirement.least} or later is needed", hint)
    return Finding(name, "ok", version)


def _order(version: str) -> list[int]:
    """Returns the numbers of a version; what stands after them, as `rc1` or `+cu128`, does not count."""
    return [int(part) for part in re.split(r"[^0-9.]", version)[0].strip(".").split(".") if part]


def _load(name: str, code: str) -> Finding:
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"{code}\n{LATER}"],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            env=os.environ | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, "broken", f": it does not load within {TIMEOUT_S} seconds")
    hint = f"pip install --force-reinstall {name}"
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return Finding(
            name, "broken", f": loading it ends the process by {signal.Signals(-done.returncode).name}", hint
        )
    if done.returncode:
        why = said[-1] if said else f"exit code {done.returncode}"
        if name == "torchvision" and ("operator" in why or "symbol" in why):
            hint = "pip install --upgrade torch torchvision, together: each release of one belongs to one of the other"
        return Finding(name, "broken", f": {escape_text(why, LONGEST)}", hint)
    facts = json.loads(done.stdout.splitlines()[-1])
    told = "".join(f", {fact}" for fact in facts)
    numpy = [line for line in said if "NumPy" in line]
    if numpy:
        return Finding(name, "warning", f"{told}: {escape_text(numpy[0], LONGEST)}", hint)
    return Finding(name, "ok", told)
