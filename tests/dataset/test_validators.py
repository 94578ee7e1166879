"""The recipe's own demands: patterns, lengths, JSON, language, the user's function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from stillhouse.core.errors import MissingExtraError, UserError
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.recipe_quality import ValidatorsSection
from stillhouse.core.records import Completion, Query, Rejection
from stillhouse.core.tasks import GenerationTask
from stillhouse.dataset import language
from stillhouse.dataset.checks import ExampleParts, check_completion
from stillhouse.dataset.validators import UserFunction, Validators

FREE = GenerationTask(kind="generation")
QUERY = Query(id="q", messages=FREE.messages_for("What is new in town this week?"))


def verdict(text: str, **validators: Any) -> Rejection | ExampleParts:
    section = DatasetSection(validators=ValidatorsSection(**validators))
    completion = Completion(query_id="q", text=text, model="m", revision="r")
    return check_completion(FREE, QUERY, completion, section)


def reason(text: str, **validators: Any) -> str | None:
    found = verdict(text, **validators)
    return found.reason if isinstance(found, Rejection) else None


@pytest.mark.parametrize(
    ("text", "validators", "expected"),
    [
        ("The fair is on Monday.", {"must_match": [r"\bfair\b"]}, None),
        ("The market is on Monday.", {"must_match": [r"\bfair\b"]}, "must_match"),
        ("The fair is on Monday.", {"must_match": ["fair", "Sunday"]}, "must_match"),
        ("The fair is on Monday.", {"must_not_match": [r"https?://", "TBD"]}, None),
        ("See https://x.org for it.", {"must_not_match": [r"https?://"]}, "must_not_match"),
        ("One two three.", {"min_words": 3, "max_words": 3}, None),
        ("One two.", {"min_words": 3}, "too_short"),
        ("One two three four.", {"max_words": 3}, "too_long"),
    ],
)
def test_patterns_and_words(text: str, validators: dict[str, Any], expected: str | None) -> None:
    assert reason(text, **validators) == expected


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_json_of_a_generation_task() -> None:
    assert verdict('{"n": 1, "a": 2}', json_schema=SCHEMA) == ExampleParts('{"n": 1, "a": 2}', None)
    fenced = '```json\n{"n": 1}\n```'
    assert verdict(fenced, json_schema=SCHEMA) == ExampleParts('{"n": 1}', None)
    assert verdict("[1, 2]", json_schema={}) == ExampleParts("[1, 2]", None)
    for text in ('{"n": "x"}', "{}", "n = 1", 'Here: {"n": 1}', '{"n": NaN}', '{"n": 1'):
        assert reason(text, json_schema=SCHEMA) == "schema", text


@pytest.mark.parametrize(
    "section",
    [
        {"must_match": ["("]},
        {"must_not_match": ["*x"]},
        {"min_words": 4, "max_words": 3},
        {"language": "English"},
        {"function": "no colon"},
        {"function": "a.b:c.d"},
        {"json_schema": {"pattern": "x"}},
    ],
)
def test_sections_that_cannot_be(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ValidatorsSection.model_validate(section)


def test_checks_that_can_be_turned_off() -> None:
    assert reason("I'm sorry, but I can't help with that.") == "refusal"
    assert reason("I'm sorry, but I can't help with that.", refusals=False) is None
    assert reason("It opens on Monday. After that the mayor and") == "truncated"
    assert reason("It opens on Monday. After that the mayor and", unfinished=False) is None


# --- the user's function --------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    monkeypatch.chdir(tmp_path)

    def wrote(body: str) -> str:
        (tmp_path / "my_checks_here.py").write_text(f"def check(query, text):\n    {body}\n")
        return "my_checks_here:check"

    yield wrote
    sys.modules.pop("my_checks_here", None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return None", None),
        ("return True", None),
        ("return False", "validator"),
        ("return 'too vague'", "validator"),
        ("return 1 / 0", "validator_error"),
        ("return 3", "validator_error"),
        ("return query.id == 'q' and 'fair' in text", None),
    ],
)
def test_what_a_function_says(write: Callable[[str], str], body: str, expected: str | None) -> None:
    assert reason("The fair is on Monday.", function=write(body)) == expected


def test_it_stops_the_run_only_where_it_fails_on_all(write: Callable[[str], str]) -> None:
    function = UserFunction(write("return 1 / len(text)"))
    function.require_working()  # never called: nothing is known
    assert function.problem(QUERY, "") is not None
    with pytest.raises(UserError, match="failed on all 1 answers; the first: ZeroDivisionError"):
        function.require_working()
    assert function.problem(QUERY, "x").reason == "validator_error"  # type: ignore[union-attr]
    sys.modules.pop("my_checks_here", None)
    some = UserFunction(write("return 1 / len(text) and None"))
    some.problem(QUERY, "")
    assert some.problem(QUERY, "x") is None
    some.require_working()


# --- language -------------------------------------------------------------------------------------


def fake_module(probabilities: dict[str, float]) -> Any:
    identifier = SimpleNamespace(
        labels=["en", "de", "no", "nb"], rank=lambda text: list(probabilities.items())
    )
    module: Any = ModuleType("langid")
    module.MODEL_FILE = ""
    module.LanguageIdentifier = SimpleNamespace(from_model_file=lambda *a, **k: identifier)
    return module


def test_a_language_is_rejected_only_where_it_is_all_but_excluded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chances = {"de": 0.93, "en": 0.04, "nb": 0.03, "no": 0.0}
    monkeypatch.setattr(language, "require", lambda *names: fake_module(chances))
    assert reason("Das Rathaus bleibt zu.", language="en") == "language"
    assert reason("Das Rathaus bleibt zu.", language="de") is None
    assert reason("B 12!", language="en") is None, "too few letters to tell"
    chances["nb"] = 0.06
    for near in ("no", "da"):  # `da` is not known here: its near ones stand for it
        assert reason("Das Rathaus bleibt zu.", language=near) is None
    with pytest.raises(UserError, match=r"dataset\.validators\.language.*got 'xx'"):
        Validators(ValidatorsSection(language="xx"))


def test_without_the_extra_the_pip_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(MissingExtraError, match=r"stillhouse\[language\]"):
        Validators(ValidatorsSection(language="en"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "The town hall stays closed until Monday."),
        ("de", "Das Rathaus bleibt bis Montag geschlossen."),
        ("fr", "La mairie reste fermée jusqu'à lundi."),
        ("es", "El ayuntamiento permanece cerrado hasta el lunes."),
        ("ru", "Мэрия закрыта до понедельника."),
        ("ja", "市役所は月曜日まで閉まっています。"),
    ],
)
def test_real_texts_in_their_language_alone(code: str, text: str) -> None:
    pytest.importorskip("py3langid", reason="needs py3langid (extra language)")
    assert reason(text, language=code) is None
    for other in {"en", "de", "fr", "es", "ru", "ja"} - {code}:
        assert reason(text, language=other) == "language", other
