"""Scorers against naive references and identities."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.overlap import lcs_length, rouge_l
from stillhouse.core.scorers import (
    exact_object,
    field_f1,
    label_match,
    scorers_for,
    token_f1,
)
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask

LABELS = ClassificationTask(kind="classification", labels=("fresh", "rotten"))
ADDRESS = ExtractionTask(
    kind="extraction",
    json_schema={
        "type": "object",
        "properties": {
            "street": {"type": "string"},
            "number": {"type": ["number", "null"]},
            "tags": {"type": "array"},
        },
    },
)
words = st.lists(st.sampled_from("abcd"), max_size=12)


def naive_lcs(a: list[str], b: list[str]) -> int:
    """Longest of all subsequences of `a` that are one of `b`."""

    def inside(part: tuple[str, ...]) -> bool:
        rest = iter(b)
        return all(item in rest for item in part)

    return max(n for n in range(len(a) + 1) for part in combinations(a, n) if inside(part))


@given(words, words)
@settings(max_examples=60)
def test_lcs_equals_the_definition(a: list[str], b: list[str]) -> None:
    a = a[:9]
    assert lcs_length(a, b) == naive_lcs(a, b)
    assert lcs_length(a, b) == lcs_length(b, a)


@given(st.lists(st.sampled_from("abcdef"), max_size=150), st.lists(st.sampled_from("abcdef")))
def test_lcs_of_long_texts_equals_the_recursion(a: list[str], b: list[str]) -> None:
    @cache
    def table(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if a[i - 1] == b[j - 1]:
            return table(i - 1, j - 1) + 1
        return max(table(i - 1, j), table(i, j - 1))

    expected = 0
    for i in range(len(a) + 1):  # rising, so that the recursion stays shallow
        for j in range(len(b) + 1):
            expected = table(i, j)
    assert lcs_length(a, b) == expected


def test_rouge_l_of_lins_example() -> None:
    """Lin (2004), section 3: LCS 3 of 4 words each, 2 of 4 for the third sentence."""
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(0.5)


def test_rouge_l_weighs_both_lengths() -> None:
    assert rouge_l("a b c d", "a b") == pytest.approx(2 * 2 / 6)
    assert rouge_l("The CAT, sat.", "the cat sat") == 1.0
    assert rouge_l("", "x") == 0.0
    assert rouge_l("!", "...") == 1.0


@given(st.text(max_size=60), st.text(max_size=60))
def test_text_scores_are_symmetric_shares_and_1_for_equals(a: str, b: str) -> None:
    for score in (rouge_l, token_f1):
        assert 0 <= score(a, b) <= 1
        assert score(a, b) == pytest.approx(score(b, a))
        assert score(a, a) == 1.0
    assert rouge_l(a, b) <= token_f1(a, b) + 1e-12, "a subsequence is a part of the multiset"


def test_labels_match_as_the_task_reads_them() -> None:
    assert label_match(LABELS, " Fresh. ", "fresh") == 1.0
    assert label_match(LABELS, "rotten", "fresh") == 0.0
    assert label_match(LABELS, "no idea", "no idea") == 0.0


def test_extraction_counts_fields() -> None:
    truth = '{"street": "Elm", "number": 12, "tags": ["a", "b"]}'
    assert exact_object(ADDRESS, truth, truth) == 1.0
    assert (
        exact_object(ADDRESS, '{"number": 12.0, "tags": ["a", "b"], "street": " Elm"}', truth) == 1
    )
    assert exact_object(ADDRESS, '{"street": "Elm", "number": 12, "tags": ["b", "a"]}', truth) == 0
    assert field_f1(ADDRESS, '{"street": "Elm", "number": 12, "tags": ["b", "a"]}', truth) == 1.0
    # Right: street, number. Found 3, wanted 4.
    wrong_tag = '{"street": "Elm", "number": 12, "tags": ["z"]}'
    assert field_f1(ADDRESS, wrong_tag, truth) == pytest.approx(2 * 2 / 7)
    assert field_f1(ADDRESS, "{}", truth) == 0.0
    assert field_f1(ADDRESS, "not json", truth) == 0.0
    assert exact_object(ADDRESS, "not json", truth) == 0.0
    assert field_f1(ADDRESS, '{"number": null}', "{}") == 1.0
    assert exact_object(ADDRESS, '{"tags": [true]}', '{"tags": [1]}') == 0.0


def test_each_kind_has_its_deciding_scorer() -> None:
    assert [s.name for s in scorers_for(LABELS)] == ["accuracy"]
    assert [s.name for s in scorers_for(ADDRESS)] == ["field_f1", "exact_object"]
    assert [s.name for s in scorers_for(GenerationTask(kind="generation"))] == [
        "rouge_l",
        "token_f1",
    ]
    for task, answer in ((LABELS, "fresh"), (ADDRESS, '{"street": "x"}')):
        assert all(s.score(answer, answer) == 1.0 for s in scorers_for(task))
