"""Beliefs against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.beliefs import class_probabilities, from_token_logprobs
from stillhouse.core.records import Completion, TokenLogprob
from stillhouse.core.tasks import ClassificationTask

TASK = ClassificationTask(kind="classification", labels=("fresh", "rotten"))


def said(text: str, **more: object) -> Completion:
    return Completion(query_id="q", text=text, model="m", revision="r", **more)  # type: ignore[arg-type]


def token(chosen: str, **top: float) -> TokenLogprob:
    """A token with alternatives and their probabilities; `_` stands for a space."""
    probabilities = {name.replace("_", " "): p for name, p in top.items()}
    return TokenLogprob(
        token=chosen,
        logprob=math.log(probabilities[chosen]),
        top=tuple((name, math.log(p)) for name, p in probabilities.items()),
    )


def test_white_box_likelihoods_are_normalised() -> None:
    answer = said("fresh", label_logprobs={"fresh": math.log(0.6), "rotten": math.log(0.2)})
    for signals in ("auto", "logprobs"):
        assert class_probabilities(TASK, [answer], signals) == pytest.approx((0.75, 0.25))
    assert class_probabilities(TASK, [answer], "none") is None


def test_first_token_alternatives_fold_case_space_and_quotes() -> None:
    tokens = [token("fresh", fresh=0.5, _Fresh=0.1, rot=0.2, The=0.1)]
    answer = said("fresh", logprobs=tuple(tokens))
    assert class_probabilities(TASK, [answer], "auto") == pytest.approx((0.6 / 0.8, 0.2 / 0.8))


def test_a_quote_before_the_label_is_walked_over() -> None:
    tokens = [token('"', **{'"': 0.9, "fresh": 0.1}), token("rot", rot=0.8, fresh=0.2)]
    assert from_token_logprobs(TASK.labels, tokens) == pytest.approx((0.2, 0.8))


def test_a_shared_beginning_is_resolved_at_the_next_token() -> None:
    labels = ("very good", "very bad", "neutral")
    tokens = [token("very", very=0.8, neutral=0.2), token(" bad", _bad=0.75, _good=0.25)]
    assert from_token_logprobs(labels, tokens) == pytest.approx((0.2, 0.6, 0.2))


def test_an_ambiguous_alternative_that_was_not_generated_is_shared_out_evenly() -> None:
    labels = ("very good", "very bad", "neutral")
    tokens = [token("neutral", neutral=0.6, very=0.4)]
    assert from_token_logprobs(labels, tokens) == pytest.approx((0.2, 0.2, 0.6))


def test_a_label_that_begins_another() -> None:
    labels = ("spam", "spam-like")
    ended = [token("spam", spam=1.0), token(".", **{".": 0.7, "-like": 0.3})]
    assert from_token_logprobs(labels, ended) == pytest.approx((0.7, 0.3))
    # The end of the answer is not among the logprobs: what was said stands.
    bare = from_token_logprobs(labels, [token("spam", spam=1.0)])
    assert bare is not None
    assert bare[0] == pytest.approx(1.0)


def test_a_label_outside_the_list_gets_the_documented_floor() -> None:
    # Listed 0.9 + 0.06, unlisted 0.04, one label missing: min(0.06, 0.04 / 1) = 0.04.
    tokens = [token("fresh", fresh=0.9, The=0.06)]
    assert from_token_logprobs(TASK.labels, tokens) == pytest.approx((0.9 / 0.94, 0.04 / 0.94))
    # Two missing share what is unlisted: min(0.8, 0.2 / 2) = 0.1 each.
    tokens = [token("a", a=0.8)]
    assert from_token_logprobs(("a", "b", "c"), tokens) == pytest.approx((0.8, 0.1, 0.1))
    # The least listed bounds it: min(0.01, 0.19) = 0.01.
    tokens = [token("a", a=0.8, the=0.01)]
    assert from_token_logprobs(("a", "b"), tokens) == pytest.approx((0.8 / 0.81, 0.01 / 0.81))


def test_unlikely_beyond_measure_is_not_an_error() -> None:
    tokens = [TokenLogprob(token="fresh", logprob=0.0, top=(("fresh", 0.0), ("rotten", -9999.0)))]
    found = from_token_logprobs(TASK.labels, tokens)
    assert found is not None
    assert found[0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [token("The", The=0.9, fresh=0.1)],
        [token(" ", _=1.0)],
        [token("freshly", freshly=1.0)],  # a longer word is not the label
    ],
)
def test_no_basis_gives_none(tokens: list[TokenLogprob]) -> None:
    assert from_token_logprobs(TASK.labels, tokens) is None


def test_votes_with_add_half() -> None:
    answers = [said("fresh"), said("Fresh."), said("rotten"), said("no idea")]
    # 2 and 1 of 3 readable votes: 2.5/4 and 1.5/4.
    for signals in ("auto", "samples"):
        assert class_probabilities(TASK, answers, signals) == pytest.approx((0.625, 0.375))
    three = ClassificationTask(kind="classification", labels=("a", "b", "c"))
    votes = [said("a")] * 4
    assert class_probabilities(three, votes, "samples") == pytest.approx(
        (4.5 / 5.5, 0.5 / 5.5, 0.5 / 5.5)
    )


def test_one_sample_without_logprobs_is_no_basis() -> None:
    assert class_probabilities(TASK, [said("fresh")], "auto") is None
    assert class_probabilities(TASK, [], "auto") is None
    assert class_probabilities(TASK, [said("fresh"), said("?")], "samples") is None
    assert class_probabilities(TASK, [said("fresh"), said("fresh")], "logprobs") is None


LABELS = st.lists(
    st.text("abc -", min_size=1, max_size=5).map(str.strip).filter(bool),
    min_size=2,
    max_size=4,
    unique=True,
)
TOKENS = st.lists(
    st.builds(
        lambda texts, chosen: TokenLogprob(
            token=texts[chosen % len(texts)],
            logprob=-float(chosen % len(texts)) - 0.5,
            top=tuple((text, -float(rank) - 0.5) for rank, text in enumerate(texts)),
        ),
        st.lists(st.text('abc "-.', min_size=1, max_size=3), min_size=1, max_size=5, unique=True),
        st.integers(0, 9),
    ),
    max_size=5,
)


@settings(deadline=None)
@given(LABELS, TOKENS)
def test_any_tokens_give_a_distribution_or_none(
    labels: list[str], tokens: list[TokenLogprob]
) -> None:
    found = from_token_logprobs(labels, tokens)
    if found is not None:
        assert len(found) == len(labels)
        assert math.fsum(found) == pytest.approx(1.0)
        assert all(0.0 <= p <= 1.0 for p in found)


THREE = ClassificationTask(kind="classification", labels=("positive", "negative", "neutral"))


@pytest.mark.parametrize(
    "values", [{}, {"fresh": -math.inf}, {"fresh": math.nan}, {"fresh": -1.0, "rotten": math.nan}]
)
def test_likelihoods_that_say_nothing_are_no_basis(values: dict[str, float]) -> None:
    assert class_probabilities(TASK, [said("fresh", label_logprobs=values)], "logprobs") is None


def test_a_label_without_likelihood_gets_none_of_the_mass() -> None:
    answer = said("fresh", label_logprobs={"fresh": -1.0, "rotten": -math.inf})
    assert class_probabilities(TASK, [answer], "logprobs") == (1.0, 0.0)


def test_likelihoods_come_before_tokens_and_tokens_before_votes() -> None:
    tokens = (token("rotten", rotten=0.9, fresh=0.1),)
    white = [said("rotten", label_logprobs={"fresh": 0.0}, logprobs=tokens), said("rotten")]
    assert class_probabilities(TASK, white, "auto") == (1.0, 0.0)
    with_tokens = [said("fresh"), said("fresh", logprobs=tokens)]
    assert class_probabilities(TASK, with_tokens, "auto") == pytest.approx((0.1, 0.9))
    by_vote = class_probabilities(TASK, white, "samples")
    assert by_vote is not None
    assert by_vote[1] > by_vote[0]


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 0), min_size=3, max_size=3))
def test_likelihoods_are_a_distribution_in_the_order_of_the_labels(scores: list[float]) -> None:
    named = dict(reversed(list(zip(THREE.labels, scores, strict=True))))
    found = class_probabilities(THREE, [said("x", label_logprobs=named)], "auto")
    assert found is not None
    assert math.isclose(math.fsum(found), 1.0, abs_tol=1e-12)
    top = max(scores)
    naive = [math.exp(s - top) / sum(math.exp(t - top) for t in scores) for s in scores]
    assert found == pytest.approx(tuple(naive), abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*THREE.labels, "what?"]), min_size=2, max_size=30))
def test_votes_are_a_distribution_without_zeros(texts: list[str]) -> None:
    found = class_probabilities(THREE, [said(text) for text in texts], "samples")
    readable = [text for text in texts if text in THREE.labels]
    if len(readable) < 2:
        assert found is None
        return
    assert found is not None
    assert math.isclose(math.fsum(found), 1.0)
    assert min(found) > 0
    ranked = [(readable.count(label), p) for label, p in zip(THREE.labels, found, strict=True)]
    for count, probability in ranked:
        for other_count, other_probability in ranked:
            assert (count > other_count) == (probability > other_probability)
