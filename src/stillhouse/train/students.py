"""Build the student that a recipe asks for: load, cut layers, trim vocabulary and positions.

A student is a plain transformers model with a plain tokenizer: whatever was cut, its folder loads
with `AutoModelForSequenceClassification` (head `label`), `AutoModelForTokenClassification` (`tags`)
or `AutoModelForCausalLM` (`text`) and `AutoTokenizer`. Knows sources, shapes and seeds; knows no
objective and no trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stillhouse.core.errors import UserError
from stillhouse.core.heads import Head
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_train import SCRATCH, StudentSection
from stillhouse.core.records import Message
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.core.words import WORDS
from stillhouse.models.chat import answer_text, prompt_text
from stillhouse.models.loading import count_parameters, locate
from stillhouse.models.quiet import quiet_transformers
from stillhouse.models.tag_student import TAG_WORDS
from stillhouse.train.batches import Chat
from stillhouse.train.cut_plan import CutPlan
from stillhouse.train.cut_student import layers_of_count, sized
from stillhouse.train.embeddings import keep_positions, keep_rows
from stillhouse.train.heads import WAYS, classes_of
from stillhouse.train.layers import cut_layers, depth
from stillhouse.train.text_sample import evenly_drawn
from stillhouse.train.vocabulary import Trimmed, trim_tokenizer

CUT_BASE: Final = "base"
OFFSET_POSITIONS: Final = ("roberta", "xlm-roberta", "camembert")


@dataclass(frozen=True, slots=True)
class StudentPlan:
    """How the student came out of its source; part of the report."""

    source: str
    revision: str
    layers_before: int
    layers_kept: tuple[int, ...]
    vocabulary_before: int
    vocabulary: int
    max_tokens: int
    parameters_before: int
    parameters: int
    cut: dict[str, object] | None = None  # the plan of a student of a given size
    said: tuple[str, ...] = ()  # the same, for people

    @property
    def trimmed(self) -> bool:
        """Whether pieces of the source's vocabulary are gone."""
        return self.vocabulary < self.vocabulary_before

    def as_json(self) -> dict[str, object]:
        """A plain object."""
        lists = {"layers_kept": list(self.layers_kept), "said": list(self.said)}
        return asdict(self) | lists


class Student(NamedTuple):
    """A student, not yet trained, on the CPU in float32."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Head
    plan: StudentPlan


def student_source(recipe: Recipe, tuned: str | None) -> str:
    """Where the student's weights come from, as `models.loading` reads sources.

    Args:
        recipe: its `student.from`, and its teacher where that says `teacher`.
        tuned: folder of the tuned teacher, if it was tuned.
    """
    if recipe.student.source != "teacher":
        return recipe.student.source
    return tuned or teacher_source(recipe)


def adapter_base(section: StudentSection) -> str:
    """What an adapter's config names as its base: a hub id or folder that is used as it stands.

    For all others, `base`: the student as it was cut, written beside the adapter.
    """
    kind, _, name = section.source.partition(":")
    plain = kind == "hf" and section.as_it_stands and section.head == "text"
    return name if plain else CUT_BASE


def reads_plain(recipe: Recipe) -> bool:
    """Whether the student is cut from a teacher that is asked without its chat template."""
    return recipe.student.source == "teacher" and not recipe.teacher.chat_template


def teacher_source(recipe: Recipe) -> str:
    """The recipe's teacher, as `models.loading` reads sources."""
    return recipe.teacher.model


class Reads(NamedTuple):
    """How a student cuts its input, known without its weights."""

    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    vocabulary: int  # rows of its head


def student_reads(section: StudentSection, source: str, *, plain: bool = False) -> Reads:
    """What `build_student` would read with, its vocabulary being whole.

    Raises:
        UserError: a source that cannot be used.
    """
    folder = str(locate(source).folder)
    with quiet_transformers():
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    if plain:
        tokenizer.chat_template = None
    most = most_tokens(config, section.max_tokens)
    return Reads(tokenizer, min(section.max_tokens, most), int(config.vocab_size))


def build_student(
    section: StudentSection,
    task: Task,
    source: str,
    texts: Sequence[str],
    seed: int,
    *,
    plain: bool = False,
    chats: Sequence[Chat] = (),
) -> Student:
    """Build a student.

    Args:
        section: the recipe's `student`.
        task: gives the classes of a `label` or `tags` head, in order.
        source: see `student_source`.
        texts: what the student will read (head `text`: and write); the vocabulary is trimmed to it.
        seed: decides all weights that the source does not have (a new head).
        plain: leave the chat template out, as its teacher was asked without.
        chats: head `text`: what it will read and write, together; what its parts are worth is
            measured on these, and without them on `texts`.

    Raises:
        UserError: a source, layer or vocabulary that cannot be used.
    """
    located = locate(source)
    folder = str(located.folder)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        model = _load(section.head, task, folder, source, keep_head=section.keep_head)
    if plain:
        tokenizer.chat_template = None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    layers, parameters = depth(model), count_parameters(model)
    classes = len(classes_of(section.head, task))
    vocabulary = int(model.config.vocab_size)
    kept = tuple(range(layers))
    max_tokens = min(section.max_tokens, most_tokens(model.config, section.max_tokens))
    trim = None if section.vocabulary == "full" else _trimmer(section, task, tokenizer, texts)
    measured = [
        prompt_text(tokenizer, chat.prompt) + answer_text(tokenizer, chat.completion)
        for chat in evenly_drawn(chats, section.cut.samples)
    ] or texts
    cut: CutPlan | None = None
    if section.size is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, tokenizer, cut, kept = sized(
                model,
                tokenizer,
                section,
                classes,
                measured,
                trim=trim,
                fresh=source.startswith(SCRATCH),
            )
            if classes:
                _draw_head(model)
        parameters = cut.source_parameters
    else:
        if section.layers is not None:
            kept = cut_layers(model, layers_of_count(model, tokenizer, section, classes, measured))
        if trim is not None:
            limit = section.vocabulary if isinstance(section.vocabulary, int) else None
            tokenizer, rows = trim(limit)
            keep_rows(model, rows)
    keep_positions(model, max_tokens)
    tokenizer.model_max_length = max_tokens
    return Student(
        model,
        tokenizer,
        section.head,
        StudentPlan(
            source=section.source,
            revision=located.revision,
            layers_before=layers,
            layers_kept=kept,
            vocabulary_before=vocabulary,
            vocabulary=int(model.config.vocab_size),
            max_tokens=max_tokens,
            parameters_before=parameters,
            parameters=count_parameters(model),
            cut=None if cut is None else cut.as_json(),
            said=() if cut is None else tuple(cut.lines()),
        ),
    )


def most_tokens(config: Any, otherwise: int) -> int:
    """The longest input that a model's positions allow; RoBERTa's begin behind its padding id."""
    most = int(getattr(config, "max_position_embeddings", otherwise))
    if config.model_type in OFFSET_POSITIONS:
        most -= int(config.pad_token_id) + 1
    return most


def _trimmer(
    section: StudentSection, task: Task, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Callable[[int | None], Trimmed]:
    """Trims to so many rows, or to those of the task."""
    labels: tuple[str, ...] = ()
    if section.head == "text":  # what the chat template writes between the texts is read too
        turns = (Message(role="system", content="-"), Message(role="user", content="-"))
        frames = [prompt_text(tokenizer, turns), prompt_text(tokenizer, turns[1:])]
        following = [answer_text(tokenizer, text) for text in texts]  # without a template: a space
        texts = [*texts, *following, *frames * max(1, len(texts) // 2)]
        labels = task.labels if isinstance(task, ClassificationTask) else ()
    most = min(section.max_tokens, tokenizer.model_max_length)
    return lambda limit: trim_tokenizer(tokenizer, texts, limit, most, labels)


def _load(
    head: Head, task: Task, folder: str, source: str, *, keep_head: bool = False
) -> PreTrainedModel:
    plain: dict[str, Any] = {
        "dtype": torch.float32,
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    auto, classes = WAYS[head].auto, classes_of(head, task)
    if classes:
        plain |= {
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {name: number for number, name in enumerate(classes)},
            "ignore_mismatched_sizes": True,
        }
    if head == "label":
        plain["problem_type"] = "single_label_classification"
    model: PreTrainedModel
    if source.startswith(SCRATCH):
        return _random(auto, folder, source, plain)
    try:
        model, report = auto.from_pretrained(folder, **plain)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(
            source,
            f"cannot be loaded as a student with head {head}: {error}",
            action="check the folder and student.head",
        ) from None
    body = {name for name, _ in model.base_model.named_parameters()}
    prefix = model.base_model_prefix + "."
    missing = {str(key).removeprefix(prefix) for key in report["missing_keys"]}
    lost = sorted(n for n in missing & body if not n.startswith("pooler."))
    if lost or (head == "text" and missing):
        raise UserError(
            source,
            f"does not hold the weights of a {type(model).__name__}",
            value=(lost or sorted(missing))[0],
            action="give a model of the right kind, or check student.head",
        )
    if classes and keep_head:
        _check_head(folder, source, classes, missing)
    elif classes:
        _draw_head(model)
    return model


def _check_head(folder: str, source: str, classes: tuple[str, ...], missing: set[str]) -> None:
    """Refuse to keep a head that is not of these classes in this order.

    Raises:
        UserError: names the classes that it has.
    """
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    held = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    if missing or held != classes:
        raise UserError(
            "student.keep_head",
            f"{source} is no classifier of {list(classes)}",
            value=list(held),
            action="leave student.keep_head out, or give a student of this task",
        )


def _random(auto: Any, folder: str, source: str, plain: dict[str, Any]) -> PreTrainedModel:
    """The model of a config, with weights drawn from torch's seed."""
    kept = {name: plain[name] for name in ("num_labels", "id2label", "label2id") if name in plain}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, **kept)
        model: PreTrainedModel = auto.from_config(config)
    except ValueError as error:
        raise UserError(
            source,
            f"has no shape for this head: {error}",
            action="check the folder and student.head",
        ) from None
    if "problem_type" in plain:
        model.config.problem_type = plain["problem_type"]
    return model


def _draw_head(model: PreTrainedModel) -> None:
    """Initialise what is not the body, also where the source is a classifier: its labels may be
    others, or in another order."""
    body = set(model.base_model.modules())
    spread = float(getattr(model.config, "initializer_range", 0.02))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module not in body:
            nn.init.normal_(module.weight, std=spread)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def save_student(student: Student, folder: str) -> None:
    """Write a plain transformers folder: safetensors, config, tokenizer."""
    if student.head == "tags":
        setattr(student.model.config, TAG_WORDS, WORDS)
    with quiet_transformers():
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
