"""The gateway's log line: what it holds, and that it comes back as it was."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stillhouse.core.gateway_log import GatewayCall, GatewayUsage

LINE = GatewayCall(
    id="g",
    at="2026-03-01T10:00:00+00:00",
    model="openai:gpt-4.1",
    request={"messages": [{"role": "user", "content": "x"}]},
    response={"choices": []},
    usage=GatewayUsage(prompt_tokens=1, completion_tokens=0),
)


def test_it_comes_back_as_it_was() -> None:
    text = LINE.to_json()
    assert '"log":"stillhouse"' in text
    assert "user" not in GatewayCall.model_validate_json(text).model_dump(exclude_none=True)
    assert GatewayCall.model_validate_json(text) == LINE


@pytest.mark.parametrize("wrong", [{"id": ""}, {"latency_ms": -1}, {"extra": 1}, {"log": "other"}])
def test_what_is_no_such_line_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GatewayCall.model_validate({**LINE.model_dump(), **wrong})
