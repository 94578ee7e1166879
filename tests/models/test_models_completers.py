"""Local completers on tiny models: answers, likelihoods, draws, order, errors, overhead."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.records import Completion, Message, Query
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.chat import prompt_ids
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.hf_completer import HfCompleter, open_hf_teacher
from stillhouse.models.loading import load_causal_lm, load_classifier
from stillhouse.models.seeded_sampling import SeededSampler
from stillhouse.models.student import LabelStudent, open_student

LABELS = ("fresh", "rotten")
TASK = ClassificationTask(
    kind="classification", labels=LABELS, system="You label.", prompt="Review: {text}\nVerdict?"
)
MakeQuery = Callable[[str, str], Query]


def ask(
    completer: Completer, queries: Sequence[Query], sampling: Sampling
) -> list[Sequence[Completion] | BaseException]:
    async def go() -> list[Sequence[Completion] | BaseException]:
        calls = [completer.complete(query, sampling) for query in queries]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(go())


def answers(
    completer: Completer, queries: Sequence[Query], sampling: Sampling
) -> list[Sequence[Completion]]:
    found = ask(completer, queries, sampling)
    errors = [answer for answer in found if isinstance(answer, BaseException)]
    assert not errors, errors
    return [answer for answer in found if not isinstance(answer, BaseException)]


@pytest.fixture
def queries(query: MakeQuery) -> list[Query]:
    return [query(str(i), "so " * i + "good") for i in range(7)]


@pytest.fixture
def teacher(llama_folder: Path) -> Completer:
    return open_hf_teacher(f"hf:{llama_folder}", 3, "cpu")


def test_closed_labels_come_with_a_belief(teacher: Completer, queries: list[Query]) -> None:
    assert teacher.info.gives_label_logprobs
    for query, found in zip(
        queries, answers(teacher, queries, Sampling(labels=LABELS)), strict=True
    ):
        (answer,) = found
        assert answer.query_id == query.id
        belief = answer.label_logprobs
        assert belief is not None
        assert tuple(belief) == LABELS
        assert answer.text == max(belief, key=lambda label: belief[label])
        assert sum(map(math.exp, belief.values())) == pytest.approx(1, abs=1e-5)
        assert all(value == round(value, 6) for value in belief.values())


def test_greedy_text_equals_decoding_one_by_one(
    teacher: Completer, queries: list[Query], llama: Any, tokenizer: Any
) -> None:
    got = answers(teacher, queries, Sampling(max_tokens=6))
    for query, (answer,) in zip(queries, got, strict=True):
        ids = prompt_ids(tokenizer, [query.messages])[0]
        new: list[int] = []
        while len(new) < 6 and 1 not in new:
            with torch.no_grad():
                logits = llama(input_ids=torch.tensor([ids + new])).logits[0, -1]
            new.append(int(logits.argmax()))
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert answer.completion_tokens == len(new)
        assert answer.prompt_tokens == len(ids)
        assert answer.finish_reason == ("stop" if 1 in new else "length")


def test_draws_do_not_depend_on_the_batch(teacher: Completer, queries: list[Query]) -> None:
    sampling = Sampling(max_tokens=5, sampling_temperature=1.0, n=2, seed=7)
    together = answers(teacher, queries, sampling)
    alone = answers(teacher, queries[3:4], sampling)
    assert [a.text for a in together[3]] == [a.text for a in alone[0]]
    assert [a.sample for a in together[3]] == [0, 1]
    other = answers(teacher, queries, Sampling(max_tokens=5, sampling_temperature=1.0, n=2, seed=8))
    assert [[a.text for a in x] for x in other] != [[a.text for a in x] for x in together]


def test_token_logprobs_are_the_models(teacher: Completer, queries: list[Query]) -> None:
    ((answer,),) = answers(teacher, queries[:1], Sampling(max_tokens=4, logprobs=3))
    assert answer.logprobs is not None
    assert len(answer.logprobs) == answer.completion_tokens
    for token in answer.logprobs:
        assert len(token.top) == 3
        assert token.top[0] == (token.token, token.logprob)  # greedy: the chosen is the top
        assert token.logprob < 0


def test_kinds_of_calls_may_share_a_batch(teacher: Completer, queries: list[Query]) -> None:
    async def go() -> list[Sequence[Completion]]:
        return await asyncio.gather(
            teacher.complete(queries[0], Sampling(labels=LABELS)),
            teacher.complete(queries[1], Sampling(max_tokens=2)),
            teacher.complete(queries[2], Sampling(labels=("a", "b"))),
        )

    first, second, third = asyncio.run(go())
    assert first[0].text in LABELS
    assert second[0].label_logprobs is None
    assert third[0].text in ("a", "b")


def test_too_long_a_query_fails_alone(
    teacher: Completer, queries: list[Query], query: MakeQuery
) -> None:
    long = query("long", "x" * 600)
    found = ask(teacher, [queries[0], long, queries[1]], Sampling(labels=LABELS))
    assert isinstance(found[1], TeacherError)
    assert "query long" in str(found[1])
    assert not isinstance(found[0], BaseException)
    assert not isinstance(found[2], BaseException)


STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}<assistant>"
)


def test_a_chat_the_template_cannot_render_fails_alone(
    llama_folder: Path, queries: list[Query]
) -> None:
    loaded = load_causal_lm(str(llama_folder), device="cpu")
    loaded.tokenizer.chat_template = STRICT
    user = queries[0].messages[-1]
    odd = Query(id="odd-1", messages=(user, Message(role="tool", content="4"), user))
    found = ask(HfCompleter(loaded, 8), [queries[0], odd, queries[1]], Sampling(labels=LABELS))
    assert isinstance(found[1], TeacherError)
    assert "query odd-1: " in str(found[1])
    assert "no tools here" in str(found[1])
    assert "\n" not in str(found[1])
    assert not isinstance(found[0], BaseException)
    assert not isinstance(found[2], BaseException)


@pytest.mark.parametrize("sampling", [Sampling(labels=LABELS), Sampling(max_tokens=6)])
def test_a_text_student_reads_the_end_of_a_long_prompt(
    llama_folder: Path, query: MakeQuery, sampling: Sampling
) -> None:
    """As in training: the head is lost, so two prompts that differ only there answer alike."""
    student = open_student(llama_folder, TASK, "text", 4, "cpu")
    tail = "so good, so bad, " * 40
    asked = [query("a", "x" * 90 + tail), query("b", "y" * 400 + tail), query("c", "short")]
    (long,), (longer,), (short,) = answers(student, asked, sampling)
    answer = 7 if sampling.labels else 6  # "rotten" and its end token; the most that is written
    assert long.prompt_tokens == longer.prompt_tokens == 512 - answer
    assert (long.text, long.label_logprobs) == (longer.text, longer.label_logprobs)
    assert short.prompt_tokens == len(
        prompt_ids(load_causal_lm(str(llama_folder), device="cpu").tokenizer, [asked[2].messages])[
            0
        ]
    )


def test_a_text_student_is_cut_to_what_it_was_trained_on(
    llama_folder: Path, query: MakeQuery
) -> None:
    """`model_max_length` is `student.max_tokens`; an answer never passes the model's positions."""
    loaded = load_causal_lm(str(llama_folder), device="cpu")
    loaded.tokenizer.model_max_length = 64
    student = HfCompleter(loaded, 4, cuts=True)
    ((answer,),) = answers(student, [query("a", "x" * 300)], Sampling(max_tokens=300))
    assert answer.prompt_tokens == 63
    loaded.model.config.max_position_embeddings = 64
    ((answer,),) = answers(student, [query("a", "x" * 300)], Sampling(max_tokens=300))
    assert answer.prompt_tokens == 32
    assert answer.completion_tokens is not None
    assert answer.completion_tokens <= 32


def test_draws_follow_the_distribution() -> None:
    """6,000 draws; each share lies within 5 standard errors of its probability."""
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    for t in (0.5, 1.0, 2.0):
        sampler = SeededSampler(range(6000), t, None)
        drawn = sampler(torch.empty(0), logits.expand(6000, 4)).argmax(-1)
        p = (logits / t).softmax(-1)
        share = torch.bincount(drawn, minlength=4) / 6000
        assert bool(((share - p).abs() < 5 * (p * (1 - p) / 6000).sqrt()).all())


def reviews(count: int) -> list[Query]:
    return [
        Query(id=f"{i:05d}", messages=TASK.messages_for(f"film {i} was {'so ' * (i % 9)}good"))
        for i in range(count)
    ]


def test_label_student_equals_its_classifier(student_folder: Path) -> None:
    student = open_student(student_folder, TASK, "label", 4, "cpu")
    loaded = load_classifier(str(student_folder), device="cpu")
    asked = reviews(10)
    for query, (answer,) in zip(asked, answers(student, asked, Sampling()), strict=True):
        inputs = loaded.tokenizer(TASK.input_text(query), return_tensors="pt")
        with torch.no_grad():
            log_p = loaded.model(input_ids=inputs["input_ids"]).logits[0].log_softmax(-1)
        belief = answer.label_logprobs
        assert belief is not None
        assert list(belief.values()) == pytest.approx(log_p.tolist(), abs=1e-5)
        assert answer.text == LABELS[int(log_p.argmax())]
        assert answer.query_id == query.id
    assert student.info.size_bytes == (student_folder / "model.safetensors").stat().st_size
    assert student.info.gives_label_logprobs


def test_label_student_of_another_order_is_refused(student_folder: Path) -> None:
    swapped = ClassificationTask(kind="classification", labels=LABELS[::-1])
    with pytest.raises(UserError, match="id2label"):
        open_student(student_folder, swapped, "label", 4, "cpu")
    with pytest.raises(UserError, match=r"student\.head"):
        open_student(student_folder, GenerationTask(kind="generation"), "label", 4, "cpu")


def test_text_student_is_a_language_model(llama_folder: Path, queries: list[Query]) -> None:
    student = open_student(llama_folder, TASK, "text", 4, "cpu")
    ((answer,),) = answers(student, queries[:1], Sampling(labels=LABELS))
    assert answer.text in LABELS


def test_overhead_per_query_is_small(student_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 queries at once: waiting, sorting and waking cost under 0.3 ms each."""
    student = LabelStudent(load_classifier(str(student_folder), device="cpu"), TASK, 32)
    done = [Completion(query_id="x", text="fresh", model="m", revision="r", label_logprobs={})]
    monkeypatch.setattr(student, "run_batch", lambda calls: [done] * len(calls))
    asked = reviews(2000)
    started = time.process_time()
    answers(student, asked, Sampling())
    assert (time.process_time() - started) / 2000 < 0.0003


def test_one_user_message_is_enough(teacher: Completer) -> None:
    bare = Query(id="b", messages=(Message(role="user", content="hi"),))
    ((answer,),) = answers(teacher, [bare], Sampling(labels=LABELS))
    assert answer.text in LABELS


def test_long_input_is_cut_to_what_the_student_reads(student_folder: Path) -> None:
    student = open_student(student_folder, TASK, "label", 4, "cpu")
    long = Query(id="l", messages=TASK.messages_for("x" * 5000))
    ((answer,),) = answers(student, [long], Sampling())
    assert answer.prompt_tokens == 512
