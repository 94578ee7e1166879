"""Examples as tags of tokens."""

from __future__ import annotations

from typing import Any

import pytest

from stillhouse.core.errors import DataError
from stillhouse.core.tagging import spans_of, tag_fields, tag_names, written
from stillhouse.models.divergence import IGNORE_INDEX
from stillhouse.train.batches import Encoded
from stillhouse.train.tag_rows import encode_tags
from tiny_models import byte_bpe, unigram, wordpiece
from tiny_tags import TASK, example, tag_examples

FIELDS = tag_fields(TASK.json_schema)
NAMES = tag_names(FIELDS)


def encoded(*pairs: tuple[str, str], most: int = 32) -> Encoded:
    rows = [example(number, *pair) for number, pair in enumerate(pairs)]
    return encode_tags(rows, TASK, wordpiece(), most)


def shown(found: Encoded, number: int = 0) -> list[str]:
    labels = found.rows[number]["labels"]
    return ["-" if tag == IGNORE_INDEX else NAMES[tag] for tag in labels]


def facts(found: Encoded) -> dict[str, Any]:
    assert found.facts is not None
    return dict(found.facts)


def test_each_token_has_the_tag_of_the_value_it_is_of() -> None:
    found = encoded(("a wonderfully moving film", '{"praise": "wonderfully moving"}'))
    #      [CLS] a   wonderful/##ly  moving  film  [SEP]
    tags = shown(found)
    assert (tags[0], tags[-1]) == ("-", "-")
    assert tags[1:-1] == ["O", "B-praise", *["I-praise"] * (len(tags) - 5), "O"]
    assert found.cut == 0
    assert found.said is None
    assert facts(found)["fields"]["praise"] == {"values": 1, "found": 1}


def test_pieces_of_a_value_begin_anew() -> None:
    found = encoded(("a dull, boring plot", '{"blame": "dull boring"}'))
    assert shown(found)[1:-1] == ["O", "B-blame", "O", "B-blame", "O"]
    assert facts(found)["in_pieces"] == 1


def test_where_a_value_is_not_found_the_other_tokens_are_no_targets() -> None:
    found = encoded(
        ("a dull plot", '{"praise": "clever", "blame": "dull"}'),
        ("a warm film", '{"praise": "warm"}'),
    )
    assert shown(found)[1:-1] == ["-", "B-blame", "-"]
    assert shown(found, 1)[1:-1] == ["O", "B-praise", "O"]
    assert found.said == (
        "1 of 3 values of the teacher's answers are not in their texts and are not learned "
        "(most of praise: 1)"
    )


def test_an_example_of_nothing_to_learn_is_left_out() -> None:
    found = encoded(
        ("a dull plot", '{"praise": "clever"}'),
        ("a dull plot", "no JSON"),
        ("a dull plot", "{}"),
    )
    assert len(found.rows) == 1
    assert shown(found)[1:-1] == ["O", "O", "O"]
    told = facts(found)
    assert (told["examples_left_out"], told["unreadable"]) == (2, 1)
    assert str(found.said).endswith("; 2 examples without anything to learn are left out")
    found = encoded(("a dull plot", "no JSON"), ("a dull plot", "{}"))
    assert found.said == "1 examples without anything to learn are left out"
    with pytest.raises(DataError, match=r"of 1 answers .* none says anything .*head: text"):
        encoded(("a dull plot", '{"praise": "clever"}'))


def test_a_text_without_tokens_is_left_out() -> None:
    found = encoded(("", "{}"), ("a dull plot", '{"blame": "dull"}'))
    assert len(found.rows) == 1
    assert facts(found)["examples_left_out"] == 1
    with pytest.raises(DataError, match=r"of 1 answers .* none says anything"):
        encoded(("", "{}"))


def test_what_the_student_will_say_otherwise_is_told() -> None:
    found = encoded(
        ("a DULL plot", '{"praise": "", "blame": "dull"}'),
        ("a dull, boring plot", '{"praise": " ", "blame": "dull boring"}'),
    )
    assert (facts(found)["respelt"], facts(found)["empty"]) == (1, 2)
    assert found.said == (
        "1 of 2 values of the teacher's answers have other case or white space than their texts, "
        "which the student copies (most of blame: 1); 2 fields of the teacher's answers are empty "
        "texts, and the student leaves them out (most of praise: 2); one that is required and may "
        "not be null it writes empty"
    )
    required = {**TASK.json_schema, "required": ["praise", "blame"]}
    task = TASK.model_copy(update={"json_schema": required})
    row = example(0, "a dull plot", '{"praise": "", "blame": "dull"}')
    assert encode_tags([row], task, wordpiece(), 32).said is None


def test_what_is_cut_off_is_not_learned() -> None:
    found = encoded(
        ("the film and the story and the dull plot", '{"blame": "dull"}'),
        ("a dull plot", '{"blame": "dull"}'),
        most=6,
    )
    assert found.cut == 1
    assert len(found.rows) == 1
    assert facts(found)["fields"]["blame"] == {"values": 2, "found": 1}


def test_half_a_token_says_no_value() -> None:
    # no piece of the vocabulary holds a digit: "1moving" is one unknown token
    found = encoded(("a 1moving dull film", '{"praise": "moving", "blame": "dull"}'))
    assert shown(found)[1:-1] == ["-", "-", "B-blame", "-"]
    assert facts(found)["fields"]["praise"] == {"values": 1, "found": 0}
    found = encoded(("a 1moving dull film", '{"praise": "1moving", "blame": "dull"}'))
    assert shown(found)[1:-1] == ["O", "B-praise", "B-blame", "O"]


@pytest.mark.parametrize("tokenizer", [wordpiece(), unigram(), byte_bpe()])
def test_tags_give_the_answers_back_whatever_cuts_the_text(tokenizer: Any) -> None:
    examples = tag_examples(30)
    found = encode_tags(examples, TASK, tokenizer, 48)
    assert found.said is None
    for row, one in zip(found.rows.items, examples, strict=True):
        text = TASK.input_text(one.to_query())
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        known = [n for n, tag in enumerate(row["labels"]) if tag != IGNORE_INDEX]
        tags = [row["labels"][n] for n in known]
        spans = spans_of(tags, [offsets[n] for n in known], len(FIELDS))
        assert written(FIELDS, text, spans) == one.completion
