"""The user's own files: of weights, and Python files as modules, each by itself or of a package. Needs no torch."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from indistill.errors import ModelError, describe_error

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
PREFIX = "indistill_file_"  # of the module's name, so that a file may have the name of any package


def check_weights_file(path: Path) -> None:
    """Raises ModelError unless there is a file that weights can be read from, by its name."""
    if not path.is_file():
        raise ModelError(f"weights: there is no file {path}")
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise ModelError(f"weights: {path} has the suffix '{path.suffix}'; .safetensors, .pt, .pth and .bin are read")


def import_file(path: Path, spec: str) -> ModuleType:
    """Returns the module of a Python file, which runs; to be called within `search_beside`.

    Args:
        path: of the file.
        spec: the model spec that names it, for messages.

    Raises:
        ModelError: there is no such file, or it does not import.
    """
    if not path.is_file():
        raise ModelError(f"model '{spec}': there is no file {path}")
    path = path.resolve()
    packages = _find_packages(path)
    if packages and packages[0] in sys.modules:
        used = sys.modules[packages[0]].__file__
        if used is None or Path(used).resolve() != path.parents[len(packages) - 1] / "__init__.py":
            raise ModelError(
                f"model '{spec}': '{packages[0]}' is the name of another package in use: rename its folder"
            )
    try:
        return importlib.import_module(".".join([*packages, path.stem])) if packages else _import_alone(path)
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"model '{spec}': {path} does not import: {describe_error(error)}") from error


@contextmanager
def search_beside(path: Path) -> Iterator[None]:
    """A context in which a file finds what lies beside it (beside its package), as when Python is started there.

    What was imported from there is forgotten afterwards, as another file may have neighbours of the same names; its own
    package is not.
    """
    packages = _find_packages(path.resolve())
    root, before = path.resolve().parents[len(packages)], set(sys.modules)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
        beside = [name for name in set(sys.modules) - before if _lies_in(name.partition(".")[0], root)]
        for name in beside:
            if name.partition(".")[0] not in packages[:1]:
                sys.modules.pop(name)


def _lies_in(name: str, folder: Path) -> bool:
    """Returns whether a module or package that is imported lies in a folder, not deeper."""
    module = sys.modules.get(name)
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None)]
    return not name.startswith(PREFIX) and any(Path(place).resolve().parent == folder for place in places if place)


def _find_packages(path: Path) -> list[str]:
    """Returns the names of the packages around a file, from the outermost to the innermost."""
    names: list[str] = []
    for folder in path.parents:
        if not (folder / "__init__.py").is_file() or not folder.name.isidentifier():
            break
        names.insert(0, folder.name)
    return names


def _import_alone(path: Path) -> ModuleType:
    name = f"{PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError("it is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # a dataclass looks its module up there
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
