"""Provenance of examples: the filters named are those that were applied."""

from __future__ import annotations

from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Example, Message, Query, message_key
from stillhouse.dataset.checks import CHECKS
from stillhouse.dataset.provenance import filters_passed, with_provenance

BUILT_IN = tuple(name for name, _ in CHECKS)
CHAT = (Message(role="user", content="hello"),)


def example(number: int, readmitted: str | None = None) -> Example:
    return Example(
        id=f"q{number}",
        messages=(*CHAT, Message(role="assistant", content="yes")),
        task="t",
        group="g",
        teacher="m",
        teacher_revision="1",
        readmitted=readmitted,
    )


def test_only_filters_that_the_recipe_has_are_named() -> None:
    plain = filters_passed(DatasetSection(near_duplicate=1), golden=False, beliefs=False)
    assert plain == (*BUILT_IN, "duplicate")
    section = DatasetSection.model_validate(
        {
            "validators": {"must_match": ["a"], "language": "en", "function": "a.b:c"},
            "consistency": 0.5,
            "agreement": 0.5,
        }
    )
    assert filters_passed(section, golden=True, beliefs=True)[len(BUILT_IN) :] == (
        "must_match",
        "language",
        "validator",
        "consistency",
        "agreement",
        "no_belief",
        "contamination_golden",
        "duplicate",
        "near_duplicate",
    )


def test_what_brought_back_an_example_is_not_said_to_have_let_it_pass() -> None:
    queries = [Query(id="q0", messages=CHAT, user="ann"), Query(id="q1", messages=CHAT)]
    first, second = with_provenance(
        [example(0), example(1, "consistency")], queries, ("empty", "consistency"), "key"
    )
    assert first.filters == ("empty", "consistency")
    assert second.filters == ("empty",)
    assert first.prompt_hash == second.prompt_hash == message_key(CHAT)
    assert first.user not in (None, "ann")
    assert second.user is None


def test_no_filter_is_named_that_an_example_was_never_shown_to() -> None:
    section = DatasetSection.model_validate(
        {"consistency": 0.5, "agreement": 0.5, "judge": {"model": "openai:m", "gold": "g.jsonl"}}
    )
    filters = filters_passed(section, golden=False, beliefs=False)
    soft = ("consistency", "agreement", "judge")
    true_answer = example(4).model_copy(update={"reference": "yes"})
    examples = [example(0), *(example(i + 1, name) for i, name in enumerate(soft)), true_answer]
    queries = [Query(id=e.id, messages=CHAT) for e in examples]
    passed = [
        tuple(name for name in e.filters if name in soft)
        for e in with_provenance(examples, queries, filters, "key")
    ]
    # The selection stops at the first filter that rejects, and asks none of a true answer.
    assert passed == [soft, (), soft[:1], soft[:2], ()]


def test_a_judge_that_only_ranks_lets_nothing_pass() -> None:
    judge = {"model": "openai:m", "gold": "g.jsonl", "mode": "pairwise"}
    section = DatasetSection.model_validate({"best_of": "judge", "judge": judge})
    assert "judge" not in filters_passed(section, golden=False, beliefs=False)
