"""What a recipe may say of ensembles and comparisons, and how it is told what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_file import load_recipe, parse_recipe

CLASSIFY = {"kind": "classification", "labels": ["a", "b"]}
EXTRACT = {
    "kind": "extraction",
    "json_schema": {"type": "object", "properties": {"x": {"type": "string"}}},
}
WRITE = {"kind": "generation"}
API = {"model": "openai:gpt-4.1"}
LOCAL = {"model": "hf:some/model"}
EMBEDDED = {"model": "embedded"}
CLAUDE = {"model": "anthropic:claude-haiku-4-5"}


def recipe(teacher: dict[str, Any], task: dict[str, Any] = CLASSIFY, **more: Any) -> Recipe:
    label = task["kind"] == "classification"
    return parse_recipe(
        {
            "name": "r",
            "task": task,
            "traffic": {"path": "t.jsonl", "labelled": "l.jsonl"},
            "teacher": teacher,
            "student": {"head": "label" if label else "text", "from": "hf:x"},
            **more,
        }
    )


def ensemble(*members: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "ensemble", "members": list(members), **more}


def test_members_inherit_what_they_leave_out() -> None:
    teacher = recipe(
        ensemble({**API, "max_tokens": 7, "weight": 2}, EMBEDDED, max_tokens=9, device="cpu")
    ).teacher
    api, local = teacher.member_sections
    assert (api.max_tokens, local.max_tokens) == (7, 9)
    assert (api.device, local.device) == ("auto", "cpu")
    assert teacher.weights == (2.0, 1.0)
    assert not teacher.local
    assert not teacher.trainable
    assert teacher.sources == ("openai:gpt-4.1", "embedded")
    assert recipe(ensemble(LOCAL, EMBEDDED)).teacher.local
    # As a single teacher would be: its answers are the same ones.
    assert local == recipe({**EMBEDDED, "max_tokens": 9, "device": "cpu"}).teacher


@pytest.mark.parametrize(
    ("task", "how"),
    [(CLASSIFY, "mean_probabilities"), (EXTRACT, "majority"), (WRITE, "medoid")],
)
def test_the_default_way_to_combine_fits_the_task(task: dict[str, Any], how: str) -> None:
    made = recipe(ensemble(API, LOCAL, EMBEDDED), task)
    assert made.teacher.title(made.task.kind) == (
        f"ensemble of openai:gpt-4.1, hf:some/model, embedded ({how})"
    )


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one member": (ensemble(API), CLASSIFY, "at least two members"),
    "none": ({"model": "ensemble"}, CLASSIFY, "at least two members"),
    "of a single": ({**API, "members": [EMBEDDED]}, CLASSIFY, "members and combine are for"),
    "twice": (ensemble(API, API), CLASSIFY, "listed twice"),
    "nested": (
        ensemble(API, ensemble(LOCAL, EMBEDDED)),
        CLASSIFY,
        "unknown key|cannot be a member",
    ),
    "nested name": (ensemble(API, {"model": "ensemble:x"}), CLASSIFY, "cannot be a member"),
    "no url": (
        ensemble(API, {"model": "openai-compatible:m"}),
        CLASSIFY,
        "members.1: base_url is required",
    ),
    "own url": (ensemble(API, LOCAL, api_key_env="K"), CLASSIFY, "each member's own"),
    "weight": (ensemble(API, {**LOCAL, "weight": 0}), CLASSIFY, "greater than 0"),
    "tune": (ensemble(API, LOCAL, tune={}), CLASSIFY, "tune needs a teacher with trainable"),
    "vote of two": (ensemble(API, LOCAL, combine="majority"), CLASSIFY, "always the answer of one"),
    "fields of two": (ensemble(API, LOCAL), EXTRACT, "always the answer of one"),
    "outweighed": (
        ensemble({**API, "weight": 2}, LOCAL, EMBEDDED, combine="majority"),
        CLASSIFY,
        "always the answer of one",
    ),
    "no medoid of labels": (
        ensemble(API, LOCAL, EMBEDDED, combine="medoid"),
        CLASSIFY,
        "medoid makes no sense for classification",
    ),
    "no beliefs of text": (
        ensemble(API, LOCAL, EMBEDDED, combine="mean_logits"),
        WRITE,
        "mean_logits makes no sense for generation; use medoid",
    ),
    "claude shows none": (ensemble(API, CLAUDE), CLASSIFY, "members.1 .*votes alone"),
    "local sampled": (
        ensemble(API, {**LOCAL, "samples": 3, "sampling_temperature": 1}),
        CLASSIFY,
        "members.1 .*likelihoods are read at",
    ),
    "signals none": (ensemble(API, LOCAL, signals="none"), CLASSIFY, "reads no class prob"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_ensemble_that_makes_no_sense_is_one_line(case: str) -> None:
    teacher, task, expected = REFUSED[case]
    with pytest.raises(RecipeError, match=expected) as caught:
        recipe(teacher, task)
    assert "\n" not in str(caught.value)


def test_votes_of_a_member_without_beliefs_are_beliefs() -> None:
    made = recipe(ensemble(API, {**CLAUDE, "samples": 5, "sampling_temperature": 1}))
    assert made.teacher.member_sections[1].samples == 5


def test_a_key_pasted_into_a_member_is_never_shown() -> None:
    secret = "sk-live-0123456789"
    for member in ({**API, "api_key_env": secret}, {**API, "base_url": f"https://u:{secret}@h/v1"}):
        for section in (
            {"teacher": ensemble(LOCAL, member)},
            {"teacher": ensemble(member)},
            {"teacher": API, "compare": {"teachers": {"x": member}}},
        ):
            with pytest.raises(RecipeError) as caught:
                recipe(**section)
            assert secret not in str(caught.value)


COMPARE_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({}, "needs teachers to compare"),
    "name": ({"teachers": {"a b": LOCAL}}, "cannot be a name"),
    "own name": ({"teachers": {"teacher": LOCAL}}, "cannot be a name"),
    "twice": (
        {"teachers": {"x": LOCAL}, "ensembles": {"x": {"of": ["teacher", "x"]}}},
        "both a teacher and an ensemble",
    ),
    "unknown member": (
        {"teachers": {"x": LOCAL}, "ensembles": {"e": {"of": ["teacher", "y"]}}},
        "'y' is none of teacher, x",
    ),
    "the same": ({"teachers": {"x": API}}, "is the recipe's own teacher"),
    "tuned": ({"teachers": {"x": {**LOCAL, "tune": {}}}}, "tune it in a run of its own"),
    "full form": ({"teachers": {"x": ensemble(LOCAL, EMBEDDED)}}, "named in compare.ensembles"),
    "weights": (
        {"teachers": {"x": LOCAL}, "ensembles": {"e": {"of": ["teacher", "x"], "weights": [1]}}},
        "2 are needed",
    ),
    "vote of two": (
        {
            "teachers": {"x": LOCAL},
            "ensembles": {"e": {"of": ["teacher", "x"], "combine": "majority"}},
        },
        "ensembles.e: combine: majority of 2 members",
    ),
    "blind": (
        {"teachers": {"x": CLAUDE}, "ensembles": {"e": {"of": ["teacher", "x"]}}},
        "ensembles.e: x .*votes alone",
    ),
}


@pytest.mark.parametrize("case", COMPARE_REFUSED)
def test_a_comparison_that_makes_no_sense_is_one_line(case: str) -> None:
    compare, expected = COMPARE_REFUSED[case]
    with pytest.raises(RecipeError, match=expected):
        recipe(API, compare=compare)


def test_a_comparison_needs_labels() -> None:
    with pytest.raises(RecipeError, match=r"compare needs traffic\.labelled"):
        recipe(API, traffic={"path": "t"}, compare={"teachers": {"x": LOCAL}})


def test_the_section_of_each_choice_is_a_recipe_again() -> None:
    compare = {
        "teachers": {"x": {**LOCAL, "timeout_s": 5.0}},
        "ensembles": {"e": {"of": ["teacher", "x"], "combine": "mean_logits", "weights": [2, 1]}},
    }
    made = recipe(API, compare=compare)
    assert made.compare is not None
    for name in ("teacher", "x", "e"):
        section = made.compare.section_of(name, made.teacher)
        assert recipe(section).teacher.model == section["model"]
    again = recipe(made.compare.section_of("e", made.teacher)).teacher
    assert (again.combine, again.weights) == ("mean_logits", (2.0, 1.0))


def test_paths_of_members_are_seen_from_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    raw = {
        "name": "r",
        "task": CLASSIFY,
        "traffic": {"path": "t.jsonl", "labelled": "l.jsonl"},
        "teacher": ensemble({"model": "hf:./one"}, {"model": "gguf:two.gguf"}),
        "student": {"head": "label", "from": "hf:x"},
        "compare": {"teachers": {"three": {"model": "hf:../three"}}},
    }
    path.write_text(yaml.safe_dump(raw))
    made = load_recipe(path)
    assert made.teacher.sources == (f"hf:{tmp_path / 'one'}", f"gguf:{tmp_path / 'two.gguf'}")
    assert made.compare is not None
    assert made.compare.teachers["three"].model == f"hf:{tmp_path.parent / 'three'}"
