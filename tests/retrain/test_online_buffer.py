"""Buffer: uniform reservoir, caps, draws that are unbiased after correction; tenants' trust."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stillhouse.core.errors import UserError
from stillhouse.core.loop_online import CapsSection, GuardSection, TrustSection
from stillhouse.core.records import Message
from stillhouse.retrain.online_buffer import Buffer, capped, draw
from stillhouse.retrain.online_guard import check
from stillhouse.retrain.online_rows import Lesson
from stillhouse.retrain.online_trust import Tally, judge

FREE = CapsSection(tenant_share=1, user_share=1)


def lesson(number: int, tenant: str = "t", whose: str = "u") -> Lesson:
    return Lesson(
        id=f"r{number}",
        at=number,
        tenant=tenant,
        whose=whose,
        messages=(Message(role="user", content="x"),),
        target="a",
        source="teacher",
    )


def test_the_reservoir_is_a_uniform_sample_of_what_is_no_longer_new() -> None:
    """Of 200 rows 20 are the newest and 20 of the other 180 are kept: each with 1 / 9. 300 seeds:
    a ninth of the rows should hold a ninth of the places; chi-square of nine groups, 8 degrees of
    freedom, is above 26.1 once in a thousand."""
    groups: Counter[int] = Counter()
    for seed in range(300):
        buffer = Buffer(40, 0.5, FREE, seed)
        for number in range(200):
            buffer.add(lesson(number))
        assert [one.seq for one in buffer.items if one.part == "recent"] == list(range(180, 200))
        kept = [one.seq for one in buffer.items if one.part == "reservoir"]
        assert len(kept) == 20
        groups.update(seq // 20 for seq in kept)
    expected = 300 * 20 / 9
    assert sum((groups[g] - expected) ** 2 / expected for g in range(9)) < 26.1


def test_a_row_that_is_corrected_is_new_and_one_that_is_read_again_is_not() -> None:
    buffer = Buffer(4, 0.5, FREE, 0)
    for number in range(4):
        buffer.add(lesson(number))
    buffer.add(lesson(0))
    for number in (1, 2):  # of the reservoir, and of the newest
        buffer.add(lesson(number).model_copy(update={"target": "b", "source": "corrected"}))
    found = {one.lesson.id: (one.seq, one.part, one.lesson.target) for one in buffer.items}
    assert found == {
        "r0": (0, "reservoir", "a"),
        "r1": (4, "reservoir", "b"),
        "r2": (5, "recent", "b"),
        "r3": (3, "recent", "a"),
    }
    buffer.add(lesson(9))
    assert [one.lesson.id for one in buffer.items if one.part == "recent"] == ["r2", "r9"]


def test_draws_by_disagreement_are_unbiased_after_correction() -> None:
    """The weighted mean of n draws has standard error at most max|f| / sqrt(n u) (weights are at
    most 1 / u, of mean 1); five of them are the bound."""
    rng = np.random.default_rng(0)
    shares = rng.random(50)
    shares /= shares.sum()
    wrong, values = rng.random(50) ** 3, rng.normal(size=50)
    values /= np.abs(values).max()
    n, uniform = 200_000, 0.2
    found = draw(shares, wrong, n, rng, power=0.8, uniform=uniform)
    bound = 5 / np.sqrt(n * uniform)
    assert abs(float((found.weights * values[found.rows]).mean() - shares @ values)) < bound
    assert abs(float(values[found.rows].mean() - shares @ values)) > bound  # without it, biased
    assert found.weights.max() <= 1 / uniform + 1e-9


def test_no_group_counts_more_than_its_share() -> None:
    groups = ["a"] * 90 + ["b"] * 5 + ["c"] * 3 + ["d"] * 2
    found = capped(np.ones(100), groups, 0.3)
    sums = {g: float(sum(w for w, h in zip(found, groups, strict=True) if g == h)) for g in "abcd"}
    assert sums["a"] == pytest.approx(0.3)
    assert sums["b"] == pytest.approx(0.3)
    assert sums["c"] / sums["d"] == pytest.approx(1.5)
    assert sum(sums.values()) == pytest.approx(1)
    assert capped(np.ones(4), ["x"] * 4, 0.1) == pytest.approx(0.25)  # alone: all of it
    with pytest.raises(ValueError, match="no weight"):
        capped(np.zeros(2), ["a", "b"], 0.5)


def test_tenants_and_users_hold_no_more_than_their_share() -> None:
    buffer = Buffer(100, 0.5, CapsSection(tenant_share=0.25, user_share=0.1), 0)
    for number in range(1000):
        tenant = "loud" if number % 10 else f"t{number % 7}"
        buffer.add(lesson(number, tenant, f"u{number % 3}" if tenant == "loud" else f"v{number}"))
    held = Counter(one.lesson.tenant for one in buffer.items)
    assert held["loud"] <= 25
    assert max(Counter(one.lesson.whose for one in buffer.items).values()) <= 10
    assert len(buffer.drop(lambda one: one.tenant == "loud")) == held["loud"]
    again = Buffer(100, 0.5, FREE, 0, items=buffer.items, seen=buffer.seen, passed=buffer.passed)
    assert again.items == buffer.items


def test_the_tenant_that_disagrees_far_more_is_suspected_and_others_rarely() -> None:
    section = TrustSection()
    rng = np.random.default_rng(0)
    false = found = 0
    for _ in range(300):
        tallies = {f"t{n}": Tally(rows=60, against=rng.binomial(60, 0.2)) for n in range(8)}
        false += any(one.state == "suspected" for one in judge(tallies, section).values())
        tallies["bad"] = Tally(rows=60, against=rng.binomial(60, 0.9))
        tallies["new"] = Tally(rows=5, against=5)
        states = {name: one.state for name, one in judge(tallies, section).items()}
        found += states["bad"] == "suspected"
        assert states["new"] == "new"
    # alpha = 0.01 over 300 families: more than 10 by chance has probability below 0.001.
    assert false <= 10
    assert found == 300


def test_the_guard_errs_at_its_rate() -> None:
    """A version that is worse by just the tolerance passes at most 10% of the time (confidence
    0.9); 400 runs: 60 is above the mean of 40 by more than three standard errors of 6."""
    section = GuardSection(tolerance=0.05, confidence=0.9, least=10)
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        live = rng.random(200) < 0.8
        draws = rng.random(200)
        new = np.where(live, draws >= 0.1, draws < 0.15)  # 0.8*0.1 lost, 0.2*0.15 won: -0.05
        answer = check(live.astype(float), new.astype(float), section).answer
        passed += answer == "accept"
    assert passed <= 60
    same = np.ones(200)
    assert check(same, same, section).answer == "accept"
    assert check(same, same * 0, section).answer == "refuse"
    forgets = check(same, same, section, (np.ones(200), np.zeros(200)))
    assert forgets.answer == "refuse"
    with pytest.raises(UserError, match="guard set is empty"):
        check([], [], section)
