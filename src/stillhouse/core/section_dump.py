"""A recipe's section as plain objects, and whether an older dump of one says the same.

A dump is whole, defaults too: a default that changes is a change. A key that an older dump lacks,
because it did not exist then, changes nothing while it is at its default: a new key's default is
what was done before there was the key. Knows pydantic models; no stage and no recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Dumped(dict[str, Any]):
    """A model as plain objects. `at_default` are the keys whose value is the model's own."""

    def __init__(self, values: Mapping[str, Any], at_default: frozenset[str]) -> None:
        super().__init__(values)
        self.at_default = at_default


def dump_section(
    model: BaseModel, *, without: Mapping[str, Any] | set[str] | None = None
) -> dict[str, Any]:
    """The model as plain objects, by alias, but for what is left out."""
    whole = model.model_dump(mode="json", exclude=without, by_alias=True)
    marked = _marked(model, whole)
    assert isinstance(marked, dict), "a section is dumped as an object"
    return marked


def _marked(value: object, dumped: object) -> object:
    """What was dumped of a value, each model in it knowing which keys are at their default."""
    if isinstance(value, BaseModel) and isinstance(dumped, dict):
        fields = {
            _key(name, field): (getattr(value, name), field)
            for name, field in type(value).model_fields.items()
        }
        return Dumped(
            {k: _marked(fields[k][0], v) if k in fields else v for k, v in dumped.items()},
            frozenset(k for k in dumped if k in fields and _is_default(*fields[k])),
        )
    if isinstance(value, Mapping) and isinstance(dumped, dict):
        return {k: _marked(value.get(k), v) for k, v in dumped.items()}
    if isinstance(value, list | tuple) and isinstance(dumped, list) and len(value) == len(dumped):
        return [_marked(one, as_json) for one, as_json in zip(value, dumped, strict=True)]
    return dumped


def _key(name: str, field: FieldInfo) -> str:
    return field.serialization_alias or field.alias or name


def _is_default(value: object, field: FieldInfo) -> bool:
    if field.is_required():
        return False
    default = field.default if field.default_factory is None else field.default_factory()  # type: ignore[call-arg]
    return bool(value == default)


def says_the_same(old: object, new: object) -> bool:
    """Whether an older dump, read from JSON, is this one but for keys that did not exist then."""
    if isinstance(new, Mapping):
        if not isinstance(old, Mapping) or old.keys() - new.keys():
            return False
        spared = new.at_default if isinstance(new, Dumped) else frozenset()
        return all(
            says_the_same(old[key], value) if key in old else key in spared
            for key, value in new.items()
        )
    if isinstance(new, Sequence) and not isinstance(new, str):
        return (
            isinstance(old, Sequence)
            and not isinstance(old, str)
            and len(old) == len(new)
            and all(says_the_same(a, b) for a, b in zip(old, new, strict=True))
        )
    return json.dumps(old) == json.dumps(new)  # as text: 1, 1.0 and true are three values
