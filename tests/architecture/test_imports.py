"""The import rules of docs/design.md, section 1, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from stillhouse.core.optional import EXTRAS

SRC = Path(__file__).parents[2] / "src" / "stillhouse"
FILES = sorted(SRC.rglob("*.py"))
# Modules beside the folders.
TOP = {
    "cli",
    "cli_images",
    "cli_options",
    "cli_pretrain",
    "cli_signals",
    "cli_speculate",
    "cli_teacher",
    "cli_tune",
    "doctor",
    "forget",
    "images",
    "pipeline",
    "plan",
    "plan_student",
    "pretrain",
    "scaffold",
    "speculate",
}
TOP |= {"stages", "stage_sections", "teacher_compare", "teacher_probe", "tuning"}
TOP |= {"cli_study", "study_curve", "study_drafts", "study_forms", "study_frontier"}
TOP |= {"study_repeats", "study_speeds", "variants"}
TOP |= {"cli_plan", "plan_nets"}
TOP |= {"cli_compress", "cli_serve", "compress_aware", "compressing"}
TOP |= {"cli_dashboard", "dashboard", "dashboard_server"}
TOP |= {"calibrating", "cli_calibrate", "cli_simulate"}
TOP |= {"cli_registry"}
TOP |= {"cli_monitor", "monitor_canaries", "monitoring"}
TOP |= {"cli_retrain", "retrain_loops", "retrain_recipe", "retraining"}
TOP |= {"cli_online", "refining"}
STAGES = ("traffic", "teacher", "dataset", "train", "evaluate", "compress", "serve", "monitor")
EXTRA_EDGES = {"train": {"dataset"}, "monitor": {"evaluate"}, "compress": {"evaluate"}}


class Import(NamedTuple):
    """One import statement of this package's own modules or of another."""

    file: Path
    line: int
    module: str
    inside_function: bool


def imports_of(path: Path) -> list[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[Import] = []

    def visit(node: ast.AST, in_function: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                found.extend(
                    Import(path, child.lineno, alias.name, in_function) for alias in child.names
                )
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                module = child.module or ""
                found.append(Import(path, child.lineno, module, in_function))
                found.extend(
                    Import(path, child.lineno, f"{module}.{alias.name}", in_function)
                    for alias in child.names
                    if (SRC.parent / Path(*module.split("."), f"{alias.name}.py")).exists()
                )
            visit(child, inner)

    visit(tree, False)
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


ALL = [item for path in FILES for item in imports_of(path)]


def allowed(folder: str) -> set[str]:
    if folder == "core":
        return {"core", ""}
    if folder == "models":
        return {"core", "models", ""}
    if folder == "retrain":
        return {"core", "models", "retrain", "", *STAGES}
    if folder in STAGES:
        return {"core", "models", folder, "", *EXTRA_EDGES.get(folder, set())}
    return {"core", "models", "retrain", "", *STAGES, *TOP}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_a_folder_imports_only_what_the_map_allows(path: Path) -> None:
    folder = folder_of(module_of(path))
    for item in imports_of(path):
        if item.module.startswith("stillhouse"):
            target = folder_of(item.module)
            assert target in allowed(folder), f"{path}:{item.line} imports {item.module}"
            if target == "cli":
                assert folder == "__main__", f"{path}:{item.line}: nothing imports cli"


def test_every_folder_and_top_module_is_on_the_map() -> None:
    folders = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= {"core", "models", "retrain", *STAGES}
    assert {p.stem for p in SRC.glob("*.py")} <= {"__init__", "__main__", *TOP}


def test_no_import_inside_a_function() -> None:
    inside = [f"{i.file.relative_to(SRC)}:{i.line} {i.module}" for i in ALL if i.inside_function]
    assert inside == []


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = {module_of(path): set() for path in FILES}
    for item in ALL:
        if item.module in graph:
            graph[module_of(item.file)].add(item.module)
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module in done:
            return
        for target in sorted(graph[module] - {module}):
            walk(target, (*trail, module))
        done.add(module)

    for module in graph:
        walk(module, ())


# Of the extras' modules, what `pip install stillhouse` brings itself.
BASE = {"aiohttp"}
HEAVY = "torch", "transformers", "xllamacpp", "peft", "accelerate"


@pytest.mark.parametrize(
    "package", ["core", "traffic", "teacher", "dataset", "evaluate", "serve", "monitor", "cli"]
)
def test_the_light_parts_import_without_torch(package: str) -> None:
    modules = [
        module_of(p)
        for p in FILES
        if module_of(p).startswith(f"stillhouse.{package}") and p.stem != "__main__"
    ]
    assert_imports(modules, without=HEAVY)


def test_the_command_imports_without_any_extra() -> None:
    extras = sorted({module for modules in EXTRAS.values() for module in modules} - BASE)
    assert "sqlalchemy" in extras
    assert_imports(["stillhouse.cli"], without=(*extras, "river"))


def assert_imports(modules: list[str], *, without: tuple[str, ...]) -> None:
    # A finder that knows no such package, as where it is not installed. (A None in sys.modules
    # would differ: SciPy looks there for array types of packages that others imported.)
    code = (
        "import sys, importlib\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {without!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
