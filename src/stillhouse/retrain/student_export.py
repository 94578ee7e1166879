"""A registered student as a folder for others: for transformers with a card, or for MLflow.

Both are copies, written under a temporary name and renamed. The MLflow folder is in its documented
form (MLmodel, `python_function` with a loader module): no pickle, and MLflow itself is needed only
where it is loaded. Knows entries and files; opens no model.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from pydantic import JsonValue

from stillhouse import __version__
from stillhouse.core.artefact import is_artefact, read_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.heads import head_of_architecture
from stillhouse.core.jsonl import disk_errors, write_json
from stillhouse.evaluate.model_card import CARD, PIPELINE_TAGS
from stillhouse.retrain.registry_reader import RegistryReader
from stillhouse.retrain.registry_records import Entry

CONFIG: Final = "config.json"
NOTES: Final = "stillhouse.json"
STUDENT: Final = "student"
DATA: Final = "data"
LOADER: Final = "stillhouse.retrain.mlflow_flavour"
# The extra of this package that opens an artefact of a kind.
_EXTRAS: Final = {
    "onnx": "onnx",
    "gguf": "gguf",
    "genai": "genai",
    "executorch": "executorch",
    "hf": "train",
}


class _Kind(NamedTuple):
    """What a student's folder says of itself."""

    head: str
    extra: str
    task: Mapping[str, Any] | None


def export_huggingface(registry: RegistryReader, ref: str, out: Path) -> Path:
    """A folder that transformers loads, with the run's model card, or one from the entry.

    Raises:
        UserError: no such student, it is in a form that transformers cannot load, or `out` is
            there already.
        TamperedError: its files are not those that were added.
    """
    entry, folder = registry.get(ref), registry.folder(ref)
    if not (folder / CONFIG).is_file():
        raise UserError(
            "ref", f"{entry.id} is in a form that transformers cannot load", value=ref,
            action="export it with --to mlflow",
        )  # fmt: skip
    kind = _kind_of(entry, folder)

    def write(target: Path) -> None:
        _copy(folder, target)
        own = folder / CARD
        text = own.read_text(encoding="utf-8") if own.is_file() else _card(entry, kind.head)
        (target / CARD).write_text(text.rstrip("\n") + "\n\n" + _origin(entry), encoding="utf-8")

    return _whole(out, write)


def export_mlflow(registry: RegistryReader, ref: str, out: Path) -> Path:
    """A folder that `mlflow.pyfunc.load_model` loads, where this package is installed.

    Raises:
        UserError: no such student, nothing says its whole task, or `out` is there already.
        TamperedError: its files are not those that were added.
    """
    entry, folder = registry.get(ref), registry.folder(ref)
    kind = _kind_of(entry, folder)
    if kind.task is None:
        raise UserError(
            "ref",
            f"nothing says what is asked of {entry.id}: its lineage has no task",
            value=ref,
            action="add it by its run's folder: stillhouse registry add RUN",
        )
    requirements = [f"stillhouse[{kind.extra}]=={__version__}", "pandas"]

    def write(target: Path) -> None:
        _copy(folder, target / DATA / STUDENT)
        write_json(
            target / DATA / NOTES,
            {"head": kind.head, "task": kind.task, "id": entry.id, "digest": entry.digest},
        )
        (target / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        _yaml(
            target / "python_env.yaml",
            {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]},
        )
        _yaml(target / "MLmodel", _mlmodel(entry))

    return _whole(out, write)


def _mlmodel(entry: Entry) -> dict[str, object]:
    inputs = [{"name": "text", "type": "string", "required": True}]
    outputs = [
        {"name": "answer", "type": "string", "required": True},
        {"name": "confidence", "type": "double", "required": False},
    ]
    made = datetime.fromtimestamp(entry.created_at, UTC)
    return {
        "flavors": {
            "python_function": {
                "loader_module": LOADER,
                "data": DATA,
                "python_version": platform.python_version(),
                "env": {"virtualenv": "python_env.yaml"},
            }
        },
        "model_uuid": entry.digest[:32],
        "utc_time_created": made.strftime("%Y-%m-%d %H:%M:%S.%f"),
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
        "metadata": {"stillhouse": _facts(entry)},
    }


def _kind_of(entry: Entry, folder: Path) -> _Kind:
    told = entry.lineage.get("task")
    task = told if isinstance(told, Mapping) and "kind" in told else None
    if is_artefact(folder):
        found = read_artefact(folder)
        own = None if found.task is None else found.task.model_dump(mode="json")
        return _Kind(found.head, _EXTRAS[found.kind], own or task)
    names = _config(folder).get("architectures")
    first = str(names[0]) if isinstance(names, list) and names else ""
    return _Kind(head_of_architecture(first), "train", task)


def _config(folder: Path) -> Mapping[str, object]:
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            str(folder), f"holds no student: no readable {CONFIG}", action="add a student's folder"
        )
    return found


def _facts(entry: Entry) -> dict[str, JsonValue]:
    facts = entry.model_dump(mode="json", exclude={"artefacts", "aliases", "version"})
    return {name: value for name, value in facts.items() if value not in (None, {}, ())}


def _card(entry: Entry, head: str) -> str:
    front = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[head],
        "license": "unknown",
        "tags": ["distillation", "stillhouse"],
    }
    text: str = yaml.safe_dump(front, sort_keys=False)
    return (
        f"---\n{text}---\n\n# {entry.id}: a student for {entry.task}\n\n"
        "It does this one task; on other input its answers mean nothing."
    )


def _origin(entry: Entry) -> str:
    lines = [
        "## In the registry",
        "",
        f"- Student `{entry.id}` of task `{entry.task}`, {entry.stage} when it was exported.",
        f"- Digest of its files: `{entry.digest}`.",
    ]
    if entry.parent is not None:
        lines.append(f"- Follows `{entry.parent}`.")
    for title, told in (("Lineage", entry.lineage), ("Figures", entry.metrics)):
        if told:
            text = json.dumps(dict(told), indent=2, ensure_ascii=False)
            lines += ["", f"{title}:", "", "```json", text.replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def _copy(folder: Path, target: Path) -> None:
    """A copy that may be written to."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            copied = target / path.relative_to(folder)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)


def _whole(out: Path, write: Callable[[Path], None]) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), "is there already", action="name a new folder")
    partial = out.with_name(f"{out.name}.partial")
    with disk_errors(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        partial.rename(out)
    return out


def _yaml(path: Path, value: Mapping[str, object]) -> None:
    text: str = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
