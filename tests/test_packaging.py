"""The layout: four folders at the top, one package, imports in one direction."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import indistill
from indistill import errors

ROOT = Path(__file__).parents[1]
TOP = ("export", "retrieval", "cli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = (  # of indistill/, the folders from the lowest up; none imports one that stands after it
    "parallel",
    "data",
    "stages",
    "pruning",
    "models",
    "losses",
    "recipes",
    "curriculum",
    "training",
    "distillation",
    "reports",
    "runs",
)
TORCH_FREE = {
    "indistill.files.arrays",
    "indistill.files.bounded",
    "indistill.files.documents",
    "indistill.files.durable",
    "indistill.errors",
    "indistill.files.formats",
    "indistill.files.hashing",
    "indistill.images",
    "indistill.files.locking",
    "indistill.preprocess",
    "indistill.progress",
    "indistill.signals",
    "indistill.talk",
    "indistill.data.sets",
    "indistill.data.specs",
    "indistill.data.shards",
    "indistill.data.ahead",
    "indistill.data.cub",
    "indistill.data.huggingface",
    "indistill.data.imagenet",
    "indistill.data.manifests",
    "indistill.data.named",
    "indistill.data.pixels",
    "indistill.data.urls",
    "indistill.export.artefact",
    "indistill.export.card",
    "indistill.export.folder",
    "indistill.export.hub",
    "indistill.export.opening",
    "indistill.export.processor",
    "indistill.export.session",
    "indistill.export.wire",
}


def list_modules() -> dict[str, Path]:
    modules = {}
    for top in ("indistill", *TOP):
        for path in (ROOT / top).rglob("*.py"):
            relative = path.relative_to(ROOT)
            if relative.parts[0] == "indistill" and len(relative.parts) > 1 and relative.parts[1] in TOP:
                continue  # through a link
            parts = ("indistill", *relative.parts) if top in TOP else relative.parts
            name = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
            modules[name] = path
    return modules


def list_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & (set(list_modules()) - {"indistill"})


def find_part(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in TOP else "indistill"


def test_the_listed_packages_are_the_folders() -> None:
    folders = {name.rsplit(".", 1)[0] if path.name != "__init__.py" else name for name, path in list_modules().items()}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


@pytest.mark.parametrize("top", TOP)
def test_the_links_are_relative_and_lead_to_the_folders(top: str) -> None:
    link = ROOT / "indistill" / top
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{top}"
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"indistill.{top}"] == top


def test_imports_go_in_one_direction() -> None:
    allowed = {
        "indistill": {"indistill"},
        "export": {"indistill", "export"},
        "retrieval": {"indistill", "export", "retrieval"},
        "cli": {"indistill", "export", "retrieval", "cli"},
    }
    wrong = [
        f"{module} imports {imported}"
        for module, path in list_modules().items()
        for imported in list_imports(path)
        if find_part(imported) not in allowed[find_part(module)]
    ]
    assert wrong == []


def find_layer(module: str) -> int:
    """Returns where a module stands among the layers; -1, below them all, in files/ and beside the folders."""
    folder = module.split(".")[1]
    return LAYERS.index(folder) if folder in LAYERS else -1


def test_no_folder_imports_one_above_it() -> None:
    folders = {path.parent.name for path in (ROOT / "indistill").glob("*/__init__.py")}
    assert folders - {"files", *TOP} == set(LAYERS)
    wrong = [
        f"{module} imports {imported}"
        for module, path in list_modules().items()
        if find_part(module) == "indistill" and module != "indistill"
        for imported in list_imports(path)
        if find_part(imported) == "indistill" and find_layer(imported) > find_layer(module)
    ]
    assert wrong == []


def test_retrieval_imports_only_what_needs_no_torch() -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, path in list_modules().items()
        if find_part(module) == "retrieval" or module in TORCH_FREE
        for imported in list_imports(path)
        if find_part(imported) != "retrieval" and imported not in TORCH_FREE | {"indistill.data", "indistill.export"}
    ]
    assert wrong == []


def test_the_error_tree_in_the_docstring_is_complete() -> None:
    classes = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) == 10
    assert all(name in str(errors.__doc__) for name in classes)


def test_every_dependency_states_its_purpose() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line.strip() for line in block.splitlines() if line.strip().startswith('"')]
    assert len(lines) > 15
    assert [line for line in lines if "#" not in line] == []


def test_the_versions_agree() -> None:
    assert PROJECT["project"]["version"] == indistill.__version__
    assert f"version: {indistill.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{indistill.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_imports_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    for module, path in list_modules().items():
        file = module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        assert file in names
    assert {"indistill/py.typed", "indistill/reports/page.html", "indistill/recipes/cifar10.yaml"} <= names
    assert {"indistill/retrieval/sheet.html", "indistill/retrieval/evaluation/page.html"} <= names
    assert {f"indistill/retrieval/serve/{name}" for name in ("page.html", "page.js", "page.css", "icon.svg")} <= names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"indistill"}
    script = f"import importlib\nfor name in {sorted(list_modules())!r}:\n    importlib.import_module(name)\n"
    script += "import indistill; print(indistill.__file__)"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path / "site"))


def test_the_page_of_commands_names_every_option() -> None:
    from typer.main import get_command

    from indistill.cli.main import build_app

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = {part.split("\n", 1)[0]: part for part in page.split("## indistill ")[1:]}
    commands = dict(get_command(build_app()).commands)
    group = commands.pop("index")
    commands |= {f"index {name}": command for name, command in group.commands.items() if not command.hidden}
    assert set(sections) == set(commands)
    for name, command in commands.items():
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option[:12] in sections[name], f"{name} {option}: run 'make docs'"
