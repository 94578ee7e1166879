"""gateway.yaml, guards, events, keys, assignment: the gateway's parts without a server."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.serve.api_errors import ApiError
from stillhouse.serve.features import answer_features
from stillhouse.serve.gateway_file import GatewayFile, load_gateway, secrets_of
from stillhouse.serve.gateway_sections import ClientKey, LimitsSection
from stillhouse.serve.guards import Breaker, QueueFullError, QueueWaitError, RetryBudget, Slots
from stillhouse.serve.in_memory import HashAssigner, ListedKeys
from stillhouse.serve.migration import changed, first_state
from stillhouse.serve.records import ExperimentState
from stillhouse.serve.request_checks import check_chat, parse_json
from stillhouse.serve.sse import DONE, Events, EventTooLongError, joined, without_usage

FILE: dict[str, Any] = {
    "upstreams": {
        "big": {"base_url": "https://api.openai.com/v1/", "model": "gpt", "api_key_env": "KEY"},
        "small": {"base_url": "http://127.0.0.1:1/v1", "model": "s"},
    },
    "tasks": {"t": {"teacher": "big", "student": "small"}},
}


def loaded(tmp_path: Path, **changes: Any) -> GatewayFile:
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}), encoding="utf-8")
    return load_gateway(path)


def test_a_file_is_read_and_its_keys_come_from_the_environment(tmp_path: Path) -> None:
    file = loaded(tmp_path, admin={})
    assert file.listen.host == "127.0.0.1"
    assert file.upstreams["big"].base_url == "https://api.openai.com/v1"
    assert secrets_of(file, {"KEY": " k ", "STILLHOUSE_ADMIN_KEY": "a"}) == {"big": "k", "": "a"}
    with pytest.raises(UserError, match="KEY is not set"):
        secrets_of(file, {"STILLHOUSE_ADMIN_KEY": "a"})
    with pytest.raises(UserError, match="holds what no key may hold"):
        secrets_of(file, {"KEY": "a\r\nx: 1", "STILLHOUSE_ADMIN_KEY": "a"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"listne": {}}, "did you mean 'listen'"),
        ({"listen": {"host": "0.0.0.0"}}, "must be listed with their keys"),
        ({"tasks": {"t": {"teacher": "nobody"}}}, "names no upstream"),
        ({"tasks": {"t\n": {"teacher": "big"}}}, "must be printable"),
        ({"upstreams": {"big": {"base_url": "ftp://x", "model": "m"}}}, "must be http://"),
        ({"upstreams": {"big": {"base_url": "http://u:p@x", "model": "m"}}}, "no user"),
        ({"upstreams": {}}, "upstreams"),
        ({"keys_in_store": True}, "needs log.url"),
        ({"clients": [{"tenant": "a", "sha256": "short"}]}, "sha256"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        loaded(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_public_port_is_opened_with_keys(tmp_path: Path) -> None:
    client = {"tenant": "a", "sha256": sha256(b"k").hexdigest()}
    assert loaded(tmp_path, listen={"host": "0.0.0.0"}, clients=[client]).needs_key


def test_no_such_file_and_no_yaml_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_gateway(tmp_path / "none.yaml")
    for text in ("a: [", "- a", "\x00"):
        path = tmp_path / "bad.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RecipeError):
            load_gateway(path)


def test_the_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through() -> None:
    now = [0.0]
    breaker = Breaker(2, 10, lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open"
    assert breaker.refuse_for() == 10
    now[0] = 10
    assert breaker.state == "half_open"
    assert breaker.refuse_for() == 0
    assert breaker.refuse_for() > 0
    breaker.abandoned()
    assert breaker.refuse_for() == 0
    breaker.failed()
    assert breaker.refuse_for() == 10
    now[0] = 20
    assert breaker.refuse_for() == 0
    breaker.succeeded()
    assert breaker.state == "closed"


def test_retries_stay_within_their_share() -> None:
    budget = RetryBudget(0.25, most=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(4):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
    assert not RetryBudget(0).spend()


def test_slots_are_given_in_order_and_none_is_lost() -> None:
    async def run() -> None:
        slots = Slots(1, 2, 0.05)
        await slots.take()
        order: list[int] = []

        async def wait(number: int) -> None:
            await slots.take()
            order.append(number)
            slots.free()

        first, second = asyncio.create_task(wait(1)), asyncio.create_task(wait(2))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await slots.take()
        slots.free()
        await asyncio.gather(first, second)
        assert order == [1, 2]
        await slots.take()
        with pytest.raises(QueueWaitError):
            await slots.take()
        left = asyncio.create_task(slots.take())
        await asyncio.sleep(0)
        slots.free()  # given to one that is cancelled in the same breath
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        await asyncio.wait_for(slots.take(), 0.01)

    asyncio.run(run())


CHUNKS = [b'data: {"a":1}\n\n', b": ping\n\n", 'data: {"é":2}\n\n'.encode(), DONE]


@given(st.lists(st.integers(0, 80), max_size=12), st.booleans())
def test_events_are_whole_however_they_are_cut(cuts: list[int], carriage: bool) -> None:
    data = b"".join(CHUNKS)
    if carriage:
        data = data.replace(b"\n", b"\r\n")
    events = Events()
    found: list[bytes] = []
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(places):
        found += events.feed(data[start:end])
    assert found + events.end() == CHUNKS


def test_an_endless_event_is_no_stream() -> None:
    with pytest.raises(EventTooLongError):
        Events(longest=10).feed(b"x" * 11)


def test_usage_is_stripped_from_what_the_model_did_not_write() -> None:
    text = '{"choices":[{"delta":{"content":",\\"usage\\":null"}}],"usage":null}'
    event = f"data: {text}\n\n".encode()
    kept = json.loads(without_usage(event)[6:])
    assert kept == {"choices": [{"delta": {"content": ',"usage":null'}}]}
    assert without_usage(b'data: {"choices":[],"usage":{"a":1}}\n\n') == b""
    both = b'data: {"choices":[{"index":0}],"usage":{"a":1}}\n\n'
    assert json.loads(without_usage(both)[6:]) == {"choices": [{"index": 0}]}


def test_a_stream_is_joined_with_its_tool_calls() -> None:
    pieces: list[dict[str, Any]] = [
        {"role": "assistant", "content": "a"},
        {"content": "b"},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"x'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]},
    ]
    events = [
        b"data: " + json.dumps({"id": "i", "choices": [{"index": 0, "delta": one}]}).encode()
        for one in pieces
    ]
    message = joined([*events, b"data: {{{", DONE])["choices"][0]["message"]
    assert message["content"] == "ab"
    assert message["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": '{"x":1}'}, "id": "c"}
    ]


def refusal(check: Callable[[], object]) -> ApiError | None:
    try:
        check()
    except ApiError as error:
        return error
    return None


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_api_error(raw: bytes) -> None:
    error = refusal(lambda: check_chat(parse_json(raw, 20), LimitsSection()))
    assert error is not None
    assert error.status == 400
    assert set(json.loads(error.body())["error"]) == {"message", "type", "param", "code"}


TEXT = st.text("ab", max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = ["model", "messages", "n", "stream", "user", "x"]


@given(st.dictionaries(st.sampled_from(PARAMETERS), JSON))
def test_any_object_passes_or_is_an_api_error(body: dict[str, Any]) -> None:
    error = refusal(lambda: check_chat(body, LimitsSection()))
    assert error is None or error.status == 400


@pytest.mark.parametrize("depth", [1, 5, 64, 400])
def test_depth_is_counted_in_levels_not_in_brackets(depth: int) -> None:
    wide = json.dumps({"a": [[]] * 500}).encode()
    assert parse_json(wide, 3)
    exact = b'{"a":' * depth + b"1" + b"}" * depth
    assert parse_json(exact, depth)
    with pytest.raises(ApiError):
        parse_json(b'{"a":' + exact + b"}", depth)


def test_keys_are_found_by_digest() -> None:
    keys = ListedKeys(
        [ClientKey(tenant=one, sha256=sha256(one.encode()).hexdigest()) for one in "ab"]
    )
    found = keys.check("b")
    assert found is not None
    assert found.tenant == "b"
    assert keys.check("c") is None
    assert keys.check("\udcff") is None


def test_assignment_is_sticky_and_keeps_its_shares(tmp_path: Path) -> None:
    assigner = HashAssigner(loaded(tmp_path).tasks)
    state = ExperimentState(task="t", kind="canary", share=0.25, stage=2, version=3)
    users = [f"u{number}" for number in range(4000)]
    first = [assigner.assign("t", user, None, "r1", state) for user in users]
    again = [assigner.assign("t", user, "c", "r2", state) for user in users]
    assert first == again
    arms = Counter(one.arm for one in first)
    # Four standard deviations of a share of 4,000.
    assert abs(arms["teacher_only"] / 4000 - 0.02) < 4 * (0.02 * 0.98 / 4000) ** 0.5
    assert abs(arms["treatment"] / 4000 - 0.245) < 4 * (0.245 * 0.755 / 4000) ** 0.5
    more = state.model_copy(update={"share": 0.5})
    grown = [assigner.assign("t", user, None, "r", more) for user in users]
    moved = [(a.variant, b.variant) for a, b in zip(first, grown, strict=True)]
    assert ("student", "teacher") not in moved
    killed = state.model_copy(update={"killed": True})
    assert assigner.assign("t", "u1", None, "r", killed).variant == "teacher"


def test_pairs_go_on_beside_the_teacher_where_they_are_the_evidence(tmp_path: Path) -> None:
    task = {"kind": "classification", "labels": ["a", "b"]}
    plan = {"evidence": {"source": "scorer", "task": task}, "teacher_only": 0.3}
    tasks = {"t": {"teacher": "big", "student": "small", "experiment": plan}}
    assigner = HashAssigner(loaded(tmp_path, tasks=tasks).tasks)
    for kind, share in (("canary", 0.25), ("full", 1.0)):
        state = ExperimentState.model_validate({"task": "t", "kind": kind, "share": share})
        found = [assigner.assign("t", f"u{n}", None, "r", state) for n in range(300)]
        assert all(one.shadowed == (one.arm != "treatment") for one in found)
        assert {one.arm for one in found} >= {"teacher_only", "treatment"}
        killed = state.model_copy(update={"killed": True})
        assert not assigner.assign("t", "u", None, "r", killed).shadowed
    state = ExperimentState(task="t", kind="canary", share=0.25)
    without = HashAssigner(loaded(tmp_path).tasks)
    assert not any(without.assign("t", f"u{n}", None, "r", state).shadowed for n in range(100))


def evidence(**section: Any) -> dict[str, Any]:
    student = section.pop("student", "small")
    task = {"teacher": "big", "student": student, "experiment": {"evidence": section}}
    return {"tasks": {"t": task}}


LABELS = {"kind": "classification", "labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (evidence(source="scorer"), "needs task"),
        (evidence(source="guess"), "must be 'scorer', 'judge' or 'feedback'"),
        (evidence(source="scorer", task={"kind": "classification", "lables": []}), "'labels'"),
        (evidence(source="judge", task=LABELS), "exactly where source is judge"),
        (evidence(source="judge", task=LABELS, judge={"upstream": "x"}), "there are big, small"),
        (evidence(source="feedback", canary="pairs"), "nobody gives feedback on unseen"),
        (evidence(source="scorer", task=LABELS, canary="arms"), "reference: corrected"),
        (evidence(source="scorer", task=LABELS, reference="corrected"), "needs log.url"),
        (evidence(source="feedback", outcomes=["scorer"]), "outcomes are of feedback"),
        (evidence(source="feedback", attempts=0), "attempts"),
        (evidence(source="feedback", reference="corrected"), "a scorer's"),
        (
            {
                "tasks": {
                    "t": {
                        "teacher": "big",
                        **evidence(source="feedback")["tasks"]["t"],
                        "student": None,
                    }
                }
            },
            "without a student",
        ),
    ],
)
def test_evidence_that_cannot_be_had_is_one_line(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        loaded(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_gold_set_is_seen_from_the_file(tmp_path: Path) -> None:
    judge = {"upstream": "big", "gold": "gold.jsonl"}
    file = loaded(tmp_path, **evidence(source="judge", task=LABELS, judge=judge))
    found = file.tasks["t"].experiment.evidence
    assert found is not None
    assert found.judge is not None
    assert found.judge.gold == tmp_path / "gold.jsonl"


def test_an_admins_changes_follow_the_plan(tmp_path: Path) -> None:
    plan = loaded(tmp_path).tasks["t"].experiment.stages
    state = first_state("t", plan, 1.0, student=True, threshold=None)
    assert (state.kind, state.share) == ("shadow", 0)
    state, decision = changed(state, plan, "approve", "", 2.0)
    assert (state.stage, state.share, state.version) == (1, 0.05, 1)
    assert (decision.from_stage, decision.to_stage, decision.action) == (0, 1, "approve")
    state, _ = changed(state, plan, "kill", "", 3.0)
    with pytest.raises(ApiError):
        changed(state, plan, "approve", "", 3.0)
    state, _ = changed(state, plan, "revive", "", 4.0)
    state, _ = changed(state, plan, "rollback", "worse", 5.0)
    assert (state.stage, state.kind, state.version) == (0, "shadow", 4)


def test_features_of_what_has_no_logprobs_are_empty() -> None:
    answers: list[dict[str, Any]] = [{}, {"choices": []}, {"choices": [{"logprobs": None}]}]
    for answer in answers:
        assert answer_features(answer) == {}
    top = [{"logprob": -0.5}, {"logprob": -2.0}]
    content = [{"logprob": -0.5, "top_logprobs": top}, {"logprob": -1.5}]
    found = answer_features({"choices": [{"logprobs": {"content": content}}]})
    assert found["mean_logprob"] == -1
    assert found["min_logprob"] == -1.5
    assert found["min_margin"] == 1.5
