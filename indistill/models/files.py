"""The user's own Python file as a module: a file by itself, or one of a package."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from indistill.errors import ModelError, describe_error

PREFIX = "indistill_file_"  # of the module's name, so that a file may have the name of any package


def import_file(path: Path, spec: str) -> ModuleType:
    """Returns the module of a Python file, which runs. Relative imports work in a package (a folder with
    `__init__.py`), and files beside it (beside its package) can be imported, as when Python is started there.

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
    root = path.parents[len(packages)]
    if packages and packages[0] in sys.modules:
        used = sys.modules[packages[0]].__file__
        if used is None or Path(used).resolve() != root / packages[0] / "__init__.py":
            raise ModelError(
                f"model '{spec}': '{packages[0]}' is the name of another package in use: rename its folder"
            )
    try:
        with _search_first(root):
            return importlib.import_module(".".join([*packages, path.stem])) if packages else _import_alone(path)
    except Exception as error:  # the user's code may raise anything
        raise ModelError(f"model '{spec}': {path} does not import: {describe_error(error)}") from error


def _find_packages(path: Path) -> list[str]:
    """Returns the names of the packages around a file, from the outermost to the innermost."""
    names: list[str] = []
    for folder in path.parents:
        if not (folder / "__init__.py").is_file() or not folder.name.isidentifier():
            break
        names.insert(0, folder.name)
    return names


def _import_alone(path: Path) -> ModuleType:
    name = PREFIX + path.stem
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


@contextmanager
def _search_first(folder: Path) -> Iterator[None]:
    """Imports look into a folder first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
