"""Reading logs: each format, joined batches, damage of all kinds, and that nothing is fatal."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import DataError
from stillhouse.core.gateway_log import GatewayCall, GatewayUsage
from stillhouse.traffic import json_files
from stillhouse.traffic.call import Call, seconds_of
from stillhouse.traffic.formats import FORMATS, READERS, format_of
from stillhouse.traffic.logs import LogReader, Reject

SAME_FOLDER = [HealthCheck.function_scoped_fixture]
HELLO = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
SAID = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "gpt-4.1-2025-04-14",
    "choices": [{"message": {"role": "assistant", "content": "hi"}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2},
}


def write(folder: Path, *rows: object, name: str = "log.jsonl") -> Path:
    path = folder / name
    text = "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def read(*paths: Path, wanted: Any = None) -> tuple[list[Call], list[Reject], LogReader]:
    rejects: list[Reject] = []
    reader = LogReader(paths, wanted, rejects.append)
    return list(reader), rejects, reader


def only(folder: Path, row: dict[str, Any]) -> Call:
    (call,), rejects, _ = read(write(folder, row))
    assert rejects == []
    return call


def summary(call: Call) -> tuple[object, ...]:
    return [tuple(t) for t in call.turns], call.answer, call.prompt_tokens, call.completion_tokens  # type: ignore[return-value]


EXPECTED = ([("system", "s"), ("user", "hello")], "hi", 9, 2)


def test_the_gateways_own_line(tmp_path: Path) -> None:
    line = GatewayCall(
        id="g1",
        at="2026-03-01T10:00:00+00:00",
        user="u",
        model="openai:gpt-4.1",
        request={"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]},
        response=SAID,
        usage=GatewayUsage(prompt_tokens=9, completion_tokens=2),
        latency_ms=12.5,
        cost_usd=0.01,
    )
    call = only(tmp_path, json.loads(line.to_json()))
    assert summary(call) == EXPECTED
    assert (call.id, call.user, call.model, call.latency_ms) == ("g1", "u", "openai:gpt-4.1", 12.5)
    assert (call.cost_usd, call.tools, call.at) == (0.01, ("f",), 1772359200.0)


def test_a_failed_gateway_request_has_no_answer(tmp_path: Path) -> None:
    line = GatewayCall(
        id="g", at="2026-03-01", model="m", request={"messages": HELLO}, response=None, error="503"
    )
    call = only(tmp_path, json.loads(line.model_dump_json()))
    assert call.failed
    assert call.answer is None


@pytest.mark.parametrize(
    "row",
    [
        {"request": {"model": "m", "messages": HELLO}, "response": SAID},
        {"request_body": json.dumps({"messages": HELLO}), "response_body": json.dumps(SAID)},
        {"BackendRequestBody": json.dumps({"messages": HELLO}),
         "BackendResponseBody": json.dumps(SAID)},
        {"body": {"messages": HELLO}, "custom_id": "1",
         "response": {"status_code": 200, "body": SAID}},
        {"messages": HELLO, **SAID},
        {
            "messages": [*HELLO, {"role": "assistant", "content": "hi"}],
            "usage": SAID["usage"],
        },
        {
            "request": {"model": "m", "instructions": "s", "input": "hello"},
            "response": {
                "object": "response",
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant",
                     "content": [{"type": "output_text", "text": "hi"}]},
                ],
                "usage": {"input_tokens": 9, "output_tokens": 2},
            },
        },
        {
            "request": {"model": "claude-x", "system": "s", "messages": HELLO[1:]},
            "response": {
                "type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}],
                "usage": {"input_tokens": 4, "cache_read_input_tokens": 5, "output_tokens": 2},
            },
        },
        {
            "RequestMessages": json.dumps(HELLO), "ResponseMessages": json.dumps(
                [{"role": "assistant", "content": "hi"}]),
            "PromptTokens": 9, "CompletionTokens": 2, "ModelName": "gpt-4.1",
        },
    ],
)  # fmt: skip
def test_openai_like_lines(tmp_path: Path, row: dict[str, Any]) -> None:
    assert summary(only(tmp_path, row)) == EXPECTED


def test_batch_outputs_are_joined_to_their_requests(tmp_path: Path) -> None:
    asked = [
        {"custom_id": f"q{i}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "m", "messages": [{"role": "user", "content": f"t{i}"}]}}
        for i in range(3)
    ]  # fmt: skip
    said = [
        {"id": f"b{i}", "custom_id": f"q{i}", "error": None,
         "response": {"status_code": 200, "request_id": "r", "body": {
             **SAID, "choices": [{"message": {"role": "assistant", "content": f"a{i}"}}]}}}
        for i in (2, 0, 9)
    ]  # fmt: skip
    paths = write(tmp_path, *asked, name="in.jsonl"), write(tmp_path, *said, name="out.jsonl")
    calls, rejects, _ = read(*paths)
    assert {c.turns[0].content: c.answer for c in calls} == {"t0": "a0", "t1": None, "t2": "a2"}
    assert [r.reason for r in rejects] == ["no_request"]


def test_litellm_rows(tmp_path: Path) -> None:
    row = {
        "request_id": "r", "call_type": "acompletion", "spend": 0.002, "prompt_tokens": 9,
        "completion_tokens": 2,
        "startTime": "2026-03-01 10:00:00", "endTime": "2026-03-01 10:00:01",
        "model": "gpt-4.1", "custom_llm_provider": "openai", "end_user": "u", "cache_hit": "False",
        "messages": HELLO, "response": SAID,
    }  # fmt: skip
    call = only(tmp_path, row)
    assert summary(call) == EXPECTED
    assert (call.model, call.cost_usd, call.latency_ms) == ("openai/gpt-4.1", 0.002, 1000.0)
    inner = {**row, "id": "x", "response_cost": 0.0, "startTime": 1.76e9, "status": "failure"}
    call = only(tmp_path, {"standard_logging_object": inner})
    assert call.failed
    assert call.cost_usd == 0.002
    assert call.at == 1.76e9


def test_a_litellm_row_without_content_says_which_setting_stores_it(tmp_path: Path) -> None:
    bare = {"request_id": "r", "call_type": "acompletion", "spend": 1, "messages": "{}"}
    _, rejects, reader = read(
        write(tmp_path, bare, {**bare, "call_type": "aembedding"}, {**bare, "messages": HELLO})
    )
    assert [(r.line, r.reason) for r in rejects] == [(1, "not_logged")]
    assert "store_prompts_in_spend_logs" in rejects[0].detail
    assert reader.skipped == {"not_a_chat": 1}


OBSERVATION = {
    "id": "o1", "traceId": "t1", "type": "GENERATION", "startTime": "2026-03-01T10:00:00Z",
    "endTime": "2026-03-01T10:00:02Z", "model": "gpt-4.1", "input": HELLO,
    "output": {"role": "assistant", "content": "hi"}, "usageDetails": {"input": 9, "output": 2},
    "costDetails": {"total": 0.5},
}  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        OBSERVATION,
        {**OBSERVATION, "input": {"messages": HELLO}, "output": "hi"},
        {
            "id": "o", "trace_id": "t", "type": "GENERATION",
            "start_time": "2026-03-01 10:00:00.000",
            "provided_model_name": "gpt-4.1", "input": json.dumps(HELLO), "output": json.dumps(
                {"role": "assistant", "content": "hi"}),
            "usage_details": {"input": 9, "output": 2}, "total_cost": 0.5,
            "end_time": "2026-03-01 10:00:02.000",
        },
        {"trace": {"id": "t1", "userId": "u"}, "observations": [OBSERVATION, {"type": "SPAN"}]},
    ],
)  # fmt: skip
def test_langfuse_rows(tmp_path: Path, row: dict[str, Any]) -> None:
    call = only(tmp_path, row)
    assert summary(call) == EXPECTED
    assert (call.model, call.cost_usd, call.latency_ms) == ("gpt-4.1", 0.5, 2000.0)


def test_a_parsed_answer_is_json_again(tmp_path: Path) -> None:
    call = only(tmp_path, {**OBSERVATION, "output": {"label": "bug", "sure": True}})
    assert json.loads(call.answer or "") == {"label": "bug", "sure": True}


def test_a_trace_beside_its_observations_is_not_counted_twice(tmp_path: Path) -> None:
    trace = {"id": "t1", "sessionId": "s", "name": "n", "input": HELLO, "output": "hi"}
    observations = write(
        tmp_path, OBSERVATION, {**OBSERVATION, "type": "SPAN", "id": "s"}, name="a.jsonl"
    )
    traces = write(tmp_path, trace, name="b.jsonl")
    calls, rejects, reader = read(observations, traces)
    assert [c.id for c in calls] == ["o1"]
    assert rejects == []
    assert reader.skipped == {"repeats": 1, "not_a_chat": 1}
    assert [c.id for c in read(traces)[0]] == ["t1"]


def test_tools_images_and_schemas_are_noted(tmp_path: Path) -> None:
    image = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    request = {
        "messages": [{"role": "user", "content": image}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    }
    call = only(tmp_path, {"request": request, "response": SAID})
    assert not call.text_only
    assert call.turns[0].content == "see"
    assert json.loads(call.schema or "") == schema
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    call = only(
        tmp_path, {"request": {"messages": HELLO}, "response": {"choices": [{"message": called}]}}
    )
    assert (call.answer, call.text_only) == (None, False)


def test_ids_that_repeat(tmp_path: Path) -> None:
    row = {"id": "x", "request": {"messages": HELLO}, "response": SAID}
    other = {**row, "request": {"messages": [{"role": "user", "content": "other"}]}}
    no_id = {"messages": [*HELLO, {"role": "assistant", "content": "a"}]}
    calls, rejects, reader = read(write(tmp_path, row, other, row, other, no_id, no_id))
    assert [c.id for c in calls] == ["x", "x~2", "1-3", "1-4"]
    assert [(r.line, r.reason) for r in rejects] == [(3, "duplicate"), (4, "duplicate")]
    assert reader.renamed == 1


def test_an_id_that_all_share_costs_no_quadratic_time(tmp_path: Path) -> None:
    rows = [{"id": "none", "messages": [{"role": "user", "content": str(i)}]} for i in range(3000)]
    calls, _, _ = read(write(tmp_path, *rows))
    assert len({c.id for c in calls}) == 3000


def test_bad_lines_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": HELLO})
    path.write_bytes(
        b"\xef\xbb\xbf" + path.read_bytes()
        + b'{"messages": [}\n\n[1]\n\xff\xfe\n{"messages": []}\n{"messages": [{"role": "boss"}]}\n'
        + b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}\n"
        + json.dumps({"messages": HELLO, "id": "z"}).encode()
    )  # fmt: skip
    calls, rejects, reader = read(path)
    assert len(calls) == 2
    assert [(r.line, r.reason) for r in rejects][:3] == [(2, "json"), (4, "json"), (5, "encoding")]
    assert {r.line for r in rejects[3:]} == {6, 7, 8}
    assert sum(reader.rejected.values()) == len(rejects) == 6


def test_an_overlong_line_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_LINE", 1000)
    monkeypatch.setattr(json_files, "BLOCK", 256)
    path = write(tmp_path, {"messages": HELLO}, "x" * 5000, {"messages": HELLO, "id": "2"})
    calls, rejects, _ = read(path)
    assert len(calls) == 2
    assert [(r.line, r.reason) for r in rejects] == [(2, "too_long")]


def test_archives_whole_and_cut_off(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"messages": HELLO, "id": i}) + "\n" for i in range(5000))
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(rows.encode()))
    assert len(read(path)[0]) == 5000
    path.write_bytes(path.read_bytes()[:-2000])
    calls, rejects, _ = read(path)
    assert 0 < len(calls) < 5000
    assert "damaged" in {r.reason for r in rejects}


@pytest.mark.parametrize("indent", [None, 2])
def test_one_json_document(tmp_path: Path, indent: int | None) -> None:
    rows = [{**OBSERVATION, "id": str(i), "input": f"text {i} ]}}" * 50} for i in range(300)]
    for name, value in (("a.json", rows), ("b.json", {"data": rows}), ("c.json", rows[0])):
        path = tmp_path / name
        path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
        calls, rejects, _ = read(path)
        assert len(calls) == (1 if name == "c.json" else 300)
        assert rejects == []


def test_a_list_goes_on_after_a_broken_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "BLOCK", 400)
    good = [json.dumps({**OBSERVATION, "id": str(i)}) for i in range(20)]
    good[7] = good[7].replace('"traceId": ', '"traceId" ')
    good[9] = "17"
    path = tmp_path / "log.json"
    path.write_text("[\n" + ",\n".join(good) + "\n]", encoding="utf-8")
    calls, rejects, _ = read(path)
    assert len(calls) == 18
    assert [(r.line, r.reason) for r in rejects] == [(9, "json"), (11, "json")]


def test_a_folder_is_all_its_logs(tmp_path: Path) -> None:
    write(tmp_path, {"messages": HELLO}, name="b.jsonl")
    write(tmp_path, OBSERVATION, name="a.jsonl")
    (tmp_path / "notes.txt").write_text("x")
    _, _, reader = read(tmp_path)
    assert [(f.path.name, f.format, f.calls) for f in reader.files] == [
        ("a.jsonl", "langfuse", 1),
        ("b.jsonl", "openai", 1),
    ]


def test_the_format_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, {"input": "hello", "output": "hi"}, {"messages": HELLO})
    calls, _, _ = read(path, wanted="langfuse")
    assert calls[0].answer == "hi"


@pytest.mark.parametrize("content", ["", "\n\n", "hello\n", '{"a": 1}\n', "\x00\x01"])
def test_nothing_to_read_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="no request that can be read"):
        read(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="holds no log file"):
        read(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(data=st.binary(max_size=400), wanted=st.sampled_from([None, *FORMATS]))
def test_any_bytes_are_read_or_rejected(tmp_path: Path, data: bytes, wanted: Any) -> None:
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(data + b"\n" + json.dumps({"messages": HELLO}).encode() + b"\n" + data)
    try:
        calls, rejects, reader = read(path, wanted=wanted)
    except DataError:
        return
    assert reader.calls == len(calls)
    assert sum(reader.rejected.values()) == len(rejects)


_KEYS = (
    "messages input output request response body choices message content role type text usage "
    "model id observations trace data standard_logging_object call_type startTime spend custom_id "
    "metadata log tools response_format instructions prompt completion usageDetails error "
    "tool_calls traceId"
)
KEYS = _KEYS.split()
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["stillhouse", "user", "assistant", "GENERATION", '{"a": 1}', "[]"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=SAME_FOLDER)
@given(row=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=8))
def test_any_json_shape_is_read_or_rejected(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path, {"messages": HELLO})
    with path.open("a") as handle:
        handle.write(json.dumps(row) + "\n")
    for wanted in FORMATS:
        rejects: list[Reject] = []
        reader = LogReader([path], wanted, rejects.append)
        try:
            for call in reader:
                assert call.turns
                json.dumps(call).encode()
        except DataError:
            pass
        assert sum(reader.rejected.values()) == len(rejects)
    assert format_of(row) in (None, *READERS)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_760_000_000, 1.76e9),
        (1_760_000_000_000, 1.76e9),
        ("1760000000", 1.76e9),
        ("2025-10-09T08:53:20Z", 1.76e9),
        ("2025-10-09 08:53:20.000 UTC", 1.76e9),
        ("2025-10-09T10:53:20+02:00", 1.76e9),
        ("soon", None),
        (5, None),
        (float("nan"), None),
        ([], None),
        (True, None),
    ],
)
def test_times(value: object, seconds: float | None) -> None:
    assert seconds_of(value) == seconds
