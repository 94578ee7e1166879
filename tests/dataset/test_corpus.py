"""Reading a corpus and dividing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from stillhouse.core.corpus import Passage
from stillhouse.core.errors import DataError
from stillhouse.core.progress import Silent
from stillhouse.core.recipe_corpus import CorpusSection
from stillhouse.dataset.corpus import divide, read_corpus, run_corpus


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.integers(0, 99))
def test_a_group_is_in_one_part_and_no_text_is_lost(numbers: list[int], seed: int) -> None:
    section = CorpusSection(path="x", validation=0.2, test=0.2)
    texts = [
        Passage(id=str(n), text=f"text {n}", group=f"g{number}") for n, number in enumerate(numbers)
    ]
    try:
        parts = divide(section, texts, seed)
    except DataError:  # a group may be as large as all; the refusals have a test of their own
        reject()
    groups = [{passage.group for passage in part} for part in parts.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert sorted(p.id for part in parts.values() for p in part) == sorted(p.id for p in texts)


def test_paragraphs_of_plain_text_and_what_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("One text,\nof two lines.\n\nAnother text.\n\none TEXT,\nof two lines.\n\nno\n")
    found = read_corpus(CorpusSection(path=str(path), min_chars=4), 0)
    assert [passage.text for passage in found.passages] == [
        "One text,\nof two lines.", "Another text."
    ]  # fmt: skip
    assert found.left_out == {"repeated": 1, "shorter than min_chars": 1}


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    text = "the gripping story of a film that moves from start to finish with a wonderful cast"
    rows = [{"text": text}, {"text": text + "!"}, {"text": "dull, lifeless and far too long"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = read_corpus(CorpusSection(path=str(path)), 0).passages
    assert one.group == two.group != three.group


@pytest.mark.parametrize(
    ("rows", "section", "said"),
    [
        ([{"body": "x"}], {}, "line 1: has no text under 'text'"),
        ([{"text": "x"}], {"language": "lang"}, "no text under 'lang'"),
        ([{"text": " "}], {}, "holds no text"),
        ([{"text": f"text {n}"} for n in range(9)], {}, "too few for the split"),
        (
            [{"text": f"text {n}", "doc": "same"} for n in range(90)],
            {"group": "doc"},
            "three groups or more",
        ),
    ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(
    rows: list[dict[str, str]], section: dict[str, str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said) as caught:
        run_corpus(CorpusSection(path=str(path), **section), 0, tmp_path, Silent())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "train.jsonl").exists()


def test_keys_of_jsonl_do_not_go_with_plain_text(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("a text")
    with pytest.raises(DataError, match="is a key of"):
        read_corpus(CorpusSection(path=str(tmp_path / "c.txt"), language="l"), 0)
    with pytest.raises(DataError, match="no such file"):
        read_corpus(CorpusSection(path=str(tmp_path / "none.txt")), 0)
