"""Clusters, difficulty, floors: what is counted, what comes back, what is warned of."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.dataset.clusters import Clustering, cluster_queries
from stillhouse.dataset.difficulty import (
    BELIEF,
    DISAGREEMENT,
    LENGTH,
    Difficulty,
    difficulty_of,
)
from stillhouse.dataset.floors import (
    by_cluster,
    by_difficulty,
    low_clusters,
    readmitted,
    unmeasured,
)
from stillhouse.dataset.select import Accepted, Candidate

TASK = ClassificationTask(kind="classification", labels=("good", "bad"))
FREE = GenerationTask(kind="generation")


def queries(count: int) -> list[Query]:
    return [Query(id=str(i), messages=TASK.messages_for("word " * (i + 1))) for i in range(count)]


def candidate(rank: float) -> Candidate:
    completion = Completion(query_id="x", text="t", model="m", revision="r")
    return Candidate(Accepted(completion, "t"), "judge", (rank, 0.0, 0.0))


def clusters(names: str) -> Clustering:
    return Clustering("metadata", {str(i): name for i, name in enumerate(names)})


def test_the_best_come_back_until_the_floor() -> None:
    # Cluster a: 5 queries, 1 accepted; b: all accepted.
    found = clusters("aaaaabb")
    waiting = {"1": candidate(1), "2": candidate(3), "3": candidate(2), "4": candidate(0)}
    back = readmitted(0.6, found, queries(7), {"0", "5", "6"}, waiting)
    assert back == ["2", "3"]  # ceil(0.6 * 5) = 3, one is there
    assert readmitted(0.2, found, queries(7), {"0", "5", "6"}, waiting) == []
    assert readmitted(None, found, queries(7), set(), waiting) == []
    assert readmitted(1.0, found, queries(7), {"0"}, waiting) == ["1", "2", "3", "4"]


@given(
    st.text("abc", min_size=1, max_size=30),
    st.floats(0.01, 1.0),
    st.randoms(use_true_random=False),
)
def test_a_floor_is_reached_wherever_it_can_be(names: str, floor: float, random: object) -> None:
    asked = queries(len(names))
    roles = [random.choice("ars") for _ in names]  # type: ignore[attr-defined]
    accepted = {q.id for q, role in zip(asked, roles, strict=True) if role == "a"}
    waiting = {q.id: candidate(0) for q, role in zip(asked, roles, strict=True) if role == "s"}
    back = set(readmitted(floor, clusters(names), asked, accepted, waiting))
    assert back <= set(waiting)
    for members in clusters(names).members(asked).values():
        there = sum(m in accepted or m in back for m in members)
        possible = sum(m in accepted or m in waiting for m in members)
        needed = math.ceil(floor * len(members) - 1e-9)
        assert there >= min(needed, possible)
        if sum(m in accepted for m in members) >= needed:
            assert not back & set(members)


def test_rows_say_why_and_whom_to_warn_of() -> None:
    found = clusters("a" * 20 + "b" * 20)
    accepted = {str(i) for i in range(20, 40)} | {"0"}
    rejections = [
        Rejection(query_id=str(i), reason="judge" if i < 15 else "schema", detail="d")
        for i in range(1, 20)
    ]
    rows = by_cluster(found, queries(40), accepted, {"1"}, rejections)
    assert [(r.name, r.queries, r.accepted, r.readmitted, r.top_reason) for r in rows] == [
        ("a", 20, 1, 1, "judge"),
        ("b", 20, 20, 0, None),
    ]
    assert [row.name for row in low_clusters(rows, None)] == ["a"]
    assert [row.name for row in low_clusters(rows, 0.05)] == []
    assert [row.name for row in low_clusters(rows, 0.06)] == ["a"]
    assert rows[0].share == 0.1


def test_a_small_cluster_is_not_called_low_by_chance() -> None:
    found = clusters("a" * 2 + "b" * 20)
    rows = by_cluster(found, queries(22), {str(i) for i in range(2, 22)}, set(), [])
    assert rows[0].accepted == 0
    assert low_clusters(rows, None) == []


def test_difficulty_is_the_best_measure_there_is() -> None:
    asked = queries(4)
    belief = {"good": math.log(0.5), "bad": math.log(0.5)}
    one = [Completion(query_id="0", text="good", model="m", revision="r", label_logprobs=belief)]
    sure = one[0].model_copy(update={"label_logprobs": {"good": 0.0, "bad": -math.inf}})
    found = difficulty_of(TASK, "auto", asked, {"0": one, "1": [sure]}, {})
    assert found.measure == BELIEF
    assert found.values == {"0": pytest.approx(math.log(2)), "1": 0.0}
    votes = [
        Completion(query_id="0", text=text, model="m", revision="r", sample=i)
        for i, text in enumerate(["good", "bad", "good", "?"])
    ]
    found = difficulty_of(TASK, "none", asked, {q.id: votes for q in asked}, {})
    assert found.measure == DISAGREEMENT
    assert found.values["0"] == 0.5
    found = difficulty_of(FREE, "none", asked, {q.id: votes for q in asked}, {"0": 0.2})
    assert found.measure == LENGTH
    assert found.values == {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0}
    shares = {q.id: 0.25 for q in asked}
    found = difficulty_of(FREE, "none", asked, {q.id: votes for q in asked}, shares)
    assert (found.measure, found.values["0"]) == (DISAGREEMENT, 0.75)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_parts_hold_every_query_once_in_order(values: list[int]) -> None:
    found = by_difficulty(
        Difficulty(LENGTH, {str(i): float(v) for i, v in enumerate(values)}),
        {str(i) for i in range(0, len(values), 2)},
    )
    assert sum(int(str(part["queries"])) for part in found) == len(values)
    assert sum(int(str(part["accepted"])) for part in found) == (len(values) + 1) // 2
    assert 1 <= len(found) <= 4
    edges = [(float(str(part["from"])), float(str(part["to"]))) for part in found]
    assert all(low <= high for low, high in edges)
    assert all(a[1] < b[0] for a, b in pairwise(edges))


def test_queries_of_unknown_difficulty_are_counted_apart() -> None:
    known = Difficulty(BELIEF, {"0": 0.1, "1": 0.2})
    assert unmeasured(known, queries(2), {"0"}) is None
    found = unmeasured(known, queries(5), {"0", "4"})
    assert found is not None
    assert (found["queries"], found["accepted"]) == (3, 1)


def test_metadata_names_the_clusters() -> None:
    asked = [
        Query(id="0", messages=TASK.messages_for("x"), metadata={"cluster": "refunds"}),
        Query(id="1", messages=TASK.messages_for("y"), metadata={"cluster": 7}),
        Query(id="2", messages=TASK.messages_for("z")),
    ]
    found = cluster_queries(TASK, asked, 0)
    assert found == Clustering("metadata", {"0": "refunds", "1": "7", "2": "unknown"})


def test_texts_are_clustered_and_named_by_their_words() -> None:
    texts = [f"refund my parcel order {i} refund please" for i in range(60)]
    texts += [f"login password screen error {i} cannot login" for i in range(60)]
    asked = [Query(id=str(i), messages=TASK.messages_for(text)) for i, text in enumerate(texts)]
    found = cluster_queries(TASK, asked, 0)
    assert found.source == "hashing"
    for name, members in found.members(asked).items():
        assert len({int(m) < 60 for m in members}) == 1, "no cluster mixes the two"
        assert {"refund", "login"} & set(name.split()) or len(members) < 60
    assert found == cluster_queries(TASK, asked, 0)


def test_few_queries_are_one_cluster() -> None:
    assert set(cluster_queries(TASK, queries(10), 0).names.values()) == {"all"}
