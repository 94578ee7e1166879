"""The judge: blind prompts, both orders, strict reading, doubles with known errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import judge_doubles as doubles
from stillhouse.core.errors import TeacherError
from stillhouse.core.records import Completion, Message, Query, TokenLogprob
from stillhouse.core.tasks import ClassificationTask, ExtractionTask, GenerationTask, Task
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.fake import FakeCompleter
from stillhouse.models.judge import (
    Answer,
    Judge,
    JudgeForm,
    Pair,
    completer_asker,
    win_shares,
)
from stillhouse.models.judge_prompts import choice_query, read_choice, read_score, score_query

FREE = GenerationTask(kind="generation", prompt="Summarise: {text}", system="Be brief.")
LABELS = ClassificationTask(kind="classification", labels=("bug", "billing"))
FIELDS = ExtractionTask(
    kind="extraction", json_schema={"type": "object", "properties": {"n": {"type": "integer"}}}
)


def query(text: str = "a long text", task: Task = FREE) -> Query:
    return Query(id="q", messages=task.messages_for(text))


def said(text: str, **more: Any) -> Completion:
    return Completion(query_id="q", text=text, model="m", revision="r", **more)


def judge(completer: FakeCompleter, task: Task = FREE, **form: Any) -> Judge:
    return Judge(completer_asker(completer), completer.info, JudgeForm(task, **form))


# --- prompts --------------------------------------------------------------------------------------


def test_a_prompt_holds_task_and_answers_and_no_name() -> None:
    asked = choice_query(FREE, query(), ("one", "two"), "Facts count.", explain=False)
    text = asked.last_user_text
    task, first, second = doubles.material(text)
    assert task == "[system] Be brief.\n[user] Summarise: a long text"
    assert (first, second) == ("one", "two")
    assert "Facts count." in text
    assert text.endswith("Answer with A, B or tie and nothing else.")
    assert len(asked.messages) == 1


def test_the_form_of_the_answer_is_told() -> None:
    labels = score_query(LABELS, query(task=LABELS), "bug", None, explain=False)
    assert "exactly one of: bug, billing" in labels.last_user_text
    fields = score_query(FIELDS, query(task=FIELDS), "{}", None, explain=False)
    assert '"type": "integer"' in fields.last_user_text


@given(st.text(max_size=80), st.text(max_size=80))
def test_what_is_judged_cannot_leave_its_place(answer: str, text: str) -> None:
    asked = score_query(FREE, query(text + "-----0a1b2c3d-----"), answer, None, explain=False)
    marker = asked.last_user_text.split("\n\n")[0].partition("lines of ")[2].split(" ")[0]
    # The head names it once, the task and the answer stand between two lines each.
    assert asked.last_user_text.count(marker) == 5


def test_equal_questions_have_equal_ids_and_orders_do_not() -> None:
    ab, ba, again = (
        choice_query(FREE, query(), pair, None, explain=False)
        for pair in (("a", "b"), ("b", "a"), ("a", "b"))
    )
    assert ab.id == again.id != ba.id


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4),
        (" 5.\n", 5),
        ("Score: 3", 3),
        ("2/5", 2),
        ("**1**", 1),
        ("0", None),
        ("6", None),
        ("4 because it is short", None),
        ("I would say 4", None),
        ("3 or 4", None),
        ("10", None),
        ("", None),
    ],
)
def test_scores_are_read_strictly(text: str, score: int | None) -> None:
    assert read_score(said(text), explain=False) == score


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("A", "first"),
        ("b.", "second"),
        ("Tie", "tie"),
        ("Verdict: B", "second"),
        ("A is better", None),
        ("Both", None),
        ("A and B", None),
    ],
)
def test_choices_are_read_strictly(text: str, place: str | None) -> None:
    assert read_choice(said(text), explain=False) == place


def test_with_reasons_only_the_last_line_counts() -> None:
    assert read_score(said("Score: 1 would be harsh.\nIt is fine.\nScore: 4"), explain=True) == 4
    assert read_score(said("It is a 4"), explain=True) is None
    assert read_score(said("4"), explain=True) is None
    assert read_choice(said("A is good.\n\n**Verdict: B**"), explain=True) == "second"
    cut = said("A long thought\nScore: 4", finish_reason="length")
    assert read_score(cut, explain=True) is None


def test_a_refusal_is_no_verdict() -> None:
    assert read_score(said("4", finish_reason="content_filter"), explain=False) is None


# --- judging --------------------------------------------------------------------------------------


def test_scores_of_a_perfect_judge() -> None:
    answers = [Answer(query(), "right"), Answer(query(), "wrong"), Answer(query(), "right")]
    completer = doubles.double(doubles.perfect)
    assert asyncio.run(judge(completer).score(answers)) == [5, 1, 5]
    assert len(completer.asked) == 2, "equal questions are asked once"


def test_both_orders_are_asked_and_a_perfect_judge_follows_the_answer() -> None:
    completer = doubles.double(doubles.perfect)
    pairs = [Pair(query(), "right 1", "wrong"), Pair(query(), "wrong", "right 2")]
    assert asyncio.run(judge(completer).compare(pairs)) == ["first", "second"]
    assert len(completer.asked) == 4


def test_equal_texts_tie_without_asking() -> None:
    completer = doubles.double(doubles.perfect)
    assert asyncio.run(judge(completer).compare([Pair(query(), "same", " same\n")])) == ["tie"]
    assert completer.asked == []


@pytest.mark.parametrize(
    ("word", "outcome"),
    [("A", "followed_first"), ("B", "followed_second"), ("tie", "tie"), ("hm", "unreadable")],
)
def test_a_judge_that_always_says_one_thing(word: str, outcome: str) -> None:
    found = asyncio.run(
        judge(doubles.double(doubles.always(word))).compare([Pair(query(), "right", "wrong")])
    )
    assert found == [outcome]


def test_the_expected_score_where_logprobs_can_be_read() -> None:
    class Open(FakeCompleter):
        @property
        def info(self) -> ModelInfo:
            return ModelInfo("open", "r", gives_logprobs=True)

        async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
            assert sampling.logprobs == 20
            top = tuple((str(k), math.log(p)) for k, p in ((4, 0.5), (5, 0.25), (3, 0.25)))
            token = TokenLogprob(token="4", logprob=math.log(0.5), top=top)
            return [said("4", logprobs=(token,))]

    found = asyncio.run(judge(Open()).score([Answer(query(), "x")]))
    # 0.5 * 4 + 0.25 * 5 + 0.25 * 3; the labels not listed have next to nothing.
    assert found == [pytest.approx(4.0, abs=1e-3)]


def test_likelihoods_of_a_local_judge_give_the_expected_score() -> None:
    probabilities = dict(zip("12345", (0.1, 0.1, 0.1, 0.3, 0.4), strict=True))

    def belief(_: Query) -> dict[str, float]:
        return {k: math.log(p) for k, p in probabilities.items()}

    completer = FakeCompleter(answer=lambda q, s: "5", belief=belief)
    found = asyncio.run(judge(completer).score([Answer(query(), "x")]))
    assert found == [pytest.approx(sum(int(k) * p for k, p in probabilities.items()), abs=1e-4)]
    plain = asyncio.run(
        judge(
            FakeCompleter(answer=lambda q, s: "Fine.\nScore: 5", belief=belief), explain=True
        ).score([Answer(query(), "x")])
    )
    assert plain == [5]


def test_no_answer_is_no_verdict() -> None:
    class Dead(FakeCompleter):
        async def complete(self, query: Query, sampling: Sampling) -> Sequence[Completion]:
            raise TeacherError("down")

    assert asyncio.run(judge(Dead()).score([Answer(query(), "x")])) == [None]
    assert asyncio.run(judge(Dead()).compare([Pair(query(), "x", "y")])) == ["unreadable"]


def test_a_judge_works_through_any_function_that_asks() -> None:
    seen: list[tuple[int, Sampling]] = []

    async def ask(queries: Sequence[Query], sampling: Sampling) -> Mapping[str, list[Completion]]:
        seen.append((len(queries), sampling))
        return {q.id: [said("3")] for q in queries}

    info = ModelInfo("m", "r")
    form = JudgeForm(FREE, sampling_temperature=0.5, max_tokens=9, seed=4)
    assert asyncio.run(Judge(ask, info, form).score([Answer(query(), "x")])) == [3]
    ((count, sampling),) = seen
    assert (count, sampling.n, sampling.max_tokens, sampling.seed) == (1, 1, 9, 4)
    assert sampling.labels == ("1", "2", "3", "4", "5")


def test_win_shares() -> None:
    outcomes: Any = {(0, 1): "first", (0, 2): "followed_first", (1, 2): "unreadable"}
    assert win_shares(outcomes, 4) == [0.75, 0.0, 0.5, None]


def test_messages_of_the_query_are_all_shown() -> None:
    turns = Query(
        id="q",
        messages=(
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Yes?"),
            Message(role="user", content="Go on"),
        ),
    )
    asked = score_query(FREE, turns, "x", None, explain=False)
    assert doubles.material(asked.last_user_text)[0] == (
        "[user] Hello\n[assistant] Yes?\n[user] Go on"
    )
