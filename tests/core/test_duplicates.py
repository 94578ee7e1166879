"""Duplicates: true Jaccard similarity decides, in any order of the texts, at any speed needed."""

from __future__ import annotations

import random
import time
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core import duplicates
from stillhouse.core.duplicates import (
    bands_for,
    bare,
    groups_of,
    jaccard,
    matches,
    normalised,
    rarest,
    repeats,
    shingle_sets,
    shingles,
)

WORDS = [f"w{number}" for number in range(3000)]
SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
NEAR = SENTENCE + " fifteen"  # 12 shared shingles of 13: 0.92
FAR = SENTENCE.replace("seven", "7")  # 9 shared of 15: 0.6


def naive_similarity(left: str, right: str) -> float:
    """Straight from the definition, on word 3-shingles."""
    a, b = left.split(), right.split()
    one = {tuple(a[i : i + 3]) for i in range(len(a) - 2)}
    two = {tuple(b[i : i + 3]) for i in range(len(b) - 2)}
    return len(one & two) / len(one | two)


def naive_groups(texts: list[str], threshold: float) -> set[frozenset[int]]:
    """Connected components, all pairs compared."""
    sets = [shingles(text) for text in texts]
    group = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            same = normalised(texts[i]) == normalised(texts[j])
            if same or (threshold < 1 and jaccard(sets[i], sets[j]) >= threshold):
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return {frozenset(k for k, g in enumerate(group) if g == name) for name in group}


def parts(ids: list[str]) -> set[frozenset[int]]:
    return {frozenset(k for k, i in enumerate(ids) if i == name) for name in ids}


TEXTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=0, max_size=9).map(" ".join),
    min_size=1,
    max_size=14,
)


# Bands may miss a pair just at the threshold, once in a thousand. At this much above it the chance
# is below 1e-12 for the thresholds used here, so that the tests below never fail by it.
SURELY = 0.25


@settings(deadline=None)
@given(TEXTS, st.sampled_from([0.4, 0.7, 0.85, 1.0]))
def test_groups_lie_between_those_of_the_naive_reference(
    texts: list[str], threshold: float
) -> None:
    found = parts(groups_of(texts, threshold))
    surely = naive_groups(texts, min(1.0, threshold + SURELY))
    assert all(any(inner <= group for group in found) for inner in surely)
    assert all(any(group <= outer for outer in naive_groups(texts, threshold)) for group in found)


@settings(deadline=None)
@given(TEXTS, st.randoms(use_true_random=False), st.sampled_from([0.5, 0.85]))
def test_group_ids_do_not_depend_on_order(
    texts: list[str], shuffler: random.Random, threshold: float
) -> None:
    expected = dict(zip(texts, groups_of(texts, threshold), strict=True))
    shuffled = texts[:]
    shuffler.shuffle(shuffled)
    assert dict(zip(shuffled, groups_of(shuffled, threshold), strict=True)) == expected


def test_a_group_has_one_id_whichever_member_comes_first() -> None:
    texts = [NEAR, SENTENCE, NEAR + " sixteen", FAR]
    expected = dict(zip(texts, groups_of(texts, 0.85), strict=True))
    assert len(set(expected.values())) == 2
    assert groups_of(texts[::-1], 0.85) == [expected[text] for text in texts[::-1]]


@settings(deadline=None)
@given(st.lists(st.text(st.characters()), max_size=8), st.sampled_from([0.3, 0.85, 1.0]))
def test_any_texts_are_grouped(texts: list[str], threshold: float) -> None:
    ids = groups_of(texts, threshold)
    assert len(ids) == len(texts)
    by_text: dict[str, set[str]] = {}
    for text, group in zip(texts, ids, strict=True):
        by_text.setdefault(normalised(text), set()).add(group)
    assert all(len(found) == 1 for found in by_text.values())


def test_similarity_is_that_of_word_shingles() -> None:
    for other in (NEAR, FAR):
        found = jaccard(shingles(SENTENCE), shingles(other))
        assert found == pytest.approx(naive_similarity(SENTENCE, other))
    assert parts(groups_of([SENTENCE, NEAR, FAR], 0.85)) == {frozenset({0, 1}), frozenset({2})}
    assert len(set(groups_of([SENTENCE, NEAR, FAR], 0.6))) == 1


def test_case_space_and_unicode_form_do_not_matter() -> None:
    texts = ["Café  au\nlait", "cafe\u0301 au LAIT", "ＣＡＦÉ au lait"]
    assert len(set(groups_of(texts, 1.0))) == 1


@pytest.mark.parametrize(("left", "right"), [("good film", "bad film"), ("ok", "no"), ("", "!")])
def test_short_texts_are_told_apart(left: str, right: str) -> None:
    assert len(set(groups_of([left, right], 0.85))) == 2


def test_a_threshold_of_one_leaves_near_duplicates_alone() -> None:
    assert len(set(groups_of([SENTENCE, NEAR], 1.0))) == 2
    assert len(set(groups_of([SENTENCE, "a b c a b c", "a b c a b c a"], 1.0))) == 3


def test_a_long_instruction_around_short_texts_does_not_make_them_alike() -> None:
    instruction = " ".join(WORDS[:200])
    texts = [f"{instruction} the film number {i} was {w}" for i, w in enumerate(WORDS[300:400])]
    assert jaccard(shingles(texts[0]), shingles(texts[1])) > 0.85
    assert len(set(groups_of(texts, 0.85))) == len(texts)
    assert len(set(groups_of([*texts, texts[0] + " "], 0.85))) == len(texts)


def test_texts_that_are_all_boilerplate_keep_their_shingles() -> None:
    texts = [SENTENCE, *(f"{SENTENCE} {word} {word}x {word}y" for word in WORDS[:40])]
    assert shingle_sets(texts)[0] == shingles(SENTENCE)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.85, 0.95])
def test_bands_miss_a_pair_at_the_threshold_once_in_a_thousand(threshold: float) -> None:
    layout = bands_for(threshold)
    assert layout.bands * layout.rows <= 128
    assert (1 - threshold**layout.rows) ** layout.bands <= 1e-3


def test_near_pairs_are_found_among_many() -> None:
    shuffler = random.Random(0)
    base = [" ".join(shuffler.choices(WORDS, k=30)) for _ in range(400)]
    near = [text + " more" for text in base]  # 28 of 29 shingles shared
    ids = groups_of(base + near, 0.85)
    # Each pair is missed with chance far below 1e-3 (similarity 0.97): all are found.
    assert ids[:400] == ids[400:]
    assert len(set(ids)) == 400


def test_repeats_keep_the_first_of_each_answer() -> None:
    texts = [SENTENCE, NEAR, NEAR + " sixteen", FAR, SENTENCE.upper()]
    answers = ["a", "b", "a", "a", "a"]
    found = repeats(texts, answers, groups_of(texts, 0.8), 0.8)
    assert found == {2: 0, 4: 0}


def test_repeats_compare_with_texts_that_stay_only() -> None:
    # A chain: each is near the next, the ends are not near each other.
    words = WORDS[:40]
    chain = [" ".join(words[i : i + 30]) for i in range(0, 10, 2)]
    ids = groups_of(chain, 0.85)
    assert len(set(ids)) == 1
    found = repeats(chain, ["a"] * 5, ids, 0.85)
    assert all(naive_similarity(chain[index], chain[kept]) >= 0.85 for index, kept in found.items())
    staying = [i for i in range(5) if i not in found]
    assert len(staying) > 1
    assert all(
        naive_similarity(chain[i], chain[j]) < 0.85 for i in staying for j in staying if i < j
    )


@settings(deadline=None)
@given(TEXTS, TEXTS, st.sampled_from([0.4, 0.85, 1.0]))
def test_matches_lie_between_those_of_the_naive_reference(
    texts: list[str], others: list[str], threshold: float
) -> None:
    texts, others = texts[:8], others[:8]  # from 20 texts on, common shingles are left out

    def alike(left: str, right: str, least: float) -> bool:
        if normalised(left) == normalised(right):
            return True
        return least < 1 and jaccard(shingles(left), shingles(right)) >= least

    found = matches(texts, others, threshold)
    assert all(alike(texts[i], others[j], threshold) for i, j in found.items())
    for i, text in enumerate(texts):
        if any(alike(text, other, min(1.0, threshold + SURELY)) for other in others):
            assert i in found
        if text in others:
            assert found[i] <= others.index(text)


@settings(deadline=None)
@given(
    st.lists(st.frozensets(st.integers(0, 12), min_size=1, max_size=12), min_size=2, max_size=12),
    st.floats(0.05, 1.0),
)
def test_near_sets_always_share_a_rare_shingle(
    sets: list[frozenset[int]], threshold: float
) -> None:
    found = rarest(sets, threshold)
    for small, large in permutations(range(len(sets)), 2):
        if len(sets[small]) <= len(sets[large]):
            if jaccard(sets[small], sets[large]) >= threshold:
                assert found[small].few & found[large].more


@settings(deadline=None)
@given(TEXTS, st.sampled_from([0.4, 0.7, 0.85, 1.0]), st.data())
def test_repeats_are_those_of_a_plain_loop(
    texts: list[str], threshold: float, data: st.DataObject
) -> None:
    answers = data.draw(st.lists(st.sampled_from("ab"), min_size=len(texts), max_size=len(texts)))
    groups = groups_of(texts, threshold)
    expected: dict[int, int] = {}
    for i, text in enumerate(texts):
        for j in range(i):
            if j in expected or (answers[j], groups[j]) != (answers[i], groups[i]):
                continue
            if normalised(text) == normalised(texts[j]) or (
                threshold < 1 and jaccard(shingles(text), shingles(texts[j])) >= threshold
            ):
                expected[i] = j
                break
    assert repeats(texts, answers, groups, threshold) == expected


def test_texts_that_share_a_form_alone_are_hardly_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shuffler = random.Random(2)
    form = " ".join(f"form{number}" for number in range(24))
    # Less than half of the texts, so that the form's shingles are not left out.
    texts = [f"{form} {' '.join(shuffler.choices(WORDS, k=3))}" for _ in range(400)]
    texts += [" ".join(shuffler.choices(WORDS, k=27)) for _ in range(600)]
    calls: list[int] = []

    def counted(left: frozenset[int], right: frozenset[int]) -> float:
        calls.append(1)
        return jaccard(left, right)

    monkeypatch.setattr(duplicates, "jaccard", counted)
    groups = groups_of(texts, 0.85)
    repeats(texts, ["a"] * len(texts), groups, 0.85)
    matches(texts[:200], texts[200:], 0.85)
    assert len(set(groups)) > 950
    assert len(calls) < 4 * len(texts), "80,000 pairs share the form"


def test_nothing_has_no_groups_and_no_matches() -> None:
    assert groups_of([], 0.85) == []
    assert matches([], ["a"], 0.85) == {}
    assert matches(["a"], [], 0.85) == {}


def test_ten_thousand_short_texts_take_seconds() -> None:
    shuffler = random.Random(1)
    texts = [" ".join(shuffler.choices(WORDS, k=18)) for _ in range(6000)]
    # A dense cluster of thousands is the hard case: all pairs of it would be eight million.
    stem = " ".join(WORDS[:40])
    texts += [f"{stem} {number}" for number in range(4000)]
    start = time.process_time()
    ids = groups_of(texts, 0.85)
    seconds = time.process_time() - start
    assert len(set(ids[6000:])) == 1
    assert len(set(ids)) == 6001
    assert seconds < 15


@pytest.mark.parametrize(
    ("text", "plain"), [("Great  Movie!", "great movie"), (" :) ", ":)"), ("it's", "it s")]
)
def test_bare_text_is_words_alone(text: str, plain: str) -> None:
    assert bare(text) == plain
