"""Splitting and joining without I/O: nothing is lost, nothing is twice, whatever comes back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.records import Completion
from stillhouse.teacher.batch import (
    Ask,
    Item,
    Limits,
    Part,
    Row,
    asks,
    belongs,
    custom_id,
    join,
    take,
    verdict_of,
)
from stillhouse.teacher.store import AnswerKey

TEACHER = "openai:m@r"


def key(number: int) -> AnswerKey:
    return AnswerKey(TEACHER, f"chat{number}", "drawn")


PARTS = st.lists(
    st.lists(
        st.tuples(st.integers(1, 60), st.floats(0, 5, allow_subnormal=False)),
        min_size=1,
        max_size=5,
    ),
    max_size=30,
).map(
    lambda sizes: [
        Part(key(i), tuple(Ask(first, 1, size, usd) for first, (size, usd) in enumerate(few)))
        for i, few in enumerate(sizes)
    ]
)


@given(
    parts=PARTS,
    limits=st.builds(Limits, st.integers(1, 10), st.integers(1, 120)),
    room=st.none() | st.floats(0, 40),
)
def test_a_batch_holds_no_more_than_it_may_and_loses_nothing(
    parts: list[Part], limits: Limits, room: float | None
) -> None:
    taken = take(parts, limits, room)
    chosen = [ask for part in taken.parts for ask in part.asks]
    assert len(chosen) <= limits.requests
    assert sum(ask.size for ask in chosen) <= limits.size
    if room is not None:
        assert sum(ask.worst_usd for ask in chosen) <= room + 1e-9
    # Every key goes to exactly one of the three, in order.
    keys = [part.key for part in parts]
    places = [[part.key for part in place] for place in (taken.parts, taken.left, taken.too_large)]
    assert Counter(keys) == Counter(one for place in places for one in place)
    assert all(place == [one for one in keys if one in place] for place in places)
    for part in taken.too_large:
        assert any(ask.size > limits.size for ask in part.asks)
    whole = dict(parts)
    for part in taken.parts:  # a front of the key's requests, and not an empty one
        assert part.asks
        assert part.asks == whole[part.key][: len(part.asks)]
    assert all(part in parts for part in taken.left)
    if not taken.parts and taken.left:
        assert taken.short_of_usd


@given(parts=PARTS, limits=st.builds(Limits, st.integers(1, 10), st.integers(1, 120)))
def test_batch_after_batch_sends_every_request_that_fits(parts: list[Part], limits: Limits) -> None:
    sent: list[tuple[AnswerKey, int]] = []
    failed: set[AnswerKey] = set()
    left: Sequence[Part] = parts
    while left:
        taken = take(left, limits, None)
        assert taken.parts or taken.too_large
        sent += [(part.key, ask.first) for part in taken.parts for ask in part.asks]
        failed |= {part.key for part in taken.too_large}
        # As the caller does: what a key still misses is asked once it is back.
        back = [
            Part(k, rest)
            for k, every in parts
            if k not in failed
            and k in {part.key for part in taken.parts}
            and (rest := tuple(ask for ask in every if (k, ask.first) not in sent))
        ]
        left = [*back, *taken.left]
    wanted = {(k, a.first) for k, every in parts for a in every if k not in failed}
    assert Counter(sent) == Counter(wanted)
    assert failed == {k for k, every in parts if any(a.size > limits.size for a in every)}


@given(have=st.integers(0, 9), n=st.integers(1, 9), per_request=st.integers(1, 4))
def test_requests_bring_each_missing_sample_once(have: int, n: int, per_request: int) -> None:
    found = asks(have, n, per_request, lambda first, count: Ask(first, count, 1, 0.0))
    samples = [ask.first + offset for ask in found for offset in range(ask.n)]
    assert samples == list(range(have, n))
    assert all(1 <= ask.n <= per_request for ask in found)


@given(chat=st.text(max_size=8), first=st.integers(0, 999_999))
def test_custom_ids_are_what_anthropic_takes(chat: str, first: int) -> None:
    the_id = custom_id("0123456789ab", AnswerKey(TEACHER, chat, "s"), first)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", the_id)
    assert belongs("0123456789ab", the_id)
    assert not belongs("0123456789ac", the_id)
    assert the_id != custom_id("0123456789ab", AnswerKey(TEACHER, chat + "x", "s"), first)


def read(item: Item, body: Mapping[str, object]) -> list[Completion]:
    if body.get("bad"):
        raise ValueError("no answer in it")
    return [
        Completion(query_id=item.query_id, text=str(body["text"]), model="m", revision="r")
        for _ in range(int(str(body.get("n", 1))))
    ]


KINDS = st.sampled_from(["answer", "unreadable", "expired", "bad", "busy", "missing"])


@given(
    kinds=st.lists(st.lists(KINDS, min_size=1, max_size=3), max_size=20),
    strangers=st.integers(0, 3),
    twice=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_results_find_their_key_in_any_order(
    kinds: list[list[str]], strangers: int, twice: bool, order: object
) -> None:
    items, rows = [], []
    for number, samples in enumerate(kinds):
        for first, kind in enumerate(samples):
            the_id = custom_id("0" * 12, key(number), first)
            items.append(
                Item(
                    custom_id=the_id, chat=key(number).chat, sampling="drawn", first=first, n=1,
                    query_id=f"q{number}", worst_usd=1.0,
                )
            )  # fmt: skip
            made = {
                "answer": Row(the_id, 200, {"text": f"{number}.{first}"}),
                "unreadable": Row(the_id, 200, {"bad": True}),
                "expired": Row(the_id, 0, None, "batch_expired"),
                "bad": Row(the_id, 400, None, "invalid", "no"),
                "busy": Row(the_id, 429, None, "", "slow down"),
            }
            if kind in made:
                rows.append(made[kind])
    rows += rows[:2] if twice else []
    rows += [Row(f"stranger{i}", 200, {"text": "x"}) for i in range(strangers)]
    order.shuffle(rows)  # type: ignore[attr-defined]
    found = {outcome.key: outcome for outcome in join(TEACHER, items, rows, read)}
    assert set(found) == {key(number) for number in range(len(kinds))}
    for number, samples in enumerate(kinds):
        outcome = found[key(number)]
        answered = [i for i, kind in enumerate(samples) if kind == "answer"]
        assert [c.text for c in outcome.answers] == [f"{number}.{i}" for i in answered]
        assert outcome.worst_usd == len(answered)
        assert outcome.first == 0
        if "bad" in samples:
            assert (outcome.verdict, outcome.reason) == ("failed", "bad_request")
        else:
            assert outcome.verdict == ("whole" if len(answered) == len(samples) else "again")


def test_more_answers_than_asked_for_are_cut() -> None:
    item = Item(
        custom_id="a", chat="c", sampling="s", query_id="q", first=2, n=3, worst_usd=1.0
    )  # fmt: skip
    (outcome,) = join(TEACHER, [item], [Row("a", 200, {"text": "x", "n": 5})], read)
    assert (len(outcome.answers), outcome.first) == (3, 2)


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (0, "batch_expired", "", ("again", "expired")),
        (0, "canceled", "", ("again", "cancelled")),
        (0, "", "", ("again", "server")),
        (503, "", "", ("again", "server")),
        (429, "", "slow down", ("again", "rate_limit")),
        (429, "insufficient_quota", "", ("fatal", "quota")),
        (403, "", "", ("fatal", "auth")),
        (404, "model_not_found", "", ("fatal", "not_found")),
        (400, "", "no", ("failed", "bad_request")),
        (413, "", "", ("failed", "too_long")),
    ],
)
def test_what_an_error_row_means(
    status: int, code: str, message: str, expected: tuple[str, str]
) -> None:
    assert verdict_of(status, code, message) == expected
