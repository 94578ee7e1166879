"""A sequence classifier as a teacher: beliefs in the task's order, one-line refusals."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.core.errors import UnanswerableQueryError, UserError
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.hf_classifier import ClassifierTeacher
from stillhouse.models.hf_completer import open_hf_teacher
from stillhouse.models.loading import holds_classifier, load_classifier

Found = Sequence[Completion] | BaseException


def ask(completer: Completer, queries: Sequence[Query], sampling: Sampling) -> list[Found]:
    async def go() -> list[Found]:
        calls = [completer.complete(query, sampling) for query in queries]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(go())


def chat(name: str, text: str) -> Query:
    turns = (("system", "Judge."), ("user", "And this?"), ("assistant", "Fresh."), ("user", text))
    return Query(id=name, messages=tuple(Message(role=r, content=c) for r, c in turns))  # type: ignore[arg-type]


@pytest.fixture
def changed(student_folder: Path, tmp_path: Path) -> Any:
    """The classifier's folder with some of its config changed."""

    def change(**changes: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(student_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return change


@pytest.mark.parametrize("labels", [("fresh", "rotten"), ("rotten", "fresh"), ("Rotten", "FRESH")])
def test_it_reads_the_last_user_message_and_answers_in_the_tasks_order(
    student_folder: Path, labels: tuple[str, ...]
) -> None:
    teacher = open_hf_teacher(f"hf:{student_folder}", 3, "cpu")
    assert isinstance(teacher, ClassifierTeacher)
    assert (teacher.info.gives_label_logprobs, teacher.info.gives_logprobs) == (True, False)
    loaded = load_classifier(str(student_folder), device="cpu")
    asked = [chat(str(i), "so " * i + "good") for i in range(7)]
    found = ask(teacher, asked, Sampling(labels=labels, n=2))
    for query, answers in zip(asked, found, strict=True):
        assert not isinstance(answers, BaseException), answers
        assert [answer.sample for answer in answers] == [0, 1]
        inputs = loaded.tokenizer(query.messages[-1].content, return_tensors="pt")
        with torch.no_grad():
            log_p = loaded.model(input_ids=inputs["input_ids"]).logits[0].log_softmax(-1)
        belief = answers[0].label_logprobs
        assert belief is not None
        assert tuple(belief) == labels
        wanted = dict(zip(("fresh", "rotten"), log_p.tolist(), strict=True))
        for label, value in belief.items():
            assert value == pytest.approx(wanted[label.lower()], abs=1e-5)
        assert sum(map(math.exp, belief.values())) == pytest.approx(1, abs=1e-5)
        assert answers[0].text == max(belief, key=lambda label: belief[label])


@pytest.mark.parametrize("labels", [("fresh", "stale"), ("fresh", "rotten", "stale")])
def test_other_labels_are_one_line_that_names_both_sets(
    student_folder: Path, labels: tuple[str, ...]
) -> None:
    (found,) = ask(
        open_hf_teacher(str(student_folder), 3, "cpu"), [chat("a", "x")], Sampling(labels=labels)
    )
    assert isinstance(found, UserError)
    assert "stale" in str(found)
    assert "['fresh', 'rotten'] (id2label)" in str(found)
    assert "\n" not in str(found)


def test_too_long_a_text_fails_alone(student_folder: Path) -> None:
    teacher = open_hf_teacher(str(student_folder), 3, "cpu")
    asked = [chat("a", "good"), chat("long", "x" * 600), chat("b", "bad")]
    first, long, last = ask(teacher, asked, Sampling(labels=("fresh", "rotten")))
    assert isinstance(long, UnanswerableQueryError)
    assert "query long: 600 tokens exceed the model's 512" in str(long)
    assert not isinstance(first, BaseException)
    assert not isinstance(last, BaseException)


def test_several_labels_at_a_time_are_refused(changed: Any) -> None:
    with pytest.raises(UserError, match="one of several labels"):
        open_hf_teacher(f"hf:{changed(problem_type='multi_label_classification')}", 3, "cpu")


def test_what_is_told_apart_by_its_config(student_folder: Path, llama_folder: Path) -> None:
    assert holds_classifier(f"hf:{student_folder}")
    assert not holds_classifier(f"hf:{llama_folder}")
    assert not holds_classifier("embedded")
    assert not isinstance(open_hf_teacher(str(llama_folder), 3, "cpu"), ClassifierTeacher)
