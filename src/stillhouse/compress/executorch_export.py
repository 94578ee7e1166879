"""A label student as one ExecuTorch program (`.pte`) for XNNPACK, with its tokenizer inside.

The method `forward` takes the ids of one text, [1, T] int64 of any length up to the student's, and
gives logits [1, C]; `tokenizer_json` and `student_json` give UTF-8 as uint8 tensors. Linear layers:
INT8 weights with a scale for each output channel, inputs INT8 with a range found as they come.
Embedding tables: INT8 with a scale for each row, as in `onnx_int8`. Pooler and classifier stay in
float. Written by the `executorch` package, run by its runtime and compared with the student.
Knows weights and programs, no scores.

Legend: T tokens, C classes, V rows of a table, H channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.compress.onnx_export import quiet_export
from stillhouse.compress.onnx_int8 import LEAST_TABLE, row_scaled
from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors
from stillhouse.core.machine import package_versions
from stillhouse.core.optional import require
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import load_classifier

EXTRA: Final = "executorch"
NEEDED_FOR: Final = "a student for ExecuTorch"
LONGEST: Final = 512  # tokens of a text at most
CHECKED_TEXTS: Final = 32
MOST_KL: Final = 0.1  # mean nats; beyond it is another model, whatever the rounding
PROGRAM: Final = "model.pte"
HEADS: Final = ("classifier", "pooler", "pre_classifier", "score")


class ExecutorchFile(NamedTuple):
    """What was written; `mean_kl` is KL(float student || program) over the texts, in nats."""

    path: Path
    size_bytes: int
    mean_kl: float
    texts: int


def export_executorch(
    student: Path, path: Path, task: Task, *, texts: Sequence[str]
) -> ExecutorchFile:
    """Write a label student as one INT8 program.

    Args:
        student: a transformers folder with a trained head.
        path: the file to write.
        task: the student's.
        texts: a few inputs of the task, by which the program is compared with the student.

    Raises:
        UserError: not a classification task; no text; a tokenizer without a tokenizer.json form or
            without two special tokens a text; an architecture that cannot be exported, or whose
            program answers otherwise.
        MissingExtraError: executorch is not installed.
    """
    if not isinstance(task, ClassificationTask):
        raise UserError("task", "ExecuTorch needs a label student", value=task.kind)
    some = [text for text in texts if text.strip()][:CHECKED_TEXTS]
    if not some:
        raise UserError("texts", "holds no text to compare the program by", value=len(texts))
    require("executorch.exir", EXTRA, NEEDED_FOR)
    loaded = load_classifier(str(student), device="cpu")
    reads = ClassifierReader(loaded)
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is None or loaded.tokenizer.num_special_tokens_to_add() < 2:
        raise UserError(
            str(student),
            "its tokenizer has no tokenizer.json form, or frames no text with two tokens",
            action="take a BERT-like source, or onnx-mobile",
        )
    expected = reads.read(some).log_p
    longest = min(reads.longest, LONGEST)
    encoded = [
        loaded.tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in some
    ]
    ids = [torch.tensor([one]) for one in encoded]
    loaded.model.set_attn_implementation("eager")
    spec = {
        "labels": list(reads.classes),
        "max_tokens": longest,
        "truncation_side": loaded.tokenizer.truncation_side,
        "parameters": loaded.parameters,
        "name": loaded.name,
    }
    try:
        with quiet_export():
            program = _program(
                _OneText(loaded.model).eval(),
                ids,
                longest,
                {
                    "student_json": _bytes(json.dumps(spec)),
                    "tokenizer_json": _bytes(backend.to_str()),
                },
            )
    except Exception as error:  # exporters let any error of a model's own code through
        raise UserError(
            str(student),
            f"an architecture {loaded.model.config.model_type} cannot be exported to ExecuTorch: "
            f"{type(error).__name__}: {error}",
            action="use onnx-mobile",
        ) from None
    with disk_errors(path):
        path.write_bytes(program)
    found = torch.cat(_answers(path, ids))
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    if not kl <= MOST_KL:
        path.unlink()
        raise UserError(
            str(student),
            f"comes out of the export changed: mean KL {kl:.3g} nats from the float student",
            action="use onnx-mobile",
        )
    return ExecutorchFile(path, path.stat().st_size, kl, len(some))


def write_executorch(
    student: Path, out: Path, task: Task, *, name: str = "", texts: Sequence[str]
) -> Artefact:
    """`export_executorch` as an artefact: `model.pte`, and `artefact.json`, which answering needs
    not.

    Args:
        student, task, texts: as `export_executorch`.
        out: an empty folder.
        name: what the student was initialised from, for the record.

    Raises:
        UserError, MissingExtraError: as `export_executorch`.
    """
    made = export_executorch(student, out / PROGRAM, task, texts=texts)
    versions = package_versions("executorch", "torchao", "torch", "transformers", "tokenizers")
    return write_artefact(
        out,
        kind="executorch",
        precision="int8",
        head="label",
        made_from=MadeFrom(student=student_sha(student), name=name, versions=versions),
        task=task,
        settings={"backend": "xnnpack", "mean_kl_nats": made.mean_kl, "compared": made.texts},
    )


class _RowScaled(nn.Module):
    """An embedding table of INT8 rows."""

    rows: Tensor
    scales: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        rows, scales = row_scaled(table.detach().float().numpy())
        self.register_buffer("rows", torch.from_numpy(rows))  # [V, H]
        self.register_buffer("scales", torch.from_numpy(scales))  # [V, 1]

    def forward(self, ids: Tensor) -> Tensor:
        """[..., T] to [..., T, H]."""
        rows = functional.embedding(ids, self.rows).float()
        return rows * functional.embedding(ids, self.scales)


class _FloatLinear(nn.Linear):
    """A linear layer that the quantizer, which goes by class, does not take."""


class _OneText(nn.Module):
    """The model on one text without padding; its tables replaced, its head named."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for name, parent in list(model.named_modules()):
            for own, child in list(parent.named_children()):
                if isinstance(child, nn.Embedding) and child.weight.numel() >= LEAST_TABLE:
                    setattr(parent, own, _RowScaled(child.weight))
                elif type(child) is nn.Linear and {*name.split("."), own} & set(HEADS):
                    child.__class__ = _FloatLinear

    def forward(self, ids: Tensor) -> Tensor:
        """[1, T] to [1, C]."""
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


@torch.inference_mode(False)
@torch.no_grad()
def _program(
    model: nn.Module, ids: Sequence[Tensor], longest: int, inside: dict[str, Tensor]
) -> bytes:
    partition = require(
        "executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA, NEEDED_FOR
    )
    quantizer = require(
        "executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA, NEEDED_FOR
    )
    pt2e = require("torchao.quantization.pt2e.quantize_pt2e", EXTRA, NEEDED_FOR)
    exir = require("executorch.exir", EXTRA, NEEDED_FOR)
    example = torch.zeros(1, max(3, longest // 2), dtype=torch.long)
    shapes = {"ids": {1: torch.export.Dim("tokens", min=2, max=longest)}}
    rules = quantizer.XNNPACKQuantizer().set_module_type(
        nn.Linear, quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    )

    def exported(module: nn.Module) -> Any:
        return torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)

    prepared = pt2e.prepare_pt2e(exported(model).module(), rules)
    prepared(ids[0])
    lowered = exir.to_edge_transform_and_lower(
        exported(pt2e.convert_pt2e(prepared)),
        partitioner=[partition.XnnpackPartitioner()],
        constant_methods=inside,
    )
    return bytes(lowered.to_executorch().buffer)


def _answers(path: Path, ids: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities [1, C] of each text, by ExecuTorch's own runtime."""
    runtime = require("executorch.runtime", EXTRA, NEEDED_FOR)
    program = runtime.Runtime.get().load_program(path)
    forward = program.load_method("forward")
    # The runtime owns its outputs, and writes over them.
    return [forward.execute([one])[0].clone().log_softmax(-1) for one in ids]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
