"""Does the teacher still exist, and until when: models endpoints, headers, the dated table."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from progress_lines import Lines
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.core.errors import TeacherError, UserError
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.teacher.lifecycle import Lifecycle, announced, from_headers, from_model_object
from stillhouse.teacher.retirement import lifecycle_of, warn_of_retirement
from teacher_servers import KEY, openai_answer, serve

TODAY = date(2026, 11, 24)
Handler = Callable[[web.Request], Any]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def models(
    one: dict[str, Any] | None,
    headers: dict[str, str] | None = None,
    listed: list[str] | None = None,
) -> list[web.RouteDef]:
    async def retrieve(request: web.Request) -> web.Response:
        if one is None:
            if listed is not None or "anything" in request.match_info["name"]:
                return web.Response(status=404, text="no such path")
            said = {"type": "not_found_error", "code": "model_not_found", "message": "no"}
            return web.json_response({"type": "error", "error": said}, status=404)
        return web.json_response({"id": request.match_info["name"], **one}, headers=headers)

    async def all_of_them(_: web.Request) -> web.Response:
        data = [{"id": name, "object": "model"} for name in listed or ()]
        return web.json_response({"object": "list", "data": data})

    routes = [web.get("/v1/models/{name}", retrieve)]
    return routes if listed is None else [*routes, web.get("/v1/models", all_of_them)]


def section(url: str, model: str = "openai:some-model", **more: Any) -> TeacherSection:
    base = url if model.startswith("anthropic") else url + "/v1"
    return TeacherSection.model_validate({"model": model, "base_url": base, **more})


OPENAI = {"object": "model", "created": 1, "owned_by": "o"}
CLAUDE = {"type": "model", "display_name": "C", "created_at": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("model", "body", "retires", "exists", "deprecated"),
    [
        ("openai:m", OPENAI, None, True, False),
        ("openai:m", {**OPENAI, "shutdown_date": "2027-01-14"}, date(2027, 1, 14), True, False),
        ("openai:m", {**OPENAI, "shutdown_date": "soon"}, None, True, False),
        ("anthropic:m", {**CLAUDE, "lifecycle": "active"}, None, True, False),
        (
            "anthropic:m",
            {**CLAUDE, "lifecycle": "deprecated", "retires_at": "2027-02-01T00:00:00Z"},
            date(2027, 2, 1),
            True,
            True,
        ),
        ("anthropic:m", {**CLAUDE, "lifecycle": "retired"}, None, False, False),
        ("openai:m", None, None, False, False),
        ("anthropic:m", None, None, False, False),
    ],
)
def test_the_models_endpoint_is_asked(
    model: str, body: dict[str, Any] | None, retires: date | None, exists: bool, deprecated: bool
) -> None:
    with serve(lambda *_: openai_answer(), routes=models(body)) as server:
        found = lifecycle_of(section(server.url, model))
    assert (found.retires_on, found.exists, found.deprecated) == (retires, exists, deprecated)
    warning = found.warning(TODAY)
    assert (warning is not None) == (retires is not None or not exists or deprecated)
    if not exists:
        assert warning is not None
        assert "replay" in warning


@pytest.mark.parametrize(("listed", "exists"), [(["m", "n"], True), (["n"], False)])
@pytest.mark.parametrize("kind", ["openai-compatible", "openai", "anthropic"])
def test_a_server_may_only_list(kind: str, listed: list[str], exists: bool) -> None:
    with serve(lambda *_: openai_answer(), routes=models(None, listed=listed)) as server:
        found = lifecycle_of(section(server.url, f"{kind}:m"))
    assert found.exists is exists


def test_a_server_without_a_models_endpoint_says_nothing() -> None:
    with serve(lambda *_: openai_answer(), routes=models(None)) as server:
        found = lifecycle_of(section(server.url, "openai-compatible:anything"))
    assert found.exists is None
    assert found.warning(TODAY) is None


def test_headers_on_the_model_are_read() -> None:
    told = {
        "Deprecation": "@1688169599",
        "Sunset": "Sun, 11 Nov 2029 23:59:59 GMT",
        "Link": '<https://example.test/moves>; rel="sunset"; type="text/html"',
    }
    with serve(lambda *_: openai_answer(), routes=models(OPENAI, told)) as server:
        found = lifecycle_of(section(server.url))
    assert found.retires_on == date(2029, 11, 11)
    assert found.deprecated
    assert found.link == "https://example.test/moves"


@pytest.mark.parametrize(
    ("headers", "retires", "deprecated"),
    [
        ({}, None, None),
        ({"content-type": "x"}, None, None),
        ({"deprecation": "@1688169599"}, None, True),
        ({"deprecation": "true"}, None, True),  # older drafts
        ({"Deprecation": "Sun, 11 Nov 2018 23:59:59 GMT"}, None, True),
        ({"SUNSET": "Sat, 31 Dec 2018 23:59:59 GMT"}, date(2018, 12, 31), True),
        ({"sunset": "tomorrow"}, None, None),
        ({"deprecation": "no"}, None, None),
    ],
)
def test_what_headers_announce(
    headers: dict[str, str], retires: date | None, deprecated: bool | None
) -> None:
    found = from_headers("m", headers)
    if deprecated is None:
        assert found is None
    else:
        assert found is not None
        assert (found.retires_on, found.deprecated) == (retires, deprecated)


@given(st.dictionaries(st.sampled_from(["sunset", "deprecation", "link"]), st.text()))
def test_any_header_is_read_or_passed_over(headers: dict[str, str]) -> None:
    from_headers("m", headers)


json_values = st.none() | st.booleans() | st.integers() | st.text()


@given(
    st.dictionaries(
        st.sampled_from(["lifecycle", "shutdown_date", "retires_at", "deprecated_at"]), json_values
    )
)
def test_any_model_object_is_read(body: dict[str, Any]) -> None:
    from_model_object("m", body)


def test_the_table_is_dated_and_the_recipe_goes_first() -> None:
    known = announced(TeacherSection.model_validate({"model": "openai:gpt-4.1-2025-04-14"}))
    assert known.retires_on == date(2027, 1, 14)
    assert "as of 2026-10-27" in known.source
    old = announced(TeacherSection.model_validate({"model": "openai:gpt-4o-2024-05-13"}))
    assert old.retires_on == date(2026, 10, 23), "a snapshot's own row goes before its model's"
    own = announced(
        TeacherSection.model_validate({"model": "openai:gpt-4.1", "retires_on": "2030-01-01"})
    )
    assert own.retires_on == date(2030, 1, 1)
    assert announced(TeacherSection.model_validate({"model": "openai:new"})).retires_on is None


def test_what_the_provider_says_goes_before_the_table() -> None:
    body = {**OPENAI, "shutdown_date": "2028-08-08"}
    with serve(lambda *_: openai_answer(), routes=models(body)) as server:
        asked = lifecycle_of(section(server.url, "openai:gpt-4.1"))
        mine = lifecycle_of(section(server.url, "openai:gpt-4.1", retires_on="2029-09-09"))
    assert (asked.retires_on, mine.retires_on) == (date(2028, 8, 8), date(2029, 9, 9))


def test_a_wrong_key_is_an_error_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(request: web.Request) -> web.Response:
        said = f"bad key {request.headers['Authorization']}"
        return web.json_response({"error": {"message": said}}, status=401)

    routes = [web.get("/v1/models/{n}", refuse)]
    with (
        serve(lambda *_: openai_answer(), routes=routes) as server,
        pytest.raises(TeacherError, match="OPENAI_API_KEY") as caught,
    ):
        lifecycle_of(section(server.url))
    assert KEY not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        lifecycle_of(section(server.url))


def test_a_run_warns_and_goes_on_where_nobody_answers() -> None:
    lines = Lines()
    warn_of_retirement(section("http://127.0.0.1:9", "openai:gpt-4.1"), lines)
    warn_of_retirement(TeacherSection.model_validate({"model": "embedded"}), lines)
    assert len(lines.said) == 1
    assert "2027-01-14" in lines.said[0]


def test_nobody_is_asked_about_a_replay(capfd: pytest.CaptureFixture[str]) -> None:
    asked = []

    async def retrieve(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"id": "m", **OPENAI})

    routes = [web.get("/{path:.*}", retrieve)]
    with (
        serve(lambda *_: openai_answer(), routes=routes) as server,
        pytest.MonkeyPatch.context() as to,
    ):
        to.setattr("stillhouse.teacher.retirement_ask.OPENAI_URL", server.url + "/v1")
        replay = TeacherSection.model_validate({"model": "replay:answers.jsonl"})
        lines = Lines()
        warn_of_retirement(replay, lines)
        assert lifecycle_of(replay).exists
    assert (asked, lines.said) == ([], [])


def test_each_member_of_an_ensemble_is_asked_about() -> None:
    def ensemble(url: str, *names: str, **more: Any) -> TeacherSection:
        members = [{"model": f"openai:{name}", "base_url": url + "/v1"} for name in names]
        raw = {"model": "ensemble", "combine": "majority", "members": members, **more}
        return TeacherSection.model_validate(raw)

    with serve(lambda *_: openai_answer(), routes=models(OPENAI)) as server:
        lines = Lines()
        mixed = ensemble(server.url, "gpt-4.1", "young", "younger")
        warn_of_retirement(mixed, lines)
        assert len(lines.said) == 1
        assert "openai:gpt-4.1 retires on 2027-01-14" in lines.said[0]
        assert lifecycle_of(mixed).model == "openai:gpt-4.1"
        young = lifecycle_of(ensemble(server.url, "young", "younger", "youngest"))
        assert (young.model, young.exists, young.retires_on) == ("ensemble", True, None)
        mine = ensemble(server.url, "gpt-4.1", "young", "younger", retires_on="2026-12-01")
        assert lifecycle_of(mine).retires_on == date(2026, 12, 1)
    with serve(lambda *_: openai_answer(), routes=models(None)) as server:
        gone = lifecycle_of(ensemble(server.url, "a", "b", "c"))
        assert (gone.model, gone.exists) == ("openai:a", False)


def test_a_warning_counts_the_days() -> None:
    found = Lifecycle(model="m", exists=True, retires_on=date(2026, 12, 1), source="s")
    assert "in 7 days" in str(found.warning(TODAY))
    assert "today" in str(found.warning(date(2026, 12, 1)))
    assert "already past" in str(found.warning(date(2026, 12, 2)))


def recipe_file(folder: Path, teacher: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    raw = {
        "name": "t",
        "task": {"kind": "classification", "labels": ["a", "b"]},
        "traffic": {"path": "t.jsonl"},
        "teacher": teacher,
        "student": {"head": "label", "from": "embedded-encoder"},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_command_says_0_with_a_warning_and_2_when_it_is_gone(tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    for body, code, said in (
        (OPENAI, 0, "no retirement is announced"),
        ({**OPENAI, "shutdown_date": "2027-01-14"}, 0, "WARNING"),
        (None, 2, "GONE"),
    ):
        with serve(lambda *_: openai_answer(), routes=models(body)) as server:
            path = recipe_file(tmp_path, {"model": "openai:m", "base_url": server.url + "/v1"})
            done = invoke(app, ["teacher", "check", str(path)])
            assert done.exit_code == code
            assert said in done.output
            as_json = json.loads(invoke(app, ["teacher", "check", str(path), "--json"]).stdout)
        assert as_json["exists"] is (body is not None)
    path = recipe_file(tmp_path, {"model": "embedded"})
    assert invoke(app, ["teacher", "check", str(path)]).exit_code == 0
