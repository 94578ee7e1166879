"""Texts that calibrate: taken by the seed, and refused where they are of another task."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from stillhouse.compress.calibration import calibration_texts, check_on_task
from stillhouse.core.errors import DataError
from stillhouse.core.runfolder import RunFolder
from synthetic_run import make_recipe, make_run

FILM = ["plot", "cast", "director", "scene", "acting", "script", "camera", "ending", "drama"]
BANK = ["refund", "invoice", "account", "transfer", "fee", "payment", "loan", "balance"]
FILLER = ["the", "a", "of", "and", "was", "it", "that", "in", "to", "with", "for", "this"]


def texts(words: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join([*draw.choices(FILLER, k=8), *draw.choices(words, k=4)]) for _ in range(count)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("run"), make_recipe(), golden=10, train=60)


def test_training_examples_are_drawn_by_the_seed(run: RunFolder) -> None:
    recipe = make_recipe()
    found = calibration_texts(recipe, run, None, 20)
    assert len(found) == len(set(found)) == 20
    assert found == calibration_texts(recipe, run, None, 20)
    assert found != calibration_texts(make_recipe(seed=4), run, None, 20)
    assert len(calibration_texts(recipe, run, None, 10_000)) == 60


def test_a_file_of_the_task_is_taken(run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [{"text": "a dull film about item 3 & its crew"}]
    lines += [{"messages": [{"role": "user", "content": "a moving film\nVerdict:"}]}]  # type: ignore[dict-item]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert calibration_texts(make_recipe(), run, str(path), 9) == [
        "a dull film about item 3 & its crew",
        "a moving film",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no query"),
        ("\n\n", "holds no query"),
        ('{"question": "x"}\n', "line 1: has neither text nor messages"),
        ('{"messages": []}\n', "line 1: messages"),
        ("not json\n", "line 1: is not valid JSON"),
        ('{"text": "your invoice and loan statement are overdue"}\n', "is off the task"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    run: RunFolder, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        calibration_texts(make_recipe(), run, str(path), 9)


@pytest.mark.parametrize("count", [3, 20, 200])
def test_another_tasks_texts_are_refused_and_its_own_are_not(count: int) -> None:
    train, held_out = texts(FILM, 300, 1), texts(FILM, 100, 2)
    for seed in range(10, 20):
        check_on_task(texts(FILM, count, seed), train, held_out, "c.jsonl")
        with pytest.raises(DataError, match="off the task"):
            check_on_task(texts(BANK, count, seed), train, held_out, "c.jsonl")


def test_where_words_do_not_tell_nothing_is_refused() -> None:
    alone = [f"w{number}" for number in range(40)]
    check_on_task(["other"], alone[:20], alone[20:], "c.jsonl")
    check_on_task(["other"], ["?!", "..."], alone, "c.jsonl")
