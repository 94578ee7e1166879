"""The two models of a corpus recipe: a teacher with its language head, and the student.

A teacher whose files hold no head gets a new one, which `teacher.adapt` has to train. A student is
cut from the teacher (layers, or to a size), loaded, or made from a configuration with first weights
drawn from the seed; it keeps the teacher's tokenizer, or some pieces of it. Knows sources and
shapes; knows no objective and no trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stillhouse.core.errors import UserError
from stillhouse.core.recipe_corpus import FROM_SCRATCH, CorpusRecipe
from stillhouse.core.recipe_cut import share_of
from stillhouse.core.recipe_features import LayeredTerm
from stillhouse.models.loading import count_parameters, locate
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.cut_plan import CutPlan, Rows, plan_cut
from stillhouse.train.cut_shapes import Form
from stillhouse.train.cut_student import cut_model
from stillhouse.train.embeddings import keep_rows
from stillhouse.train.features_layers import layer_pairs
from stillhouse.train.kept import PROBE, restrict
from stillhouse.train.layers import cut_layers, depth
from stillhouse.train.objectives import check_one_tokenizer
from stillhouse.train.vocabulary import Trimmed, trim_tokenizer

HEADLESS = ("pooler.",)  # belongs to no language head


class Read(NamedTuple):
    """A model with its tokenizer; `fresh` names what its files lacked and was drawn."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    fresh: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """How the student came out of its source; part of the report."""

    source: str
    revision: str
    architecture: str
    layers_before: int
    layers: int
    layers_kept: tuple[int, ...] | None
    parameters_before: int  # the teacher's
    parameters: int
    vocabulary_before: int
    vocabulary: int
    cut: dict[str, object] | None = None  # the plan of a student of a given size
    said: tuple[str, ...] = ()  # the same, for people

    def as_json(self) -> dict[str, object]:
        """A plain object."""
        kept = None if self.layers_kept is None else list(self.layers_kept)
        return asdict(self) | {"layers_kept": kept, "said": list(self.said)}


def auto_class(kind: str) -> Any:
    """transformers' loader of a kind of model."""
    return AutoModelForMaskedLM if kind == "masked_lm" else AutoModelForCausalLM


def read_model(source: str, kind: str, seed: int, *, headless: bool = False) -> Read:
    """Load a language model in float32; a head that is not there is drawn from `seed`.

    Raises:
        UserError: nothing usable is there, or the head is not and `headless` is false.
    """
    located = locate(source)
    folder = str(located.folder)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        try:
            model, report = auto_class(kind).from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (ValueError, KeyError, OSError) as error:
            raise UserError(source, f"cannot be loaded as a {kind}: {error}") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    body = {name for name, _ in model.base_model.named_parameters()}
    prefix = model.base_model_prefix + "."
    missing = {str(key).removeprefix(prefix) for key in report["missing_keys"]}
    lost = sorted(n for n in missing & body if not n.startswith(HEADLESS))
    fresh = tuple(sorted(n for n in missing - body if not n.startswith(HEADLESS)))
    if lost:
        raise UserError(
            source, f"does not hold the weights of a {type(model).__name__}", value=lost[0]
        )
    if fresh and not headless:
        raise UserError(
            source,
            f"has no language head of its own (its files lack {fresh[0]})",
            action="add teacher.adapt: {} to train one on the corpus first",
        )
    return Read(model, tokenizer, located.revision, fresh)


class CorpusShapes(NamedTuple):
    """What a recipe's models are, known from configurations; `cut` is of a student of a size."""

    teacher_parameters: int
    parameters: int
    layers: int
    vocabulary_before: int
    vocabulary: int
    tokenizer: PreTrainedTokenizerBase  # the student's
    most_tokens: int  # that the teacher can read; 0: no limit is known
    cut: CutPlan | None


class CorpusStudent(NamedTuple):
    """A student, not yet trained, on the CPU in float32.

    `kept` are the teacher's ids of its pieces, in its own order; `None`: it has all of them.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: CorpusPlan
    kept: tuple[int, ...] | None


def build_corpus_student(
    recipe: CorpusRecipe, teacher: Read, texts: Sequence[str]
) -> CorpusStudent:
    """The student that a recipe asks for; equal arguments give equal weights.

    Args:
        recipe: its `student`, `objective.kind` and seed.
        teacher: as it teaches: after `teacher.adapt`. A student that is cut from it shares nothing
            with it.
        texts: of the corpus, to train on: what a student of a size keeps is measured on them, and
            pieces are counted in them.

    Raises:
        UserError: layers, a size, a vocabulary or a configuration that cannot be had, or another
            tokenizer.
    """
    section, kind = recipe.student, recipe.objective.kind
    before = depth(teacher.model)
    kept: tuple[int, ...] | None = None
    cut: CutPlan | None = None
    revision = teacher.revision
    trimmed = trimmed_for(recipe, teacher.tokenizer, texts)
    rows = None if trimmed is None else trimmed.kept
    if section.source == FROM_SCRATCH:
        model = _from_scratch(recipe, teacher, rows)
    else:
        if section.source == "teacher":
            model = _copy(teacher.model)
        else:
            found = read_model(section.source, kind, recipe.seed)
            check_one_tokenizer(found.tokenizer, teacher.tokenizer)
            model, revision = found.model, found.revision
        before = depth(model)
        kept = tuple(range(before))
        if section.size is not None:
            cut = _plan(recipe, model.config, rows)
            samples = section.cut.samples
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                made = cut_model(model, teacher.tokenizer, cut, _form(kind), texts, samples=samples)
            model, kept = made.model, made.layers_kept
        elif section.layers is not None:
            kept = cut_layers(model, section.layers)
        if rows is not None:
            restrict(model, torch.tensor(rows), range(min(len(rows), PROBE)), section.source)
    tokenizer = teacher.tokenizer if trimmed is None else trimmed.tokenizer
    model.config.pad_token_id = tokenizer.pad_token_id
    return CorpusStudent(
        model,
        tokenizer,
        CorpusPlan(
            source=section.source,
            revision=revision,
            architecture=type(model).__name__,
            layers_before=before,
            layers=depth(model),
            layers_kept=kept,
            parameters_before=count_parameters(teacher.model),
            parameters=count_parameters(model),
            vocabulary_before=int(teacher.model.config.vocab_size),
            vocabulary=int(model.config.vocab_size),
            cut=None if cut is None else cut.as_json(),
            said=() if cut is None else tuple(cut.lines()),
        ),
        rows,
    )


def trimmed_for(
    recipe: CorpusRecipe, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Trimmed | None:
    """The part of the teacher's tokenizer that `student.vocabulary` asks for; `None`: all of it.

    Raises:
        UserError: fewer pieces than anything is spelt with, or a tokenizer of a kind that cannot be
            trimmed.
    """
    wanted = recipe.student.vocabulary
    if wanted == "full":
        return None
    return trim_tokenizer(tokenizer, texts, wanted if isinstance(wanted, int) else None)


def _form(kind: str) -> Form:
    return "masked" if kind == "masked_lm" else "text"


def _plan(recipe: CorpusRecipe, config: Any, rows: Sequence[int] | None) -> CutPlan:
    """How a source of this configuration is cut to the recipe's size; `rows` of it stay."""
    section = recipe.student
    assert section.size is not None
    return plan_cut(
        config,
        share_of(section.size),
        form=_form(recipe.objective.kind),
        rows=None if rows is None else Rows(len(rows)),
        layers=section.layers,
        cut=section.cut,
        trims="corpus",
    )


def check_corpus_student(recipe: CorpusRecipe, texts: Sequence[str]) -> CorpusShapes:
    """Refuse, before any weights are read, a student that could not be built or compared.

    Args:
        recipe: the recipe.
        texts: of the corpus, to train on.

    Returns:
        Both models' shapes, and how a student of a size will be cut.

    Raises:
        UserError: no such teacher, layers, a size, a vocabulary or a configuration that cannot be
            had, layers of a term that are not there, or a tokenizer that cannot hide tokens.
    """
    cut: CutPlan | None = None
    section, kind = recipe.student, recipe.objective.kind
    folder = str(locate(recipe.teacher.model).folder)
    with quiet_transformers(), torch.device("meta"):  # shapes only
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
        trimmed = trimmed_for(recipe, tokenizer, texts)
        rows = None if trimmed is None else trimmed.kept
        whole = int(config.vocab_size)
        try:
            teacher = auto_class(kind).from_config(config)
        except ValueError as error:
            raise UserError("teacher.model", f"is no {kind}: {error}") from None
        depths = depth(teacher)
        if section.source == FROM_SCRATCH:
            student = _from_scratch(recipe, Read(teacher, tokenizer, "", ()), rows)
        elif section.source == "teacher":
            student = auto_class(kind).from_config(config)
        else:
            own = str(locate(section.source).folder)
            student = auto_class(kind).from_config(
                AutoConfig.from_pretrained(own, local_files_only=True)
            )
        if section.size is not None:
            cut = _plan(recipe, student.config, rows)
        elif section.layers is not None:
            cut_layers(student, section.layers)
        if rows is not None and section.source != FROM_SCRATCH:
            keep_rows(student, rows)
    layers = depth(student) if cut is None else cut.after.layers
    if kind == "masked_lm" and tokenizer.mask_token_id is None:
        raise UserError("teacher.model", "has a tokenizer without a mask token")
    for number, term in enumerate(recipe.objective.terms):
        if isinstance(term, LayeredTerm):
            field = f"objective.terms.{number}"
            layer_pairs(term.layers, term.count, layers, depths, field=field)
    return CorpusShapes(
        teacher_parameters=count_parameters(teacher),
        parameters=count_parameters(student) if cut is None else cut.parameters,
        layers=layers,
        vocabulary_before=whole,
        vocabulary=whole if rows is None else len(rows),
        tokenizer=tokenizer if trimmed is None else trimmed.tokenizer,
        most_tokens=int(getattr(config, "max_position_embeddings", 0)),
        cut=cut,
    )


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.random.fork_rng(devices=[]):
        copied: PreTrainedModel = type(model)(config)
    copied.load_state_dict(model.state_dict())
    copied.tie_weights()
    return copied


def _from_scratch(
    recipe: CorpusRecipe, teacher: Read, rows: Sequence[int] | None
) -> PreTrainedModel:
    wanted = dict(recipe.student.config or {})
    family = wanted.pop("model_type", None)
    base: dict[str, Any] = teacher.model.config.to_dict()
    ids = {name: value for name, value in base.items() if name.endswith("_token_id")}
    if family is not None and family != base["model_type"]:
        base = {**ids, "vocab_size": base["vocab_size"]}
    elif "layer_types" in base and "num_hidden_layers" in wanted and "layer_types" not in wanted:
        base.pop("layer_types")
    kind = str(family or base.get("model_type") or teacher.model.config.model_type)
    given = {**base, **wanted, "vocab_size": teacher.model.config.vocab_size}
    if rows is not None:
        new = {old: number for number, old in enumerate(rows)}
        given |= {name: new.get(value) for name, value in ids.items() if isinstance(value, int)}
        given["vocab_size"] = len(rows)
    for name in ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version"):
        given.pop(name, None)
    auto: Any = AutoConfig
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed(recipe.seed)
            known = auto.for_model(kind)
            named = {*known.to_dict(), *known.attribute_map}
            unknown = [name for name in wanted if name not in named]
            if unknown:
                raise UserError(f"student.config.{unknown[0]}", f"is no setting of a {kind} model")
            config = auto.for_model(kind, **given)
            model: PreTrainedModel = auto_class(recipe.objective.kind).from_config(config)
    except UserError:
        raise
    except Exception as error:  # a configuration's own checks raise whatever they like
        raise UserError("student.config", f"makes no {kind} model: {error}") from None
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain transformers folder."""
    with quiet_transformers():
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
