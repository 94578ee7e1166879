"""The kinds of models that are distilled, how each is told from its class, and its reader.

Knows transformers' lists of classes; knows no data and no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from stillhouse.train.outputs import Batch, CausalReader, LabelReader, Reader, count
from stillhouse.train.readers import MaskedReader, ModuleReader, Seq2SeqReader

Kind = Literal["classifier", "causal_lm", "masked_lm", "seq2seq", "module"]


class Way(NamedTuple):
    """How a kind of model is read, and how the units of its batches are counted."""

    reader: Reader
    counter: Callable[[Batch], Tensor]


def way_of(kind: Kind) -> Way:
    """The reader of a kind."""
    match kind:
        case "classifier":
            return Way(LabelReader(), count)
        case "causal_lm":
            return Way(CausalReader(), count)
        case "masked_lm":
            masked = MaskedReader()
            return Way(masked, masked.count)
        case "seq2seq":
            writes = Seq2SeqReader()
            return Way(writes, writes.count)
        case "module":
            module = ModuleReader()
            return Way(module, module.count)


def one_target_a_sample(kind: Kind) -> bool:
    """Whether a model of this kind gives one belief for each sample."""
    return kind in ("classifier", "module")


def kind_of(model: Any) -> Kind:
    """What a model is, by its class (under adapters: the class of the base).

    Transformers' own lists decide, in the order of the most particular; a class of the user's own
    counts as what it derives from. All else is `module`.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, PreTrainedModel):
        return "module"
    names = {base.__name__ for base in type(inner).__mro__}
    if names & _WRITES and inner.config.is_encoder_decoder:
        return "seq2seq"
    for kind, known in _KINDS.items():
        if names & known:
            return kind
    return "module"


def _names(mapping: Mapping[str, Any]) -> frozenset[str]:
    found: set[str] = set()
    for value in mapping.values():
        names: Iterable[str] = (value,) if isinstance(value, str) else value
        found |= set(names)
    return frozenset(found)


_WRITES: Final = _names(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
_KINDS: Final[dict[Kind, frozenset[str]]] = {
    "classifier": _names(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "masked_lm": _names(MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "causal_lm": _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
}
