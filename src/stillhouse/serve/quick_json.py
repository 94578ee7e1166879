"""JSON as the gateway reads and writes it on every request: pydantic's parser, json's meaning.

What pydantic's parser does not take (lone surrogates, UTF-16, deep nesting) goes through `json`, so
that the two differ in time alone. A number beyond every float is read as infinite and written as
null, since JSON has no such number. Knows no API.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from pydantic_core import PydanticSerializationError, from_json, to_json

MOST_DIGITS: Final = 640  # what every Python reads, however its limit is set


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # Python reads no integer of more than 4,300 digits; as a float it is beyond all of them.
    return int(digits) if len(digits) <= MOST_DIGITS else float(digits)


def read_json(raw: bytes | str, *, strict: bool = False) -> Any:
    """A JSON value; of a key that comes twice the last one.

    Args:
        strict: NaN, Infinity and integers that Python does not read are no JSON. Some servers write
            them all the same.

    Raises:
        ValueError: not JSON. RecursionError: nested too deep.
    """
    try:
        return from_json(raw, allow_inf_nan=not strict)
    except ValueError:
        if strict:
            return json.loads(raw, parse_constant=_constant)
        return json.loads(raw, parse_int=_integer)


def json_bytes(value: Any) -> bytes:
    """Without spaces."""
    try:
        return to_json(value, inf_nan_mode="null")
    except PydanticSerializationError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")
