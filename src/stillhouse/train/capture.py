"""The capture stage: what the teacher believed of the accepted answers, once, on disk.

A local teacher reads them in a pass of its own (the ask stage writes many answers that are not
kept, one token at a time; one parallel pass over the kept ones costs a fraction of that). Class
beliefs and an API's logprobs came with the answers: no teacher runs. Knows the recipe and the
dataset's files; what training does with the cache is `cached_teacher`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch

from stillhouse.core.errors import DataError, UserError
from stillhouse.core.jsonl import read_records
from stillhouse.core.progress import Progress, Ticker
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_signals import CaptureSection
from stillhouse.core.records import Completion, Example
from stillhouse.core.rights import require_may_train
from stillhouse.core.runfolder import Outcome
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.head import head_of
from stillhouse.models.loading import Loaded, load_causal_lm, pick_device
from stillhouse.models.signal_codec import Arrays
from stillhouse.models.signal_layout import (
    CacheKey,
    CacheManifest,
    Layout,
    Number,
    read_cache_manifest,
)
from stillhouse.models.signal_writer import Named, SignalWriter
from stillhouse.train.batches import Rows, encode_chats
from stillhouse.train.cached_teacher import HELD_OUT, TRAIN
from stillhouse.train.capture_live import LiveBeliefs
from stillhouse.train.capture_stored import ClassBeliefs, LogprobBeliefs, TokenNames
from stillhouse.train.objectives import check_beliefs, check_one_tokenizer
from stillhouse.train.planning import check_recipe
from stillhouse.train.planning_signals import capture_format, reads_logprobs
from stillhouse.train.schedule import uses_bf16
from stillhouse.train.signal_keys import (
    answering_revisions,
    check_unique,
    class_names,
    cutting_of,
    token_names,
)
from stillhouse.train.students import Reads, reads_plain, student_reads, student_source

COMPLETIONS: Final = "completions.jsonl"


class Beliefs(Protocol):
    """Gives the stored arrays of examples."""

    def arrays(self, numbers: Sequence[int], ticker: Ticker) -> list[Arrays]:
        """Of some examples, in their order."""


class Material(NamedTuple):
    """The examples of both sets, and the same as the student reads them."""

    examples: Mapping[str, Sequence[Example]]
    rows: Mapping[str, Rows]
    reads: Reads

    @property
    def everything(self) -> list[Example]:
        """All examples."""
        return [example for examples in self.examples.values() for example in examples]


class Part(NamedTuple):
    """One set of examples to capture, and how."""

    name: str
    named: Sequence[Named]
    layout: Layout
    beliefs: Beliefs


def run_capture(
    recipe: Recipe,
    dataset_dir: Path,
    ask_dir: Path,
    work: Path,
    progress: Progress,
    *,
    tuned: Path | None = None,
) -> Outcome:
    """Write `train/` and `held_out/`, each a signal cache.

    Args:
        recipe: its `capture` section, and what the student reads with.
        dataset_dir: holds `train.jsonl` and `held_out.jsonl`.
        ask_dir: holds the answers, with their logprobs.
        work: gets the caches; shards that a killed try finished are kept.
        progress: bars.
        tuned: folder of the tuned teacher, if it was tuned.

    Raises:
        UserError: student and teacher do not fit each other, or the answers hold no signals.
    """
    require_may_train(recipe.teacher)
    check_recipe(recipe)
    sets = {name: read_examples(dataset_dir / f"{name}.jsonl") for name in (TRAIN, HELD_OUT)}
    check_unique([example for examples in sets.values() for example in examples], dataset_dir)
    section = recipe.capture or CaptureSection()
    if recipe.student.head == "label":
        key, parts = _of_classes(recipe, section, sets)
    elif reads_logprobs(recipe):
        key, parts = _of_logprobs(recipe, section, material_of(recipe, sets, tuned), ask_dir)
    else:
        key, parts = of_teacher(recipe, section, material_of(recipe, sets, tuned), tuned)
    manifests = {
        part.name: _write(work / part.name, key, part, section, progress) for part in parts
    }
    train, held_out = manifests[TRAIN], manifests[HELD_OUT]
    unaligned = sum(sum(manifest.unaligned.values()) for manifest in manifests.values())
    return Outcome(
        summary={
            "format": train.layout.format,
            "rows": train.rows,
            "held_out_rows": held_out.rows,
            "bytes_per_row": round(train.bytes_per_row, 2),
            "size_bytes": train.size_bytes + held_out.size_bytes,
            "hard_rows": train.hard_rows + held_out.hard_rows,
            "unaligned": unaligned,
        }
    )


def _write(
    folder: Path, key: CacheKey, part: Part, section: CaptureSection, progress: Progress
) -> CacheManifest:
    """Write the shards of one set that are not there yet, and the manifest."""
    writer = SignalWriter(folder, key, part.layout, part.named, section.shard_mb * 1e6)
    if writer.finished:  # killed between the two sets; the stage's own key covers the rest
        return read_cache_manifest(folder)
    total = sum(one.rows for one in part.named)
    with progress.bar(f"capture {part.name}", total, "rows") as ticker:
        for number, members in enumerate(writer.shards):
            done = writer.shard(number)
            if done is not None:
                ticker.advance(done.rows)
                continue
            numbers = range(members.start, members.stop)
            writer.write(number, part.beliefs.arrays(numbers, ticker))
    if isinstance(part.beliefs, LogprobBeliefs):
        return writer.finish(part.beliefs.hard_rows, dict(part.beliefs.unaligned))
    return writer.finish()


def material_of(
    recipe: Recipe, sets: Mapping[str, Sequence[Example]], tuned: Path | None
) -> Material:
    """Text examples as their student reads them, without its weights."""
    source = student_source(recipe, None if tuned is None else str(tuned))
    reads = student_reads(recipe.student, source, plain=reads_plain(recipe))
    rows = {n: encode_chats(e, reads.tokenizer, reads.max_tokens).rows for n, e in sets.items()}
    return Material(sets, rows, reads)


def _of_classes(
    recipe: Recipe, section: CaptureSection, sets: Mapping[str, Sequence[Example]]
) -> tuple[CacheKey, list[Part]]:
    everything = [example for examples in sets.values() for example in examples]
    task = recipe.task
    assert isinstance(task, ClassificationTask), "recipes pair head label with labels"
    check_beliefs(everything, 1.0)
    dtype = "float32" if section.dtype == "auto" else section.dtype
    layout = Layout(format="dense", width=len(task.labels), dtype=dtype)
    key = CacheKey(
        teacher=recipe.teacher.model,
        teacher_revision=answering_revisions(everything),
        read_from="answers",
    )
    return key, [
        Part(name, class_names(examples, task), layout, ClassBeliefs(examples, layout))
        for name, examples in sets.items()
    ]


def _of_logprobs(
    recipe: Recipe, section: CaptureSection, material: Material, ask_dir: Path
) -> tuple[CacheKey, list[Part]]:
    reads = material.reads
    answers: dict[str, list[Completion]] = {}
    for completion in read_records(ask_dir / COMPLETIONS, Completion):
        answers.setdefault(completion.query_id, []).append(completion)
    names = TokenNames(reads.tokenizer)
    dtype = "float16" if section.dtype == "auto" else section.dtype
    # The chosen token may not be among the listed alternatives.
    k = min(section.k, recipe.teacher.token_logprobs + 1, reads.vocabulary)
    layout = Layout(format="top_k", width=reads.vocabulary, dtype=dtype, k=k)
    found = {
        name: LogprobBeliefs(examples, material.rows[name], answers, names, layout)
        for name, examples in material.examples.items()
    }
    _check_aligned([beliefs.unaligned for beliefs in found.values()], material, section)
    parts = [
        Part(name, token_names(material.examples[name], beliefs.rows.items), layout, beliefs)
        for name, beliefs in found.items()
    ]
    return CacheKey(
        teacher=recipe.teacher.model,
        teacher_revision=answering_revisions(material.everything),
        read_from="logprobs",
        **cutting_of(reads.tokenizer, reads.max_tokens)._asdict(),
    ), parts


def _check_aligned(
    unaligned: Sequence[Counter[str]], material: Material, section: CaptureSection
) -> None:
    reasons = sum(unaligned, Counter[str]())
    total = len(material.everything)
    if reasons.total() > section.most_unaligned * total:
        raise UserError(
            "capture.most_unaligned",
            f"the stored logprobs of {reasons.total():,} of {total:,} answers are not over the "
            f"student's tokens ({', '.join(f'{n:,} {why}' for why, n in reasons.most_common())})",
            value=section.most_unaligned,
            action="take a student of the teacher's tokenizer, or allow more hard labels",
        )


def of_teacher(
    recipe: Recipe, section: CaptureSection, material: Material, tuned: Path | None
) -> tuple[CacheKey, list[Part]]:
    """Load the teacher, and say what is to be captured of it."""
    reads = material.reads
    device = pick_device(recipe.train.device)
    bf16 = uses_bf16(recipe.train.precision, device)
    loaded = load_causal_lm(
        recipe.teacher.model if tuned is None else str(tuned),
        device=str(device),
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    check_one_tokenizer(reads.tokenizer, loaded.tokenizer)
    key = CacheKey(
        teacher=recipe.teacher.model,
        teacher_revision=loaded.revision,
        read_from="teacher",
        precision="bf16" if bf16 else "fp32",
        **cutting_of(reads.tokenizer, reads.max_tokens)._asdict(),
    )
    parts = []
    for name, examples in material.examples.items():
        rows = material.rows[name]
        named = token_names(examples, rows.items)
        layout = live_layout(recipe, section, loaded, reads, held_out=name == HELD_OUT)
        beliefs = LiveBeliefs(
            loaded.model,
            rows,
            named,
            layout,
            int(reads.tokenizer.pad_token_id or 0),
            recipe.teacher.batch_size,
            recipe.seed,
        )
        parts.append(Part(name, named, layout, beliefs))
    return key, parts


def live_layout(
    recipe: Recipe, section: CaptureSection, loaded: Loaded, reads: Reads, *, held_out: bool
) -> Layout:
    """How a local teacher's signals are stored. The held-out set is measured at T = 1, whatever T
    the student is trained at, and with more draws, since it is small and its noise is shown.

    Raises:
        UserError: hidden states of a teacher whose head is more than one linear layer.
    """
    chosen = capture_format(recipe)
    assert chosen != "auto"
    head = head_of(loaded.model)
    if section.format == "auto" and chosen == "hidden" and head is None:
        chosen = "top_k"
    if chosen == "hidden" and head is None:
        raise UserError(
            "capture.format",
            f"the head of {loaded.name} is more than one linear layer",
            value="hidden",
            action="use format: sampled or top_k",
        )
    # Heads of one tokenizer may be padded to unequal widths: the ids that both have are kept.
    width = min(int(loaded.model.config.vocab_size), reads.vocabulary)
    dtype: Number = "float16"
    if section.dtype != "auto":
        dtype = section.dtype
    elif chosen == "hidden":
        dtype = "bfloat16" if loaded.model.dtype == torch.bfloat16 else "float32"
    if chosen == "hidden":
        assert head is not None
        return Layout(format=chosen, width=int(head.weight.shape[1]), dtype=dtype)
    if chosen == "top_k":
        return Layout(format=chosen, width=width, dtype=dtype, k=min(section.k, width))
    if chosen == "dense":
        return Layout(format=chosen, width=width, dtype=dtype)
    temperature = section.distillation_temperature or recipe.train.distillation_temperature
    return Layout(
        format=chosen,
        width=width,
        dtype=dtype,
        samples=section.held_out_samples if held_out else section.samples,
        draws=section.draws,
        proposal_temperature=section.proposal_temperature,
        distillation_temperature=1.0 if held_out else temperature,
    )


def read_examples(path: Path) -> list[Example]:
    """A set of the dataset.

    Raises:
        DataError: it is empty.
    """
    found = list(read_records(path, Example))
    if not found:
        raise DataError(str(path), "holds no examples", action="run the dataset stage again")
    return found
