"""Records that are made without validation, and what an answer weighs, are what they stand for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_stores import call_of, served_of
from stillhouse.core.gateway_log import GatewayCall, GatewayUsage
from stillhouse.serve.front import ClientGoneError, unless_gone
from stillhouse.serve.private import raw_weight, weight
from stillhouse.serve.record_calls import trusted
from stillhouse.serve.records import Served

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=30,
)


@pytest.mark.parametrize("made", [call_of(1), served_of(1), GatewayCall(**vars(call_of(2)))])
def test_a_trusted_record_is_the_record_itself(made: GatewayCall | Served) -> None:
    again = trusted(type(made), dict(vars(made)))
    assert again == made
    assert again.to_json() == made.to_json()
    assert again.model_copy(update={"id": "x"}).id == "x"
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    assert trusted(GatewayUsage, usage) == GatewayUsage(prompt_tokens=1, completion_tokens=2)


@settings(deadline=None)
@given(value=VALUES, ascii_=st.booleans())
def test_the_weight_of_a_text_is_never_less_than_what_is_read_from_it(
    value: Any, ascii_: bool
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_, separators=(",", ":")).encode()
    assert raw_weight(raw) >= weight(json.loads(raw))


async def _left() -> MutableMapping[str, Any]:
    return {"type": "http.disconnect"}


async def _stays() -> MutableMapping[str, Any]:
    await asyncio.sleep(60)
    raise AssertionError


def test_work_ends_when_the_client_leaves_and_only_then() -> None:
    done: list[str] = []

    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            done.append("worked")
        except asyncio.CancelledError:
            done.append("given up")
            raise

    async def all_of_it() -> None:
        with pytest.raises(ClientGoneError):
            await unless_gone(work(60), _left)
        await unless_gone(work(0), _stays)
        # Somebody else's cancellation is not the client's leaving.
        other = asyncio.create_task(unless_gone(work(60), _stays))
        await asyncio.sleep(0.01)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other

    asyncio.run(all_of_it())
    assert done == ["given up", "worked", "given up"]
