"""Templates: the fixed text comes back exactly, and what users happen to write alike does not."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.traffic.template import FREE, Template, find_templates, fitting

_WORDS = "red blue green stone river house light window garden letter winter paper"
WORDS = _WORDS.split()


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for _ in range(count)]


def wrapped(head: str, tail: str, count: int = 200, seed: int = 0) -> list[str]:
    return [head + text + tail for text in texts(count, seed)]


def test_head_and_tail_come_back_exactly() -> None:
    head, tail = "Classify the review.\n\nReview: ", "\n\nSentiment:"
    assert find_templates(wrapped(head, tail)) == [Template(head, tail), FREE]


def test_several_templates_in_one_place() -> None:
    planted = [
        Template("Summarise in one sentence:\n\n", ""),
        Template("Translate to French: ", ""),
        Template("Translate to German: ", ""),
        Template("", "\n\nIs the text above in English? Answer yes or no."),
        Template("Text: <<<", ">>>\nAnswer:"),
    ]
    lines = [
        text
        for seed, template in enumerate(planted)
        for text in wrapped(template.head, template.tail, 150, seed)
    ]
    found = find_templates(lines + texts(200, 99))
    assert set(found) == {*planted, FREE}
    for template in planted:
        sample = wrapped(template.head, template.tail, 5, 7)
        assert {found[fitting(found, text)] for text in sample} == {template}
        assert [template.slot(text) for text in sample] == texts(5, 7)


def test_texts_that_begin_alike_by_chance_are_free() -> None:
    assert find_templates([f"The {text}" for text in texts(300)]) == [FREE]
    assert find_templates(texts(300)) == [FREE]


def test_a_few_deviating_lines_do_not_shorten_a_template() -> None:
    head = "Extract the order from this message:\n"
    noise = [f"Extract the {text}" for text in texts(8, 5)]
    assert Template(head, "") in find_templates(wrapped(head, "") + noise)


def test_repeats_do_not_make_a_text_a_template() -> None:
    assert find_templates(["Say hello to everybody in the house today."] * 500 + texts(50)) == [
        FREE
    ]


def test_a_word_is_never_cut() -> None:
    head = "Please answer the question: "
    found = find_templates([head + word for word in ("stone", "stair")] + wrapped(head, "", 100))
    assert found[0].head == head


def test_placeholders_are_not_fixed_text() -> None:
    lines = [f"{text}. Please write back to <EMAIL_1> soon." for text in texts(200)]
    assert find_templates(lines)[0] == Template("", " soon.") or find_templates(lines) == [FREE]


def test_little_text_is_free() -> None:
    assert find_templates([]) == [FREE]
    assert find_templates(["one", "two"]) == [FREE]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=60), st.text(max_size=40), st.text(max_size=20))
def test_every_text_fits_something_and_comes_back_whole(
    parts: list[str], head: str, tail: str
) -> None:
    lines = [head + part + tail for part in parts]
    found = find_templates(lines, least=3)
    assert found[-1] == FREE
    for line in lines:
        template = found[fitting(found, line)]
        assert template.head + template.slot(line) + template.tail == line


@settings(max_examples=30, deadline=None)
@given(
    st.text(alphabet="abcdefgh XYZ,.", min_size=10, max_size=60),
    st.text(alphabet="abcdefgh XYZ,.", max_size=40),
)
def test_any_instruction_that_ends_as_one_is_found(head: str, tail: str) -> None:
    head, tail = f"Task {head}:\n", f"\n{tail} answer:"
    assert find_templates(wrapped(head, tail))[0] == Template(head, tail)
