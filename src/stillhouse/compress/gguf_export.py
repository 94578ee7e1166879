"""A text student as a GGUF artefact: one file with weights, tokenizer and chat template.

Reads a plain transformers folder, cut or whole; writes a folder that `open_student` opens, with a
Modelfile for Ollama beside the file. Nothing is written that llama.cpp was not seen to read as the
student does: the tokenizer is proven before the weights are written, the numbers after.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from pydantic import JsonValue
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from stillhouse.compress.gguf_check import Likeness, likeness
from stillhouse.compress.gguf_ollama import modelfile
from stillhouse.compress.gguf_proof import PROBES, prove
from stillhouse.compress.gguf_quant import Precision, as_precision
from stillhouse.compress.gguf_shapes import FIELD, GgufShape, shape_of
from stillhouse.compress.gguf_tokenizer import GgufVocabulary, vocabulary_of
from stillhouse.compress.gguf_write import write_gguf
from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.optional import require
from stillhouse.core.tasks import Task
from stillhouse.models.chat import end_ids
from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.loading import load_causal_lm, locate
from stillhouse.models.quiet import quiet_transformers

FILE: Final = "student.gguf"
MODELFILE: Final = "Modelfile"
ANSWER_TOKENS: Final = 256  # what Ollama writes at most, where nobody says otherwise
CHECKED_TOKENS: Final = 24
# Beyond this, in nats per position, llama.cpp computes another model, whatever the rounding.
ANOTHER_MODEL: Final[dict[Precision, float]] = {"f32": 0.02, "f16": 0.02, "q8_0": 0.1}


def export_gguf(
    student_folder: Path,
    out: Path,
    precision: str = "q8_0",
    *,
    task: Task | None = None,
    texts: Sequence[str] = (),
) -> Artefact:
    """Write a text student as a GGUF artefact.

    Args:
        student_folder: a transformers folder: llama, mistral, qwen2, qwen3 or phi3.
        out: the artefact's folder; must not exist, or be empty.
        precision: f32, f16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0.
        task: the task that the student does, kept in the artefact.
        texts: texts of the task, cut into tokens by both runtimes and compared, with the probes.

    Returns:
        The artefact. Its settings hold what was compared: `proof.texts`, `proof.tokens`,
        `proof.chats`, and `check.mean_kl` in nats per position.

    Raises:
        UserError: an architecture that no writer knows, a tokenizer that cannot be carried over, a
            weight without a place, or a file from which llama.cpp computes another model.
        MissingExtraError: xllamacpp or gguf is not installed.
        RunFolderError: the disk is full or not writable.
    """
    kind = as_precision(precision)
    require("gguf", "gguf", "writing a GGUF file")
    require("xllamacpp", "gguf", "proving a GGUF file")
    if out.exists() and any(out.iterdir()):
        raise UserError(str(out), "is not empty", action="give a new folder")
    folder = locate(str(student_folder)).folder
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        shape = shape_of(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        ends = _ends(folder, tokenizer, config)
    vocabulary = vocabulary_of(tokenizer, shape.vocabulary, ends)
    proof = prove(tokenizer, vocabulary, texts)
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out.parent):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        kinds = write_gguf(partial / FILE, folder, shape, vocabulary, kind)
        check = _check(folder, partial / FILE, tokenizer, shape, kind)
        settings: dict[str, JsonValue] = {
            "file": FILE,
            "positions": shape.context,
            "max_tokens": _trained(tokenizer),
            "ends": list(vocabulary.ends),
            "plain": vocabulary.plain,
            "adds_special": vocabulary.plain,
            "merges_system": proof.merges_system,
            "composes": vocabulary.composes,
            "architecture": shape.architecture,
            "pre_tokenizer": vocabulary.pre,
            "weights": dict(sorted(kinds.items())),
            "proof": {"texts": proof.texts, "tokens": proof.tokens, "chats": proof.chats},
            "check": {"mean_kl": check.mean_kl, "positions": check.positions},
        }
        with disk_errors(partial):
            (partial / MODELFILE).write_text(
                modelfile(FILE, tokenizer, _texts(vocabulary), shape.context, ANSWER_TOKENS),
                encoding="utf-8",
            )
        artefact = write_artefact(
            partial,
            kind="gguf",
            precision=kind,
            head="text",
            task=task,
            made_from=MadeFrom(
                student=student_sha(folder),
                name=_source(folder),
                versions={name: version(name) for name in ("gguf", "xllamacpp", "transformers")},
            ),
            settings=settings,
        )
        with disk_errors(out.parent):
            if out.exists():
                out.rmdir()
            os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return artefact


def _check(
    folder: Path, path: Path, tokenizer: Any, shape: GgufShape, precision: Precision
) -> Likeness:
    """Compare a few positions of the written file with the float student."""
    text = " ".join(PROBES[5:9])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = ids[: min(CHECKED_TOKENS, shape.context - 1)]
    engine = GgufEngine(path, 1, shape.context if shape.context < 512 else 512)
    try:
        found = likeness(load_causal_lm(str(folder), device="cpu").model, engine, [ids])
    finally:
        engine.close()
    if not found.mean_kl <= ANOTHER_MODEL.get(precision, float("inf")):
        raise UserError(
            FIELD,
            f"llama.cpp computes another model from the {precision} file: "
            f"{found.mean_kl:.3g} nats per position from transformers",
            action="keep the student as a transformers folder, and report its config",
        )
    return found


def _ends(folder: Path, tokenizer: Any, config: Any) -> list[int]:
    """The tokens that end an answer, as `HfCompleter` has them of the loaded model."""
    if (folder / "generation_config.json").is_file():
        settings = GenerationConfig.from_pretrained(folder, local_files_only=True)
    else:
        settings = GenerationConfig.from_model_config(config)
    return end_ids(tokenizer, SimpleNamespace(generation_config=settings))


def _trained(tokenizer: Any) -> int | None:
    """The longest prompt of the student's training; tokenizers without one say 10^30."""
    longest = int(tokenizer.model_max_length)
    return longest if longest < 10**9 else None


def _texts(vocabulary: GgufVocabulary) -> list[str]:
    return [vocabulary.tokens[end] for end in vocabulary.ends]


def _source(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("_name_or_path") or folder.name)
