"""Dumps of recipe sections, and what an older one may lack."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from stillhouse.core.section_dump import Dumped, dump_section, says_the_same


class Inner(BaseModel):
    depth: str = "even"
    samples: int = 128


class Outer(BaseModel):
    source: str = Field(alias="from")
    layers: tuple[int, ...] = ()
    inner: Inner = Field(default_factory=Inner)
    other: Inner | None = None
    many: tuple[Inner, ...] = ()
    prices: dict[str, int] = Field(default={"a": 1, "b": 2})
    rate: float = 1.0
    keep: bool = False


def outer(**changes: Any) -> dict[str, Any]:
    return dump_section(Outer.model_validate({"from": "x", **changes}))


def older(new: dict[str, Any], *path: str | int) -> Any:
    """The dump as JSON gives it back, without what lies at a path."""
    old = json.loads(json.dumps(new))
    here = old
    for step in path[:-1]:
        here = here[step]
    if path:
        del here[path[-1]]
    return old


def test_a_dump_is_pydantics_own() -> None:
    model = Outer.model_validate({"from": "x", "many": [{"samples": 2}], "other": {}})
    assert dump_section(model) == model.model_dump(mode="json", by_alias=True)
    without = {"layers": True, "inner": {"depth"}}
    assert dump_section(model, without=without) == model.model_dump(
        mode="json", by_alias=True, exclude=without
    )


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, ("keep",)),
        ({}, ("inner",)),
        ({}, ("inner", "samples")),
        ({"inner": {"depth": "odd"}}, ("inner", "samples")),
        ({"other": {"depth": "odd"}}, ("other", "samples")),
        ({"many": [{"depth": "odd"}, {}]}, ("many", 1, "samples")),
        ({"layers": [1, 2]}, ("rate",)),
    ],
)
def test_a_key_that_did_not_exist_changes_nothing_at_its_default(
    changes: dict[str, Any], path: tuple[str | int, ...]
) -> None:
    new = outer(**changes)
    assert says_the_same(older(new), new)
    assert says_the_same(older(new, *path), new)
    assert says_the_same({"task": 1, "one": older(new, *path)}, {"task": 1, "one": new})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"keep": True}, ("keep",)),
        ({"inner": {"samples": 2}}, ("inner", "samples")),
        ({"inner": {"samples": 2}}, ("inner",)),
        ({"other": {}}, ("other",)),
        ({"many": [{"samples": 2}]}, ("many", 0, "samples")),
        ({}, ("from",)),  # required: there is no default
        ({}, ("prices", "a")),  # the user's keys, no fields
    ],
)
def test_a_key_that_is_missing_and_not_at_its_default_is_a_change(
    changes: dict[str, Any], path: tuple[str | int, ...]
) -> None:
    new = outer(**changes)
    assert not says_the_same(older(new, *path), new)


@pytest.mark.parametrize(
    "change",
    [
        {"keep": 0},
        {"rate": 1},
        {"inner": {"depth": "even", "samples": 64}},  # as if the default had been another
        {"gone": None},  # a key that there is no more
        {"layers": None},
        {"layers": [1]},
        {"many": "none"},
        {"inner": None},
    ],
)
def test_all_else_is_a_change(change: dict[str, Any]) -> None:
    new = outer()
    assert not says_the_same(older(new) | change, new)


def test_a_section_that_is_put_together_has_no_defaults() -> None:
    new = {"student": outer(), "seed": None}
    assert not says_the_same({"student": older(new["student"])}, new)
    assert not says_the_same(None, new)
    assert not says_the_same([], new)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=2), below),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(JSON, JSON)
def test_without_models_it_is_equality_of_json(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert says_the_same(json.loads(json.dumps(one)), other) == same
    assert says_the_same(one, one)


def test_a_dump_is_written_like_any_object() -> None:
    dumped = outer()
    assert isinstance(dumped, Dumped)
    assert json.dumps(dumped) == json.dumps(dict(dumped))
