"""The import rules of docs/design.md, section 1, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from stillhouse.cli_table import COMMANDS
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
TOP |= {"calibrating", "calibrating_answers", "cli_calibrate", "cli_simulate", "recalibrating"}
TOP |= {"cli_registry"}
TOP |= {"cli_monitor", "monitor_canaries", "monitoring"}
TOP |= {"cli_retrain", "retrain_loops", "retrain_recipe", "retraining"}
TOP |= {"cli_online", "refining"}
TOP |= {"cli_doctor", "cli_forget", "cli_init", "cli_mine", "cli_run", "cli_schema", "cli_show"}
TOP |= {"cli_store", "cli_table", "retrain_admin", "stage_calls"}
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


def late_of(path: Path) -> list[Import]:
    """This package's modules that the file imports when they are needed, through core/optional."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("late", "require")
        ):
            named = node.args[0]
            if isinstance(named, ast.Constant):
                found.append(Import(path, node.lineno, str(named.value), True))
            elif path.name != "cli_table.py":  # the table has a test of its own
                assert node.func.id != "late", f"{path}:{node.lineno}: write the module out"
    return [item for item in found if item.module.partition(".")[0] == "stillhouse"]


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def all_imports() -> list[Import]:
    return [item for path in FILES for item in imports_of(path)]


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


def test_a_folder_imports_only_what_the_map_allows() -> None:
    mine = [item for item in all_imports() if item.module.startswith("stillhouse")]
    assert {item.file for item in mine} > {SRC / "pipeline.py", SRC / "core" / "recipe.py"}
    for item in mine:
        folder, target = folder_of(module_of(item.file)), folder_of(item.module)
        assert target in allowed(folder), f"{item.file}:{item.line} imports {item.module}"
        if target == "cli":
            assert folder == "__main__", f"{item.file}:{item.line}: nothing imports cli"


def test_every_folder_and_top_module_is_on_the_map() -> None:
    folders = {p.name for p in SRC.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= {"core", "models", "retrain", *STAGES}
    assert {p.stem for p in SRC.glob("*.py")} <= {"__init__", "__main__", *TOP}


def test_no_import_inside_a_function() -> None:
    inside = [
        f"{i.file.relative_to(SRC)}:{i.line} {i.module}" for i in all_imports() if i.inside_function
    ]
    assert inside == []


def test_no_import_circle() -> None:
    graph: dict[str, set[str]] = {module_of(path): set() for path in FILES}
    for item in all_imports():
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


def test_what_is_imported_late_is_there_and_on_the_map() -> None:
    modules = {module_of(path) for path in FILES}
    items = [item for path in FILES for item in late_of(path)]
    assert "stillhouse.traffic.stage" in {item.module for item in items}
    for item in items:
        where = f"{item.file}:{item.line} imports {item.module}"
        assert item.module in modules, where
        assert folder_of(item.module) in allowed(folder_of(module_of(item.file))), where


def test_one_file_imports_what_is_named_at_run_time() -> None:
    # ... and one what users name.
    names = ("import_module", "__import__")
    files = {
        path.relative_to(SRC).as_posix()
        for path in FILES
        if any(name in path.read_text(encoding="utf-8") for name in names)
    }
    assert files == {"core/optional.py", "core/user_function.py"}


# Of the extras' modules, what `pip install stillhouse` brings itself.
BASE = {"aiohttp"}
HEAVY = "torch", "transformers", "xllamacpp", "peft", "accelerate"


LIGHT = ("core", "traffic", "teacher", "dataset", "evaluate", "serve", "monitor", "cli")


def test_the_light_parts_import_without_torch() -> None:
    modules = [
        module
        for module in map(module_of, FILES)
        if module.startswith(tuple(f"stillhouse.{part}" for part in LIGHT))
    ]
    assert all(any(m.startswith(f"stillhouse.{part}") for m in modules) for part in LIGHT)
    # In one process: what one of them needs and is not there, no other can have brought.
    assert_imports(modules, without=HEAVY)


def test_the_commands_import_without_any_extra() -> None:
    extras = sorted({module for modules in EXTRAS.values() for module in modules} - BASE)
    assert "sqlalchemy" in extras
    modules = sorted({entry.module for entry in COMMANDS.values()})
    assert_imports(["stillhouse.cli", *modules], without=(*extras, "river"))


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
        "failed = []\n"
        f"for name in {modules!r}:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        failed.append(f'{name}: {error.name}')\n"
        "sys.exit('; '.join(failed) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
