"""The model card: README.md beside the student's weights, in the Hugging Face form.

YAML front matter, then text; all of it from the recipe, the run's records and the report. A licence
is named where it is known: of the embedded models, and of a base model whose own folder says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from stillhouse.core.jsonl import read_json, void, write_atomic
from stillhouse.core.lineage import read_lineage
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_cut import share_of
from stillhouse.core.rights import EMBEDDED_LICENCE, terms_sentence
from stillhouse.core.runfolder import RunFolder
from stillhouse.evaluate.report import Report
from stillhouse.evaluate.results import SetResult
from stillhouse.evaluate.summary import METRIC_NAMES, points, share

CARD: Final = "README.md"
PIPELINE_TAGS: Final = {
    "label": "text-classification",
    "text": "text-generation",
    "tags": "token-classification",
}
KINDS: Final = {"label": "classifier", "text": "language model", "tags": "token classifier"}
NAMES: Final = {
    "teacher": "teacher",
    "student": "student (this model)",
    "twin": "the same without soft targets",
    "tfidf": "TF-IDF baseline",
    "majority": "majority baseline",
}


def write_model_card(recipe: Recipe, run: RunFolder, report: Report | None) -> None:
    """Write README.md into the student's folder; without a report, without figures."""
    folder = run.stage("train") / "student"
    if folder.is_dir():
        text = model_card(recipe, run, report)
        write_atomic(folder / CARD, lambda handle: void(handle.write(text)))


def model_card(recipe: Recipe, run: RunFolder, report: Report | None) -> str:
    """The card's text."""
    base = base_model(recipe)
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINE_TAGS[recipe.student.head],
        "license": base.licence or "unknown",
    }
    if base.hub_id is not None:
        head["base_model"] = base.hub_id
        head["base_model_relation"] = "finetune" if recipe.train.lora is None else "adapter"
    head["tags"] = ["distillation", "stillhouse"]
    if report is not None:
        head["model-index"] = [_index(recipe, report)]
    yaml_text: str = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"# {recipe.name}: a student for {recipe.task.name}",
        f"A {KINDS[recipe.student.head]} distilled from "
        f"`{recipe.teacher.model}` for one task ({recipe.task.kind}).",
        "## Where it comes from",
        "\n".join(origin_lines(recipe, run, base)),
        "## How it was trained",
        training_sentence(recipe),
        "## How good it is",
        *(_figures(recipe, report) if report is not None else [_UNJUDGED]),
        "## Limits",
        "\n".join(f"- {line}" for line in limits(recipe, report)),
    ]
    return f"---\n{yaml_text}---\n\n" + "\n\n".join(parts) + "\n"


_UNJUDGED: Final = "Not evaluated yet: `stillhouse run` writes the figures here."


class BaseModel:
    """What the student's weights were before: a hub id where there is one, and the licence."""

    def __init__(self, name: str, hub_id: str | None, licence: str | None) -> None:
        self.name, self.hub_id, self.licence = name, hub_id, licence


def base_model(recipe: Recipe) -> BaseModel:
    """The student's base, by the recipe; a licence only where the machine holds it in writing."""
    source = recipe.student.source
    if source == "teacher":
        source = recipe.teacher.model
    if source == "embedded":
        return BaseModel(
            "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", EMBEDDED_LICENCE
        )
    if source == "embedded-encoder":
        return BaseModel(
            "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", EMBEDDED_LICENCE
        )
    name = source.partition(":")[2].partition("@")[0]
    path = Path(name)
    if path.is_absolute() or path.exists():
        return BaseModel(path.name, None, licence_in(path / CARD))
    return BaseModel(name, name, None)


def licence_in(card: Path) -> str | None:
    """The `license` of a model card's front matter, if it has one."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not text.startswith("---\n"):
        return None
    try:
        head = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    found = head.get("license") if isinstance(head, Mapping) else None
    return found if isinstance(found, str) else None


def origin_lines(recipe: Recipe, run: RunFolder, base: BaseModel) -> list[str]:
    """Base model, teacher and its terms, data: a list item each."""
    licence = base.licence or "not known here: look it up at the base model's own page"
    lines = [
        f"- Base model: `{base.name}`. Its licence: {licence}.",
        f"- Teacher: `{recipe.teacher.model}`.",
        f"- The teacher's terms: {terms_sentence(recipe.teacher)}",
    ]
    manifest = run.manifest("train")
    inputs = manifest.key.get("inputs") if manifest is not None else None
    digest = str(inputs.get("dataset", "")) if isinstance(inputs, Mapping) else ""
    facts_path = run.stage("dataset") / "dataset.json"
    if digest and facts_path.exists():
        facts = read_json(facts_path)
        known = read_lineage(run.root).datasets.get(digest)
        users = f" of {known.users:,} users" if known is not None and known.users else ""
        lines.append(
            f"- Data: dataset `{digest}`, {facts['train']:,} training and "
            f"{facts['held_out']:,} held-out examples{users}; its card is README.md of the run's "
            "dataset folder."
        )
    return lines


def training_sentence(recipe: Recipe) -> str:
    """How the student was trained, by the recipe."""
    train, student = recipe.train, recipe.student
    aim = (
        "the teacher's answers alone"
        if train.alpha == 0
        else f"soft targets (weight {train.alpha:g}, distillation temperature "
        f"{train.distillation_temperature:g}) and the teacher's answers"
    )
    shape = []
    if student.size is not None:
        shape.append(f"{share_of(student.size):.0%} of the parameters kept")
    if student.layers is not None:
        layers = len(student.layers) if isinstance(student.layers, tuple) else student.layers
        shape.append(f"{layers} layers kept")
    if student.vocabulary != "full":
        kept = "the task's" if student.vocabulary == "task" else f"{student.vocabulary:,}"
        shape.append(f"{kept} tokens kept")
    if train.lora is not None:
        shape.append(f"LoRA of rank {train.lora.r}")
    more = f" Of the base model: {', '.join(shape)}." if shape else ""
    rate = "" if train.learning_rate is None else f" at a learning rate of {train.learning_rate:g}"
    return f"On {aim}, for {train.epochs:g} epochs{rate}, seed {recipe.seed}.{more}"


def _figures(recipe: Recipe, report: Report) -> list[str]:
    level = f"{recipe.evaluate.confidence:.0%}"
    parts = []
    for name, found in report.sets.items():
        if found is not None:
            what = "golden set, true answers" if name == "golden" else "held-out part, the teacher"
            parts.append(f"Judged on the {what} (n = {found.n:,}; {level} intervals):")
            parts.append(_scores(found))
    lines = []
    if report.retention is not None:
        lines.append(f"- Kept of the teacher's score: {share(report.retention)}")
    lines.append(f"- Agrees with the teacher: {share(report.fidelity.agreement)}")
    gate = report.gate
    lines.append(
        f"- Not worse than the teacher by more than {100 * gate.margin:g} points: {gate.verdict} "
        f"({points(gate.difference)}, {gate.method})"
    )
    if report.student.calibration_error is not None:
        lines.append(f"- Calibration error: {share(report.student.calibration_error)}")
    return [*parts, "\n".join(lines)]


def _scores(found: SetResult) -> str:
    metric = METRIC_NAMES.get(found.metric, found.metric)
    rows = [
        f"| {NAMES.get(name, name)} | {share(result.score)} |"
        for name, result in found.candidates.items()
    ]
    return "\n".join([f"| | {metric} |", "|---|---|", *rows])


def _index(recipe: Recipe, report: Report) -> dict[str, Any]:
    results = []
    for name, found in report.sets.items():
        if found is None:
            continue
        score = found.candidates["student"].score
        results.append(
            {
                "task": {"type": PIPELINE_TAGS[recipe.student.head]},
                "dataset": {"name": f"{recipe.task.name} ({name})", "type": "private"},
                "metrics": [
                    {
                        "type": found.metric,
                        "value": round(score.estimate, 4),
                        "name": f"{found.metric}, {recipe.evaluate.confidence:.0%} interval "
                        f"{score.low:.4f} to {score.high:.4f}, n {score.n}, against "
                        f"{'true answers' if found.reference == 'truth' else 'the teacher'}",
                    }
                ],
            }
        )
    return {"name": recipe.name, "results": results}


def limits(recipe: Recipe, report: Report | None) -> list[str]:
    """What the student is not good for, and what weakens its figures."""
    lines = [
        f"It does one task, {recipe.task.name}; on other input its answers mean nothing.",
        "It learned from a model's answers: the teacher's mistakes and leanings are in it.",
        "It saw the texts of its training data, and may repeat what stood in them.",
    ]
    return lines + (list(report.warnings) if report is not None else [])
