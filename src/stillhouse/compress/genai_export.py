"""A text student as ONNX with its cache inside, for onnxruntime-genai.

The graph is written by the model builder that comes with onnxruntime-genai (weights of all products
in blocks of INT8 or INT4, the rest float32), in a process of its own. It is not believed: the
runtime's next-token beliefs are compared with the student's on texts of the task. Tokenizer and
chat template are the student's own files. Knows folders and beliefs; no graph.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import JsonValue
from transformers import AutoTokenizer

from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.machine import package_versions
from stillhouse.core.optional import require
from stillhouse.core.records import Message
from stillhouse.core.tasks import Task
from stillhouse.models.chat import end_ids, prompt_ids
from stillhouse.models.loading import Loaded, load_causal_lm
from stillhouse.models.quiet import quiet_transformers

Precision = Literal["int8", "int4"]
EXTRA: Final = "genai"
NEEDED_FOR: Final = "a text student in ONNX"
BUILDER: Final = "onnxruntime_genai.models.builder"
# Mean KL from the float student, nats a position: beyond it, it is another model.
MOST_KL: Final[dict[Precision, float]] = {"int8": 0.1, "int4": 1.0}
COMPARED: Final = 4  # texts
POSITIONS: Final = 12  # of each
ACTION: Final = "use gguf-q8_0, or a student whose heads are a multiple of 16 wide"


def export_genai(
    student: Path,
    out: Path,
    precision: Precision,
    *,
    name: str = "",
    task: Task | None = None,
    texts: Sequence[str] = (),
) -> Artefact:
    """Write a text student for onnxruntime-genai, and its `artefact.json` last.

    Args:
        student: a transformers folder with its tokenizer.
        out: an empty folder.
        precision: of the weights of products.
        name: what the student was initialised from, for the record.
        task: noted in the artefact.
        texts: by which what was written is compared with the student.

    Raises:
        UserError: an architecture that the builder or the runtime does not know, or whose file
            believes otherwise.
        MissingExtraError: onnxruntime-genai or onnx-ir is not installed.
    """
    for module in ("onnxruntime_genai", "onnx_ir"):
        require(module, EXTRA, NEEDED_FOR)
    loaded = load_causal_lm(str(student), device="cpu")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    _build(student, out, precision)
    with quiet_transformers():
        AutoTokenizer.from_pretrained(student, local_files_only=True).save_pretrained(out)
    some = [text for text in texts if text.strip()][:COMPARED] or ["The"]
    kl = _mean_kl(loaded, out, some, student)
    if not kl <= MOST_KL[precision]:
        raise UserError(
            str(student),
            f"comes out of the export changed: mean KL {kl:.3g} nats from the float student",
            action=ACTION,
        )
    config = loaded.model.config
    trained = int(loaded.tokenizer.model_max_length)
    positions = int(config.max_position_embeddings)
    settings: dict[str, JsonValue] = {
        "parameters": loaded.parameters,
        "positions": positions,
        "max_tokens": trained if trained < positions else None,
        "ends": [*end_ids(loaded.tokenizer, loaded.model)],
        "mean_kl_nats": kl,
    }
    packages = ("onnxruntime-genai", "onnxruntime", "onnx-ir", "transformers")
    return write_artefact(
        out,
        kind="genai",
        precision=precision,
        head="text",
        made_from=MadeFrom(
            student=student_sha(student), name=name, versions=package_versions(*packages)
        ),
        task=task,
        settings=settings,
    )


def _build(student: Path, out: Path, precision: Precision) -> None:
    with tempfile.TemporaryDirectory() as cache:
        given = ["-m", str(student), "-o", str(out), "-p", precision, "-e", "cpu", "-c", cache]
        done = subprocess.run(
            [sys.executable, "-m", BUILDER, *given],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise UserError(
            str(student),
            f"onnxruntime-genai's builder cannot write it: {said[-1].strip()}",
            action=ACTION,
        )


def _mean_kl(loaded: Loaded, out: Path, texts: Sequence[str], student: Path) -> float:
    """Mean over positions of KL(float student || file), nats."""
    engine: Any = require("stillhouse.models.genai_engine", EXTRA, NEEDED_FOR)
    chats = [[Message(role="user", content=text)] for text in texts]
    found: list[float] = []
    try:
        opened = engine.GenaiEngine(out)
        for ids in prompt_ids(loaded.tokenizer, chats):
            first = max(1, len(ids) - POSITIONS)
            with torch.inference_mode():
                rows = loaded.model(torch.tensor([ids])).logits[0]  # [T, V]
            reading = opened.read(ids[:first])
            for at in range(first, len(ids) + 1):
                p = rows[at - 1].double().log_softmax(-1).numpy()
                q = engine.log_softmax(reading.logits[: len(p)])
                found.append(float((np.exp(p) * (p - q)).sum()))
                if at < len(ids):
                    reading.add(ids[at : at + 1])
    except RuntimeError as error:  # onnxruntime-genai raises no class of its own
        raise UserError(
            str(student),
            f"onnxruntime-genai cannot run what its builder wrote: {error}",
            action=ACTION,
        ) from None
    return float(np.mean(found))
