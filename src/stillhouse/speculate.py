"""The speculate stage's models: the student as a draft of its teacher, and what it is held to.

Opens the target and the drafts, builds the student as it was before training (which is training's
skill), and hands them to `compress.speculate_stage`. Knows the run folder; measures nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.optional import EXTRAS, require
from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.runfolder import Outcome, RunFolder

NEEDED_FOR: Final = "speculative decoding"
LLAMA: Final = "speculate.runtimes: llama.cpp"


def check_speculate(recipe: Recipe) -> None:
    """Refuse, before anything is paid, what cannot be measured on this machine.

    Raises:
        MissingExtraError: a runtime that is not installed.
        UserError: a GGUF file that is not there; llama.cpp with a draft of a trimmed vocabulary,
            which it loads and never asks.
    """
    section = recipe.speculate
    if section is None or "llama.cpp" not in section.runtimes:
        return
    for module in EXTRAS["gguf"]:
        require(module, "gguf", LLAMA)
    if section.draft == "student" and recipe.student.vocabulary != "full":
        raise UserError(
            "speculate.runtimes",
            "llama.cpp drafts in the target's own vocabulary, and this student's is trimmed",
            value="llama.cpp",
            action="set student.vocabulary: full, or measure in transformers alone",
        )
    for name in ("target_gguf", "draft_gguf", "undistilled_gguf"):
        given = getattr(section, name)
        if given is not None and not Path(given).expanduser().is_file():
            raise UserError(f"speculate.{name}", "there is no such file", value=given)


def speculate(
    recipe: Recipe,
    run: RunFolder,
    tuned: Path | None,
    traffic: Path,
    *,
    work: Path,
    progress: Progress,
) -> Outcome:
    """Measure the drafts that the recipe names.

    Raises:
        UserError: a model that cannot be loaded, or a tokenizer that does not go with the target's.
        MissingExtraError: a package that is not installed.
    """
    stage = require("stillhouse.compress.speculate_stage", "train", NEEDED_FOR)
    loading = require("stillhouse.models.loading", "train", NEEDED_FOR)
    section = recipe.speculate
    assert section is not None, "the stage runs where the recipe has the section"
    teacher = str(tuned) if tuned is not None else recipe.teacher.model
    plain = not recipe.teacher.chat_template
    student = run.stage("train") / "student"

    def opened(source: str) -> Any:
        if source == "teacher":
            return loading.load_causal_lm(teacher, device=recipe.train.device, plain=plain)
        if source == "student":
            found = loading.load_causal_lm(str(student), device=recipe.train.device)
            return found._replace(name=f"{recipe.student.source} distilled")
        return loading.load_causal_lm(source, device=recipe.train.device)

    drafts = {"draft": opened(section.draft)}
    if section.undistilled == "untrained":
        drafts["undistilled"] = _untrained(recipe, run, tuned, loading)
    elif section.undistilled is not None:
        drafts["undistilled"] = opened(section.undistilled)
    drafts |= {name: opened(source) for name, source in section.others.items()}
    target = opened(section.target)
    files = {}
    if "llama.cpp" in section.runtimes:
        sources = {
            "target": (section.target_gguf, target),
            "draft": (section.draft_gguf, drafts["draft"]),
        }
        if "undistilled" in drafts:
            sources["undistilled"] = (section.undistilled_gguf, drafts["undistilled"])
        for name, (given, loaded) in sources.items():
            progress.say(f"llama.cpp: {name}")
            files[name] = _gguf(given, loaded, work / "gguf" / name, section.gguf)
    models = stage.Models(target, drafts, files)
    measured: Callable[..., Outcome] = stage.run_speculate
    return measured(recipe, models, run.stage("dataset"), traffic, work=work, progress=progress)


def _gguf(given: str | None, loaded: Any, folder: Path, precision: str) -> Path:
    """The user's file, or one that is written here from an opened model."""
    if given is not None:
        return Path(given).expanduser()
    module = require("stillhouse.compress.gguf_export", "gguf", LLAMA)
    plain = folder.with_name(folder.name + ".hf")
    loaded.model.save_pretrained(plain)
    loaded.tokenizer.save_pretrained(plain)
    module.export_gguf(plain, folder, precision)
    shutil.rmtree(plain)
    return next(folder.glob("*.gguf"))


def _untrained(recipe: Recipe, run: RunFolder, tuned: Path | None, loading: Any) -> Any:
    """The student as training found it: its source, cut and trimmed, not trained."""
    students = require("stillhouse.train.students", "train", NEEDED_FOR)
    examples = read_records(run.stage("dataset") / "train.jsonl", Example)
    student = students.build_student(
        recipe.student,
        recipe.task,
        students.student_source(recipe, None if tuned is None else str(tuned)),
        [message.content for example in examples for message in example.messages],
        recipe.training_seed,
        plain=students.reads_plain(recipe),
    )
    return loading.Loaded(
        model=student.model.to(loading.pick_device(recipe.train.device)).eval(),
        tokenizer=student.tokenizer,
        name=f"{recipe.student.source} untrained",
        revision=student.plan.revision,
        parameters=student.plan.parameters,
        size_bytes=0,
    )
