"""The quick JSON means what `json` means, in all but NaN where it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.serve.quick_json import json_bytes, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=15,
)


@settings(deadline=None)
@given(value=VALUES)
def test_what_is_written_is_read_as_it_was(value: Any) -> None:
    raw = json_bytes(value)
    assert json.loads(raw) == value
    assert read_json(raw) == value
    assert read_json(json.dumps(value).encode(), strict=True) == value


@settings(deadline=None)
@given(raw=st.binary(max_size=40) | st.text('{}[]",:0123456789eE+-.truefalsn\\u', max_size=40))
def test_any_bytes_are_read_as_json_reads_them(raw: bytes | str) -> None:
    try:
        wanted = json.loads(raw)
    except ValueError:
        with pytest.raises(ValueError):
            read_json(raw)
        return
    found = read_json(raw)
    assert found == wanted or repr(found) == repr(wanted)


def test_nan_is_read_only_where_it_may_be_and_never_written() -> None:
    for text in (b"NaN", b"Infinity", b'{"a": -Infinity}'):
        with pytest.raises(ValueError):
            read_json(text, strict=True)
        read_json(text)
    assert read_json(b"1e999", strict=True) == float("inf")
    assert json_bytes({"a": float("inf"), "b": "é"}) == '{"a":null,"b":"é"}'.encode()
    with pytest.raises(RecursionError):
        read_json(b"[" * 100_000)


def test_a_number_of_any_length_is_read() -> None:
    for digits in (30, 640, 5000, 100_000):
        found = read_json(b'{"a": -' + b"9" * digits + b"}")["a"]
        assert found == (-(10**digits - 1) if digits <= 640 else float("-inf"))
    with pytest.raises(ValueError, match="digits"):
        read_json(b'{"a": ' + b"9" * 5000 + b"}", strict=True)
