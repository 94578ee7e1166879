"""The objective of a library run: terms as they were handed over, and what is learned within them.

A term over layers may hold linear maps (`Hidden.maps`, the two of `Contrastive`). They are trained
beside the student, are in its checkpoints as a file of their own, and never in the saved student.
Knows terms and modules; knows no data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from torch import nn

from stillhouse.train.balanced import BalancedObjective, Scheduled
from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.outputs import Reader
from stillhouse.train.parts import Parts
from stillhouse.train.teachers import TeacherSource

MAP_RATE: Final = 1e-3  # as of the maps of a recipe


def objective_of(
    reader: Reader,
    terms: Sequence[Weighted],
    teacher: TeacherSource | None,
    models: Collection[nn.Module],
) -> TermsObjective:
    """The weighted sum of the terms; modules in them that can learn do, at `MAP_RATE`.

    Args:
        reader: of student and teacher.
        terms: with their weights.
        teacher: where beliefs come from.
        models: the student and its teachers, which are no parts of a term.
    """
    parts = Parts()
    for name, module in learned_in(terms, models).items():
        parts.hold(name, module, MAP_RATE)
    if not len(parts.maps):
        return TermsObjective(reader, terms, teacher)
    return BalancedObjective(
        reader=reader,
        terms=terms,
        teacher=teacher,
        scheduled=tuple(Scheduled(weighted.term, weighted.weight) for weighted in terms),
        parts=parts,
        norms_over="all",
    )


def learned_in(terms: Sequence[Weighted], models: Collection[nn.Module]) -> dict[str, nn.Module]:
    """Modules with weights that learn in the attributes of terms, by term and place.

    They are looked for in attributes, and in mappings, lists and tuples that are attributes. One
    that is in two terms is there once; one whose weights are those of `models` is not.
    """
    seen = {id(weight) for model in models for weight in model.parameters()}
    found: dict[str, nn.Module] = {}
    for number, weighted in enumerate(terms):
        for place, module in enumerate(_modules(_attributes(weighted.term))):
            own = {id(weight) for weight in module.parameters() if weight.requires_grad}
            if own and not own & seen:
                found[f"{number}_{place}"] = module
                seen |= own
    return found


def shapes_of(learned: Mapping[str, nn.Module]) -> dict[str, object]:
    """What a run folder writes down of them: nothing where there are none."""
    shapes = {
        f"{name}.{key}": list(value.shape)
        for name, module in learned.items()
        for key, value in module.state_dict().items()
    }
    return {"maps": shapes} if shapes else {}


def _attributes(term: Any) -> Any:
    if isinstance(term, nn.Module):
        return term
    if is_dataclass(term):
        return [getattr(term, field.name) for field in fields(term)]
    return getattr(term, "__dict__", {})


def _modules(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        yield from _modules(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _modules(one)
