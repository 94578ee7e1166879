"""Replay is stratified, nested and stable; held-out texts never get through."""

from __future__ import annotations

from collections import Counter

from retrain_doubles import TASK
from stillhouse.core.records import Message, Query
from stillhouse.retrain.replay import Earlier, decontaminated, replayed


def query(name: str, text: str) -> Query:
    return Query(id=name, messages=(Message(role="user", content=text),))


def earlier(source: str, count: int, bad_every: int = 4) -> list[Earlier]:
    return [
        Earlier(
            query(f"{source}-{n}", f"text {n}"), source, "bad" if n % bad_every == 0 else "good"
        )
        for n in range(count)
    ]


def test_every_cycle_and_label_has_its_share() -> None:
    known = [*earlier("0001", 80), *earlier("0002", 40)]
    found = replayed(known, 0.5, None, 0)
    kinds = {one.query.id: (one.source, one.label) for one in known}
    counts = Counter(kinds[q.id] for q in found)
    assert counts == {
        ("0001", "good"): 30,
        ("0001", "bad"): 10,
        ("0002", "good"): 15,
        ("0002", "bad"): 5,
    }


def test_a_rare_label_keeps_at_least_one() -> None:
    known = [*earlier("0001", 200, bad_every=200)]
    found = replayed(known, 0.05, None, 0)
    assert len(found) == 10
    assert "0001-0" in {q.id for q in found}


def test_a_larger_share_holds_the_smaller_and_new_cycles_change_nothing() -> None:
    known = earlier("0001", 100)
    small = {q.id for q in replayed(known, 0.2, None, 3)}
    large = {q.id for q in replayed(known, 0.6, None, 3)}
    assert small < large
    more = [*known, *earlier("0002", 100)]
    assert {q.id for q in replayed(more, 0.2, None, 3) if q.id.startswith("0001")} == small


def test_the_cap_and_the_ends_of_the_share() -> None:
    known = earlier("0001", 50)
    assert len(replayed(known, 1.0, None, 0)) == 50
    assert len(replayed(known, 1.0, 7, 0)) == 7
    assert replayed(known, 0.0, None, 0) == []
    assert replayed([], 1.0, None, 0) == []


def test_texts_near_to_what_is_held_out_are_left_out() -> None:
    held = [query("h", "the quick brown fox jumps over the lazy dog by the old river bank today")]
    twin = query("t", "The quick brown fox jumps over the lazy dog by the old river bank, today")
    other = query("o", "an entirely different matter that is about ships and their captains at sea")
    found = decontaminated(TASK, [twin, other], held, 0.7)
    assert [q.id for q in found.queries] == ["o"]
    assert found.held_back == 1
