"""A tag student opened: its answers, its log-probabilities, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from stillhouse.core.errors import UserError
from stillhouse.core.records import Completion, Query
from stillhouse.core.tagging import tag_fields, tag_names
from stillhouse.core.tasks import ExtractionTask, GenerationTask
from stillhouse.models.batching import Call
from stillhouse.models.completer import ModelInfo, Sampling
from stillhouse.models.loading import load_tagger
from stillhouse.models.student import open_student
from stillhouse.models.tag_completer import TagCompleter, TagsRead, words_go_on
from stillhouse.models.tag_student import Tagger
from tiny_models import byte_bpe, tiny_bert, wordpiece
from tiny_tags import SCHEMA, TASK, word_tagger


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_tagger(tmp_path_factory.mktemp("tagger"))


def said(
    folder: Path, *texts: str, task: ExtractionTask = TASK, **sampling: int
) -> list[Completion]:
    student = open_student(folder, task, "tags", 2, "cpu")

    async def go() -> list[Completion]:
        queries = [Query(id=f"q{n}", messages=task.messages_for(t)) for n, t in enumerate(texts)]
        how = Sampling(**sampling)
        found = await asyncio.gather(*(student.complete(one, how) for one in queries))
        await student.aclose()
        return [one for every in found for one in every]

    return asyncio.run(go())


def test_it_answers_with_the_texts_own_words_in_the_schemas_order(folder: Path) -> None:
    texts = ("A dull, WARM film", "the film", "", "funny and  funny")
    assert [one.text for one in said(folder, *texts)] == [
        '{"praise": "WARM", "blame": "dull"}',
        "{}",
        "{}",
        '{"praise": "funny funny"}',
    ]


def test_a_word_is_copied_whole_or_not_at_all(folder: Path) -> None:
    # "long" alone is blamed; "longly" is two pieces, and the second says nothing of itself
    (one,) = said(folder, "a longly film")
    assert one.text in ('{"blame": "longly"}', "{}")
    offsets = [(0, 1), (2, 6), (6, 8), (8, 9), (9, 11), (11, 13), (13, 15)]
    text = "a longly,5512ab"
    assert words_go_on(text, offsets) == [False, False, True, False, False, True, False]


class Piecewise:
    """Reads one word in two tokens, of which the first alone is a value, barely."""

    classes = tag_names(tag_fields(SCHEMA))

    def __init__(self, words: int) -> None:
        self.words = words

    def measure(self, text: str) -> int:
        return 2

    def read(self, texts: Sequence[str]) -> list[TagsRead]:
        log_p = np.log(np.array([[0.1, 0.9, 0, 0, 0], [0.8, 0.1, 0.1, 0, 0]], np.float32) + 1e-6)
        return [TagsRead(log_p, [(0, 2), (2, len(text))], 2) for text in texts]


def test_a_student_is_read_by_the_rule_that_it_was_taught_by() -> None:
    info = ModelInfo(name="x", revision="1")
    query = Query(id="q", messages=TASK.messages_for("כתוב"))
    for rule, said_ in ((1, '{"praise": "כת"}'), (2, '{"praise": "כתוב"}')):
        student = TagCompleter(Piecewise(rule), TASK, info, 2, "x id2label")
        ((one,),) = student.run_batch([Call(query, Sampling())])
        assert one.text == said_
    with pytest.raises(UserError, match=r"^x: tells words apart by a rule .* update stillhouse"):
        TagCompleter(Piecewise(3), TASK, info, 2, "x id2label")


def test_bytes_of_one_character_are_no_values_of_their_own() -> None:
    text = "a 😀 é"
    offsets = byte_bpe()(text, return_offsets_mapping=True)["offset_mapping"]
    parts = [offsets[at] == before for at, before in enumerate(offsets[:-1], 1)]
    assert sum(parts) >= 4  # an emoji has four bytes, é two
    assert words_go_on(text, offsets) == [False, *parts]


def test_plain_transformers_says_the_same_tags(folder: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        best = model(**tokenizer("a dull film", return_tensors="pt")).logits.argmax(-1)[0]
    tags = [model.config.id2label[int(one)] for one in best]
    assert tags[1:-1] == ["O", "B-blame", "O"]


def test_how_sure_it_is_stands_beside_the_answer(folder: Path) -> None:
    (one,) = said(folder, "a dull film", logprobs=3)
    assert one.logprobs is not None
    assert [token.token for token in one.logprobs] == ["O", "B-blame", "O"]
    for token in one.logprobs:
        assert len(token.top) == 3
        assert token.top[0] == (token.token, token.logprob)
        assert 0 < sum(math.exp(value) for _, value in token.top) <= 1 + 1e-6
    assert (one.prompt_tokens, one.completion_tokens) == (5, 1)
    (bare,) = said(folder, "a dull film")
    assert bare.logprobs is None
    assert bare.label_logprobs is None


def test_samples_are_one_answer_and_long_texts_are_cut(folder: Path) -> None:
    found = said(folder, "the film " * 8 + "dull", n=2)
    assert [(one.sample, one.text) for one in found] == [(0, "{}"), (1, "{}")]
    assert found[0].prompt_tokens == 12


def test_required_fields_are_there(folder: Path) -> None:
    schema = {**SCHEMA, "required": ["blame"]}
    task = TASK.model_copy(update={"json_schema": schema})
    (one,) = said(folder, "the film", task=task)
    assert json.loads(one.text) == {"blame": ""}
    assert task.parse(one.text).problem is None


def test_it_knows_its_place_and_length(folder: Path) -> None:
    student = open_student(folder, TASK, "tags", 2, "cpu")
    query = Query(id="q", messages=TASK.messages_for("a dull film"))
    assert student.length_of(query) == 5  # type: ignore[attr-defined]
    info = student.info
    assert (info.local, info.gives_logprobs, info.gives_label_logprobs) == (True, True, False)
    assert (info.takes_seed, info.notes["head"]) == (False, "tags")
    asyncio.run(student.aclose())


def test_another_task_is_refused(folder: Path) -> None:
    other = {"type": "object", "properties": {"blame": {"type": "string"}}}
    task = ExtractionTask(kind="extraction", json_schema=other)
    with pytest.raises(UserError, match=r"id2label: holds .* the task's tags are"):
        open_student(folder, task, "tags", 2, "cpu")
    counts = {"type": "object", "properties": {"n": {"type": "integer"}}}
    task = ExtractionTask(kind="extraction", json_schema=counts)
    with pytest.raises(UserError, match=r"properties\.n is"):
        open_student(folder, task, "tags", 2, "cpu")
    with pytest.raises(UserError, match="needs an extraction task"):
        open_student(folder, GenerationTask(kind="generation"), "tags", 2, "cpu")


def test_a_folder_without_the_head_is_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.save_pretrained(tmp_path)
    tiny_bert(tokenizer, layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not a token classifier"):
        open_student(tmp_path, TASK, "tags", 2, "cpu")


def test_a_slow_tokenizer_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", property(lambda _: False))
    with pytest.raises(UserError, match="does not say where in the text"):
        Tagger(load_tagger(str(folder), device="cpu"))
