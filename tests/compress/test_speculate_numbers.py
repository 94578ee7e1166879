"""Speculative decoding in numbers: the equations, the counts, the tests and their error rates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.compress.speculate_counts import (
    PromptRounds,
    Round,
    acceptance,
    acceptance_by,
    rate_difference,
    rounds_of,
)
from stillhouse.compress.speculate_expect import (
    best_length,
    break_even_acceptance,
    break_even_cost,
    expected_speedup,
    expected_tokens,
    fit_cost,
    tokens_by_position,
)
from stillhouse.compress.speculate_speed import Timed, fastest, take_turns
from stillhouse.compress.speculate_tests import (
    Drawn,
    joined,
    leak_test,
    same_distribution,
    token_facts,
    uniform_test,
)

Floats = npt.NDArray[np.float64]
VOCABULARY = 12


@given(st.floats(0, 1), st.integers(0, 12))
def test_tokens_a_round_are_the_sum_of_the_chances_to_get_so_far(a: float, g: int) -> None:
    naive = sum(a**i for i in range(g + 1))
    assert expected_tokens(a, g) == pytest.approx(naive, rel=1e-9)
    assert tokens_by_position([a] * g) == pytest.approx(naive, rel=1e-9)


def test_the_formula_agrees_with_a_simulation() -> None:
    rng = np.random.default_rng(0)
    a, g, rounds = 0.7, 4, 40_000
    accepted = (rng.random((rounds, g)) < a).cumprod(1).sum(1)
    tokens = (accepted + 1).mean()
    # sd of a round is below g / 2: five standard errors
    assert tokens == pytest.approx(expected_tokens(a, g), abs=5 * (g / 2) / np.sqrt(rounds))


@given(st.floats(0.01, 0.9), st.integers(1, 10))
def test_break_even_is_where_the_speedup_is_one(cost: float, length: int) -> None:
    least = break_even_acceptance(length, cost)
    assert least is not None
    assert expected_speedup(least, length, cost) == pytest.approx(1.0, abs=1e-9)
    assert break_even_cost(least, length) == pytest.approx(cost, abs=1e-6)
    assert break_even_acceptance(1, cost) == pytest.approx(cost, abs=1e-9)


def test_no_acceptance_pays_for_a_draft_as_slow_as_its_target() -> None:
    assert break_even_acceptance(3, 1.5) is None
    assert best_length(0.9, 1.5, 8) == 0
    assert best_length(0.9, 0.05, 16) > best_length(0.5, 0.05, 16) > 0
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        expected_tokens(1.2, 2)


def test_the_cost_of_a_round_is_found_again() -> None:
    lengths = [1, 2, 4, 8]
    fitted = fit_cost(lengths, [1.3 + 0.2 * g for g in lengths])
    assert fitted == pytest.approx((1.3, 0.2))
    with pytest.raises(ValueError, match="two draft lengths"):
        fit_cost([2], [1.0])


def test_rounds_are_read_off_drafts_and_answer() -> None:
    drafts = [[1, 2, 9], [4, 5], [], [7, 8, 0]]
    answer = [1, 2, 3, 4, 5, 6, 10, 7, 8]
    rounds = rounds_of(drafts, answer)
    assert rounds == (Round(3, 2, 3), Round(2, 2, 3), Round(0, 0, 1), Round(3, 2, 2))
    # The last draft's third token was never compared: the answer had ended.
    assert [r.judged for r in rounds] == [3, 2, 0, 2]
    with pytest.raises(ValueError, match="account for"):
        rounds_of(drafts[:2], answer)


def prompt(name: str, *rounds: Round, task: str = "t") -> PromptRounds:
    return PromptRounds(name, name, task, None, rounds)


def test_rates_count_what_was_judged_and_differences_are_paired() -> None:
    a = [prompt("1", Round(2, 2, 3), Round(2, 0, 1)), prompt("2", Round(2, 1, 2), task="u")]
    found = acceptance(a)
    assert found is not None
    assert found.share.estimate == pytest.approx(3 / 6)
    assert found.rate.estimate == pytest.approx(3 / 5)
    assert found.tokens_a_pass.estimate == pytest.approx(2.0)
    assert [p.rate.estimate for p in found.positions] == pytest.approx([2 / 3, 1 / 2])
    assert found.rate.low <= found.rate.estimate <= found.rate.high
    assert set(acceptance_by(a, lambda p: p.task)) == {"t", "u"}
    same = rate_difference(a, a)
    assert same is not None
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    assert acceptance([prompt("1", Round(0, 0, 1))]) is None
    with pytest.raises(ValueError, match="same prompts"):
        rate_difference(a, a[:1])


def test_intervals_of_rates_hold_what_they_say() -> None:
    rng = np.random.default_rng(3)
    held, runs, truth = 0, 120, 0.6
    for _ in range(runs):
        prompts = []
        for name in range(40):
            own = np.clip(truth + rng.normal(0, 0.1), 0, 1)  # prompts differ
            hits = rng.random(6) < own
            prompts.append(prompt(str(name), *(Round(1, int(h), 1 + int(h)) for h in hits)))
        found = acceptance(prompts)
        assert found is not None
        held += found.rate.low <= truth <= found.rate.high
    # 95% of 120 is 114; fewer than 103 has probability below 1e-4 at 95%, and below 0.02 at 91%
    assert held >= 103


def test_ways_take_turns_and_the_fastest_is_chosen() -> None:
    order: list[str] = []

    def way(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def answer(number: int) -> Timed:
            order.append(name)
            return Timed(10, seconds, 5)

        return answer

    turns = take_turns({"alone": way("alone", 1.0), "draft": way("draft", 0.5)}, [0, 1], 1)
    assert order == ["alone", "draft", "alone", "draft", "draft", "alone"]
    assert fastest(turns, ["alone", "draft"]) == "draft"
    found = turns.speedup("draft", "alone", ["a", "b"], how=_how())
    assert found.estimate == pytest.approx(2.0)
    assert turns.tokens_a_pass("draft") == pytest.approx(2.0)
    with pytest.raises(ValueError, match="needs a way"):
        take_turns({}, [0], 1)


def _how():  # type: ignore[no-untyped-def]
    from stillhouse.compress.speculate_counts import DEFAULT

    return DEFAULT


# The tests of sampled text, on chains of which all is known: p and q depend on the token before.


def chains(seed: int, sharpness: float = 1.5) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, sharpness, (2, VOCABULARY, VOCABULARY))
    p, q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return p, 0.5 * p + 0.5 * q


def speculative(
    p: Floats, q: Floats, count: int, rng: np.random.Generator, *, fault: str = ""
) -> list[int]:
    """Algorithm 1 of Leviathan et al. 2023 with g = 1, or with a fault."""
    tokens = [0]
    while len(tokens) <= count:
        target, draft = p[tokens[-1]], q[tokens[-1]]
        x = int(rng.choice(VOCABULARY, p=draft))
        if fault == "accepts all" or rng.random() < min(1.0, target[x] / draft[x]):
            tokens.append(x)
            continue
        rest = target if fault == "draws again from p" else np.clip(target - draft, 0, None)
        tokens.append(int(rng.choice(VOCABULARY, p=rest / rest.sum())))
    return tokens[: count + 1]


def facts(tokens: list[int], p: Floats, q: Floats, seed: int) -> Drawn:
    before, after = np.array(tokens[:-1]), np.array(tokens[1:], dtype=np.int64)
    return token_facts(p[before], q[before], after, seed)


def test_a_sound_sampler_is_rejected_as_seldom_as_stated() -> None:
    rng = np.random.default_rng(5)
    low_leak = low_uniform = 0
    runs, level = 200, 0.05
    for run in range(runs):
        p, q = chains(run)
        drawn = facts(speculative(p, q, 150, rng), p, q, run)
        found = leak_test(drawn, level)
        assert found is not None
        low_leak += found.p_value < level
        low_uniform += uniform_test(drawn) < level
    # Binomial(200, 0.05): more than 22 has probability below 1e-3
    assert low_leak <= 22
    assert low_uniform <= 22


@pytest.mark.parametrize("fault", ["accepts all", "draws again from p"])
def test_a_broken_sampler_is_caught(fault: str) -> None:
    rng = np.random.default_rng(6)
    p, q = chains(1)
    drawn = joined([facts(speculative(p, q, 1000, rng, fault=fault), p, q, i) for i in range(3)])
    found = leak_test(drawn, 0.01)
    assert found is not None
    assert found.p_value < 1e-6
    assert found.leak > found.detectable / 2
    if fault == "accepts all":  # every token is the draft's
        assert found.leak == pytest.approx(1.0, abs=0.35)


def test_the_stated_power_is_reached() -> None:
    """At the share that is said to be found with 90%, it is found as often."""
    rng = np.random.default_rng(7)
    p, q = chains(2)
    tokens, level, runs = 400, 0.05, 200
    sound = leak_test(facts(speculative(p, q, tokens, rng), p, q, 0), level)
    assert sound is not None
    found = 0
    for run in range(runs):
        said = [0]
        for _ in range(tokens):
            row = q if rng.random() < sound.detectable else p
            said.append(int(rng.choice(VOCABULARY, p=row[said[-1]])))
        one = leak_test(facts(said, p, q, run), level)
        assert one is not None
        found += one.p_value < level
    # Binomial(200, 0.9): fewer than 163 has probability below 1e-3
    assert found >= 163


def test_models_that_agree_leave_nothing_to_leak() -> None:
    p, _ = chains(3)
    drawn = facts([0, 1, 2, 3], p, p, 0)
    assert leak_test(drawn, 0.01) is None


def test_whole_answers_are_compared_exactly() -> None:
    rng = np.random.default_rng(8)
    low = 0
    for run in range(100):
        a, b = (rng.choice(4, 60, p=[0.6, 0.2, 0.15, 0.05]).tolist() for _ in range(2))
        low += same_distribution(a, b, run) <= 0.05
    assert low <= 14  # Binomial(100, 0.05): more than 14 has probability below 1e-3
    b = rng.choice(4, 60, p=[0.2, 0.6, 0.15, 0.05]).tolist()
    assert same_distribution(rng.choice(4, 60, p=[0.6, 0.2, 0.15, 0.05]).tolist(), b) < 0.01
    with pytest.raises(ValueError, match="need an answer"):
        same_distribution([], [1])
