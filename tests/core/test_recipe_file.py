"""Recipe files: every mistake is one line that names the key and the nearest known one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core.errors import RecipeError
from stillhouse.core.recipe_file import (
    known_keys,
    load_recipe,
    parse_recipe,
    recipe_json_schema,
    recipe_schema_text,
)

RECIPE = """
name: test
task:
  kind: classification
  labels: [a, b]
traffic:
  path: data/t.jsonl
  labelled: ../l.jsonl
teacher:
  model: hf:some/model
student:
  head: label
  from: teacher
"""


def write(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_seen_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    recipe = load_recipe(write(tmp_path / "r"))
    assert recipe.traffic.path == str(tmp_path / "r" / "data" / "t.jsonl")
    assert recipe.traffic.labelled == str(tmp_path / "l.jsonl")
    assert recipe.traffic.golden is None


def test_overrides_reach_into_sections_and_make_them(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path),
        ["seed=7", "train.lora.r=4", "traffic.limit=100", "task.labels=[x, y, z]", "train.alpha=0"],
    )
    assert recipe.seed == 7
    assert recipe.train.lora is not None
    assert recipe.train.lora.r == 4
    assert recipe.traffic.limit == 100
    assert recipe.task.kind == "classification"
    assert recipe.task.labels == ("x", "y", "z")


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("seed", "needs section.key=value"),
        ("=3", "needs section.key=value"),
        ("train..alpha=1", "needs section.key=value"),
        ("name.first=1", "name is not a section"),
        ("seed=[", "not valid YAML"),
        ("seed=2024-99-99", "not valid YAML"),
        ("train.alhpa=1", "did you mean 'alpha'?"),
        ("train.alpha=3", "train.alpha"),
    ],
)
def test_a_wrong_override_is_one_line(tmp_path: Path, item: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), [item])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1"),
        ("a: 1\nb: {", "is not valid YAML"),
        ("- a", "not a mapping"),
        ("", "not a mapping"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("a: !!timestamp soon", "is not valid YAML"),
        ("a: !!python/object:os.system x", "is not valid YAML"),
        ("a: " + "[" * 1500, "is not valid YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "binary.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def changed(**changes: Any) -> dict[str, Any]:
    """The recipe with keys set by their dotted path."""
    raw: dict[str, Any] = yaml.safe_load(RECIPE)
    for key, value in changes.items():
        *sections, last = key.split("__")
        node = raw
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return raw


@pytest.mark.parametrize(
    ("changes", "field", "near"),
    [
        ({"trafic": {}}, "trafic", "traffic"),
        ({"train__learning_rte": 1}, "train.learning_rte", "learning_rate"),
        ({"train__lora__rank": 1, "train__lora__alhpa": 1}, "train.lora.", "r"),
        ({"task__label": ["a"]}, "task.label", "labels"),
        ({"teacher__tune__epoch": 1}, "teacher.tune.epoch", "epochs"),
        ({"student__form": "teacher"}, "student.form", "from"),
        (
            {"prices__models__gpt__input_usd": 1},
            "prices.models.gpt.input_usd",
            "input_usd_per_mtok",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(
    changes: dict[str, Any], field: str, near: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**changes))
    assert str(caught.value).startswith(field)
    assert near in caught.value.action


def test_an_unknown_key_unlike_all_others_lists_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"known keys: .*traffic"):
        parse_recipe(changed(zzzzzz=1))


def test_the_unknown_key_is_named_before_what_it_left_missing() -> None:
    raw = changed(trafic={"path": "x"})
    del raw["traffic"]
    with pytest.raises(RecipeError, match="did you mean 'traffic'"):
        parse_recipe(raw)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__alpha": 2}, "train.alpha"),
        ({"train__alpha": "much"}, "train.alpha"),
        ({"task__kind": "poetry"}, "task"),
        ({"task": None}, "task"),
        ({"teacher__model": "gpt"}, "teacher.model: must be openai:MODEL"),
        ({"dataset__min_examples": 1}, "dataset.min_examples"),
        ({"teacher": {"model": "openai:m"}}, "student.from: teacher needs"),
    ],
)
def test_a_wrong_value_names_its_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**changes), "my.yaml")
    assert said in str(caught.value)
    assert "my.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("task.labels=[a]", "task.labels: needs at least 2 entries (got ['a'])"),
        ("task.prompt=", "task.prompt: must be a text; put it in quotes"),
    ],
)
def test_a_wrong_override_is_said_in_plain_words(tmp_path: Path, item: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path), [item])
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("recipe.yaml or in --set")


def test_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(RecipeError):
        parse_recipe({**changed(), 3: "x"})  # type: ignore[dict-item]


@pytest.mark.parametrize("path", ["~no_such_user_here/x", "a\0b"])
def test_a_path_that_is_none_is_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(RecipeError, match=r"traffic\.path"):
        load_recipe(write(tmp_path), [f"traffic.path={json.dumps(path)}"])


KEYS = st.sampled_from(["name", "task", "kind", "labels", "traffic", "path", "teacher", "x", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=5), st.booleans())
def test_any_mapping_is_a_recipe_or_one_line(raw: dict[str, Any], on_top: bool) -> None:
    said = "a recipe"
    try:
        parse_recipe({**changed(), **raw} if on_top else raw)
    except RecipeError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_recipe_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_json_schema_accepts_what_the_recipe_accepts() -> None:
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(changed())
    assert not validator.is_valid(changed(trafic={}))
    assert json.loads(recipe_schema_text()) == schema


def test_known_keys_are_found_at_every_depth() -> None:
    assert "traffic" in known_keys(())
    assert known_keys(("task", "classification")) == ["kind", "labels", "name", "prompt", "system"]
    assert "r" in known_keys(("train", "lora"))
    assert known_keys(("no", "such")) == []


@pytest.mark.parametrize("kind", ["classification", "extraction", "generation"])
def test_a_task_kind_as_a_section_is_an_unknown_key(kind: str) -> None:
    with pytest.raises(RecipeError, match=f"{kind}: unknown key"):
        parse_recipe(changed(**{kind: {"labels": ["a"]}}))
    with pytest.raises(RecipeError, match=r"task\.lables.*did you mean 'labels'"):
        parse_recipe(changed(task={**changed()["task"], "lables": ["a"]}))
