"""A label or tag student's weights as an ONNX file, fused for onnxruntime, checked against torch.

Any classifier of texts or tokens that torch's exporter can trace is taken; whether it was traced
rightly is measured, not believed: the written file answers the same inputs as the model, in batches
and lengths that the trace never saw. Knows weights and graphs; no integers (`onnx_int8`) and no
scores.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.compress.onnx_heads import EXTRA, NEEDED_FOR, TorchReader, Way, way_of
from stillhouse.compress.onnx_norms import part_normalisations
from stillhouse.core.artefact import Artefact, MadeFrom, student_sha, write_artefact
from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import disk_errors, write_json
from stillhouse.core.optional import require
from stillhouse.core.tasks import Task
from stillhouse.models.loading import Loaded

OPSET: Final = 17  # the newest that torch's TorchScript exporter and onnxruntime's fusions share
INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE: Final = 1e-3  # of log-probabilities, nats; float32 is at 1e-6
CHECKED_TEXTS: Final = 32
SHAPES: Final = ((1, 1), (1, 0), (3, 0), (7, 5))  # batch and length; 0: the longest
ACTION: Final = (
    "keep the transformers student, or take a source of a family that docs/onnx.md names"
)


class FloatGraph(NamedTuple):
    """A float32 graph on disk, and the student it was made of."""

    loaded: Loaded
    reader: Any  # models.onnx_student.OnnxReader, or models.onnx_tags.OnnxTagger
    worst: float  # largest difference from torch, nats of log-probability


def export_onnx(
    student: Path, out: Path, task: Task, *, name: str = "", texts: Sequence[str] = ()
) -> Artefact:
    """Write a label or tag student to `out` as float32 ONNX: `model.onnx`, `tokenizer.json`,
    `student.json`, and `artefact.json` last.

    Args:
        student: a transformers folder with a trained head.
        out: an empty folder.
        task: the student's.
        name: what the student was initialised from, for the record.
        texts: real inputs, on which the file is compared with the model; random tokens in several
            shapes always are.

    Raises:
        UserError: neither a classification nor an extraction task; a folder that is no classifier
            of its kind; an architecture that cannot be exported, or whose file answers otherwise
            than the model.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    made = write_float_graph(student, out, task, texts)
    settings = {"opset": OPSET, "fused": "attention, gelu, normalisation", "worst_nats": made.worst}
    return finish(student, out, task, precision="float32", name=name, settings=settings)


def write_float_graph(student: Path, out: Path, task: Task, texts: Sequence[str]) -> FloatGraph:
    """The three files of `export_onnx`, without `artefact.json`.

    Args:
        student, out, task, texts: as `export_onnx`.

    Raises:
        UserError, MissingExtraError: as `export_onnx`.
    """
    way = way_of(task)
    require("onnx", EXTRA, NEEDED_FOR)
    opener: Any = require("stillhouse.models.onnx_student", EXTRA, NEEDED_FOR)
    loaded = way.load(str(student), device="cpu")
    reads = way.reader(loaded)
    inputs = tuple(one for one in INPUTS if one in reads.takes)
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            str(student),
            "its tokenizer has no tokenizer.json form, and ONNX students are read by that alone",
            action="save the student with a fast tokenizer",
        )
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / opener.TOKENIZER).write_text(_plain(backend.to_str()), encoding="utf-8")
    path = out / opener.MODEL
    loaded.model.set_attn_implementation("eager")  # products that fusions and INT8 know
    try:
        with quiet_export():
            _trace(loaded.model, inputs, way.axes, path)
            _fuse(loaded.model.config, path)
    except Exception as error:  # the exporter lets any error of a model's own code through
        raise UserError(
            str(student),
            f"an architecture {loaded.model.config.model_type} cannot be exported to ONNX: "
            f"{type(error).__name__}: {error}",
            action=ACTION,
        ) from None
    spec = opener.OnnxSpec(
        labels=reads.classes,
        inputs=_inputs(path, inputs),
        max_tokens=min(reads.longest, MOST_TOKENS),
        pad_id=loaded.tokenizer.pad_token_id or 0,
        padding_side=loaded.tokenizer.padding_side,
        truncation_side=loaded.tokenizer.truncation_side,
        parameters=loaded.parameters,
        name=loaded.name,
        **way.more(reads),
    )
    write_json(out / opener.SPEC, spec.model_dump(mode="json", exclude_none=True))
    reader = way.opened(out)
    worst = _difference(way, loaded, reads, reader, texts)
    if not worst <= TOLERANCE:
        raise UserError(
            str(student),
            f"an architecture {loaded.model.config.model_type} comes out of the export changed: "
            f"log-probabilities differ by {worst:.3g} nats",
            action=ACTION,
        )
    return FloatGraph(loaded, reader, worst)


def finish(
    student: Path, out: Path, task: Task, *, precision: str, name: str, settings: dict[str, Any]
) -> Artefact:
    """Write `artefact.json` over what lies in `out`."""
    modules = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers")
    versions = {one: str(require(one, EXTRA, NEEDED_FOR).__version__) for one in modules}
    return write_artefact(
        out,
        kind="onnx",
        precision=precision,
        head=way_of(task).head,
        made_from=MadeFrom(student=student_sha(student), name=name, versions=versions),
        task=task,
        settings=settings,
    )


MOST_TOKENS: Final = 1 << 20  # for a tokenizer and model that set no limit


class _Logits(nn.Module):
    """The model as a function of its inputs by position."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, tuple(inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """[B, T] each to [B, C], or to [B, T, C]."""
        logits: Tensor = self.model(**dict(zip(self.inputs, tensors, strict=True))).logits
        return logits.float()


@torch.inference_mode(False)
def _trace(model: Any, inputs: Sequence[str], axes: Mapping[int, str], path: Path) -> None:
    ids, mask = _tokens(model.config, 2, 6)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    with torch.no_grad():
        torch.onnx.export(
            _Logits(model, inputs).eval(),
            tuple(given[name] for name in inputs),
            str(path),
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in inputs}
            | {"logits": dict(axes)},
            opset_version=OPSET,
            dynamo=False,
        )


def _inputs(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Those that the graph takes: the exporter leaves out what no answer depends on."""
    onnx: Any = require("onnx", EXTRA, NEEDED_FOR)
    taken = {one.name for one in onnx.load(str(path), load_external_data=False).graph.input}
    return tuple(one for one in names if one in taken)


def _fuse(config: Any, path: Path) -> None:
    """onnxruntime's fusions for transformers: normalisations, GELU with its bias, attention.

    The attention's are found by their fused normalisations, which are parted again afterwards.
    Embeddings are left apart, so that `onnx_int8` can give each row its own scale.
    """
    optimizer: Any = require("onnxruntime.transformers.optimizer", EXTRA, NEEDED_FOR)
    fusion: Any = require("onnxruntime.transformers.fusion_options", EXTRA, NEEDED_FOR)
    options = fusion.FusionOptions("bert")
    options.enable_embed_layer_norm = False
    fused = optimizer.optimize_model(
        str(path),
        model_type="bert",
        num_heads=int(config.num_attention_heads),
        hidden_size=int(config.hidden_size),
        optimization_options=options,
        opt_level=0,
        use_gpu=False,
    )
    fused.save_model_to_file(str(path))
    part_normalisations(path)


def _difference(
    way: Way, loaded: Loaded, torch_reader: TorchReader, reader: Any, texts: Sequence[str]
) -> float:
    """Largest |log p (torch) - log p (onnxruntime)| over shapes of random tokens and over texts.

    What a token classifier says of padding is not compared: nobody reads it.
    """
    inputs = reader.spec.inputs
    longest = min(torch_reader.longest, 512)
    worst = 0.0
    for batch, length in SHAPES:
        ids, mask = _tokens(loaded.model.config, batch, length or longest)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        given = {name: given[name] for name in inputs}
        with torch.inference_mode():
            expected = loaded.model(**given).logits.float().log_softmax(-1).numpy()
        found = reader.log_p({name: tensor.numpy() for name, tensor in given.items()})
        if expected.shape != found.shape:
            return float("inf")
        if expected.ndim == 3:
            real = mask.numpy() == 1
            expected, found = expected[real], found[real]
        worst = max(worst, _apart(expected, found))
    some = [text for text in texts[:CHECKED_TEXTS] if text]
    for at in range(0, len(some), 8):
        batch_of = some[at : at + 8]
        theirs, ours = way.found(torch_reader.read(batch_of)), way.found(reader.read(batch_of))
        if theirs.tokens != ours.tokens:
            return float("inf")  # the tokenizer reads otherwise
        worst = max(worst, _apart(theirs.log_p, ours.log_p))
    return worst


def _apart(expected: Any, found: Any) -> float:
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max(initial=0.0))


def _tokens(config: Any, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Random ids and a mask whose second row is padded by half."""
    draw = torch.Generator().manual_seed(batch * 1000 + length)
    pad = int(config.pad_token_id or 0)
    ids = torch.randint(0, int(config.vocab_size), (batch, length), generator=draw)
    ids[ids == pad] = (pad + 1) % int(config.vocab_size)
    mask = torch.ones_like(ids)
    if batch > 1 and length > 1:
        ids[1, length // 2 :], mask[1, length // 2 :] = pad, 0
    return ids, mask


def _plain(spec: str) -> str:
    """A tokenizer without its own padding and cutting: the reader sets both from student.json."""
    tokenizers: Any = require("tokenizers", EXTRA, NEEDED_FOR)
    copied = tokenizers.Tokenizer.from_str(spec)
    copied.no_padding()
    copied.no_truncation()
    text: str = copied.to_str()
    return text


@contextmanager
def quiet_export() -> Iterator[None]:
    """Exporter and optimiser tell of each operator that they keep; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
