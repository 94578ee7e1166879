"""The dashboard's pages over HTTP: who may see and do what, what is shown, bad input."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from starlette.requests import Request
from starlette.testclient import TestClient

import dashboard_world as made
from dashboard_world import KEY, TASK, World
from stillhouse.core.errors import UserError
from stillhouse.dashboard import OpenDashboard, RegisteredStudents, of_loop
from stillhouse.monitor.dashboard import access as access_module
from stillhouse.monitor.dashboard.access import SESSION_S, Access, is_local, same_origin
from stillhouse.monitor.dashboard.app import Dashboard
from stillhouse.monitor.dashboard.guard import POLICY, SESSION
from stillhouse.monitor.dashboard.live import Live, event
from stillhouse.monitor.dashboard.run_files import RunFiles
from stillhouse.monitor.dashboard.sources import Sources
from stillhouse.monitor.dashboard.watch_files import WatchFiles
from stillhouse.monitor.state import task_folder
from stillhouse.retrain import gateway_admin
from stillhouse.retrain.registry import Registry
from stillhouse.serve.candidates import offered
from stillhouse.serve.gateway_file import load_gateway
from stillhouse.serve.records import StudentFolder
from stillhouse.serve.states import StoredStates
from stillhouse.serve.tables import SIGNED_OUT, open_database

PAGES = (
    "/",
    "/experiment",
    "/experiment?task=spare",
    "/drift",
    "/drift?task=spare",
    "/traffic",
    "/runs",
    "/runs/run?name=reviews%2Frun",
    "/registry",
    "/frontier",
    "/online",
    "/online?task=spare",
)
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return made.build(tmp_path_factory.mktemp("loop"))


@pytest.fixture
def own(world: World, tmp_path: Path) -> World:
    """One that a test may change."""
    return made.copy_of(world, tmp_path)


@pytest.fixture
def app(world: World) -> Iterator[OpenDashboard]:
    app = made.dashboard_of(world)
    yield app
    app.close()


@pytest.fixture
def visitor(app: OpenDashboard) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)


@pytest.fixture
def admin(visitor: TestClient) -> TestClient:
    told = visitor.post("/login", data={"key": KEY, "next": "/drift"})
    assert (told.status_code, told.headers["location"]) == (303, "/drift")
    return visitor


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def token_of(page: str) -> str:
    return re.findall(r'name="form_token" value="([0-9a-f]{64})"', page)[0]


def version_of(page: str) -> str:
    return re.findall(r'name="version" value="(\d+)"', page)[0]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_shown_whole_and_escaped(visitor: TestClient, path: str) -> None:
    page = visitor.get(path, headers=BEARER)
    assert page.status_code == 200
    assert page.text.rstrip().endswith("</html>")
    assert page.headers["content-security-policy"] == POLICY
    assert page.headers["cache-control"] == "no-store"
    found = Tags(page.text).found
    assert [tag for tag, _ in found if tag in ("img", "svg", "style", "iframe", "base")] == []
    for tag, attributes in found:
        given = dict(attributes)
        assert not [name for name in given if name.startswith("on") or name == "style"]
        assert (given.get("href") or "").partition(":")[0] != "javascript"
        if tag == "script":
            assert (given["src"] or "").startswith("/static/")


@pytest.mark.parametrize("path", [*PAGES, "/registry/promote?ref=x", "/nothing"])
def test_without_the_key_there_is_the_login_alone(visitor: TestClient, path: str) -> None:
    told = visitor.get(path)
    assert told.status_code == 303
    assert told.headers["location"].startswith("/login?next=")
    assert TASK not in told.text


def test_what_is_no_page_is_refused_without_the_key(visitor: TestClient) -> None:
    assert visitor.get("/events").status_code == 401
    for path in ("/registry/promote?ref=x", "/experiment/act?action=kill", "/logout"):
        assert visitor.post(path, data={"reason": "x", "version": "1"}).status_code == 401
    assert visitor.put("/").status_code == 405
    assert visitor.get("/", headers={"authorization": "Bearer wrong"}).status_code == 303
    visitor.cookies.set("stillhouse_session", f"9999999999.x.{'0' * 64}")
    assert visitor.get("/").status_code == 303


def test_wrong_keys_are_slowed_down(visitor: TestClient) -> None:
    told = [visitor.post("/login", data={"key": f"guess{n}"}).status_code for n in range(22)]
    assert told == [401] * 20 + [429] * 2


def test_wrong_bearer_keys_count_with_those_of_the_login() -> None:
    now = [1000.0]
    nothing: Any = None
    sources = Sources(tasks=(TASK,), usage=nothing, traffic=nothing, experiments=nothing)
    app = Dashboard(sources, KEY, clock=lambda: now[0])
    visitor = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    for n in range(10):
        assert visitor.post("/login", data={"key": f"guess{n}"}).status_code == 401
    wrong = [
        visitor.get("/events", headers={"authorization": f"Bearer guess{n}"}).status_code
        for n in range(12)
    ]
    assert wrong == [401] * 10 + [429] * 2
    # From then on no key is looked at, not even the right one; a minute later it is.
    told = visitor.get("/drift", headers=BEARER)
    assert (told.status_code, told.headers["retry-after"]) == (429, "60")
    assert visitor.post("/login", data={"key": KEY}).status_code == 429
    assert visitor.get("/healthz").status_code == 200
    now[0] += 61
    assert visitor.get("/drift", headers=BEARER).status_code == 200
    # Other words in that header are no guesses, and a session asks for no key.
    visitor.post("/login", data={"key": KEY})
    for n in range(40):
        visitor.get("/healthz", headers={"authorization": "Basic eDp5"})
        assert visitor.get("/runs", headers={"authorization": f"Bearer x{n}"}).status_code == 200


def test_a_stream_ends_with_its_session() -> None:
    now = [1000.0]
    access = Access("a" * 20, lambda: now[0])

    async def events(live: Live, session: str, end: Callable[[], object]) -> int:
        """How many events come before the stream ends by itself."""
        seen = 0
        request = Request({"type": "http", "root_path": "", SESSION: session})
        response = await live.route(request)
        async with asyncio.timeout(5):
            async for _ in response.body_iterator:  # type: ignore[attr-defined]
                seen += 1
                if inspect.isawaitable(done := end()):
                    await done
        return seen

    def counting() -> Live:
        figures = iter(range(1000))
        return Live(lambda _: {"numbers": str(next(figures))}, access.still_holds, every_s=0.01)

    def later() -> None:
        now[0] += SESSION_S / 4

    asleep = access.new_session()
    assert asyncio.run(events(counting(), asleep, later)) == 4
    signed_out = access.new_session()
    other = access.new_session()
    assert asyncio.run(events(counting(), signed_out, lambda: access.end(signed_out))) == 1
    assert (access.holds(signed_out), access.holds(other)) == (False, True)
    live, left = counting(), [6]

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            live.stop()

    now[0] += 2 * SESSION_S  # a Bearer key's stream has no session that could end
    assert asyncio.run(events(live, "", stop)) == 6


def test_whoever_signs_out_is_out(admin: TestClient) -> None:
    cookie = admin.cookies["stillhouse_session"]
    token = token_of(admin.get("/drift").text)
    assert admin.post("/logout", data={"form_token": token}).status_code == 303
    admin.cookies.set("stillhouse_session", cookie)  # kept by somebody
    assert admin.get("/drift").status_code == 303


def test_whoever_signs_out_is_out_of_every_process(
    world: World, visitor: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = made.dashboard_of(world)  # as another worker, or a dashboard of its own
    other = TestClient(there, base_url="http://127.0.0.1", follow_redirects=False)
    visitor.post("/login", data={"key": KEY})
    cookie = visitor.cookies["stillhouse_session"]
    other.cookies.set("stillhouse_session", cookie)
    page = other.get("/drift")
    assert page.status_code == 200
    assert visitor.post("/logout", data={"form_token": token_of(page.text)}).status_code == 303
    monkeypatch.setattr(access_module, "LOOK_S", 0.0)  # as if the second had passed
    assert other.get("/drift").status_code == 303
    acted = other.post("/experiment/act?task=reviews&action=kill", data={"reason": "x"})
    assert acted.status_code == 401
    # Of the session itself nothing is kept that would open it.
    engine = open_database(world.url)
    with engine.connect() as connection:
        kept = connection.execute(sa.select(SIGNED_OUT)).all()
    engine.dispose()
    assert cookie not in str(kept)
    assert len(kept) >= 1
    there.close()


def test_a_sign_out_that_others_cannot_be_told_of_is_said(
    own: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = made.dashboard_of(own)
    visitor = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    visitor.post("/login", data={"key": KEY})
    cookie = visitor.cookies["stillhouse_session"]
    token = token_of(visitor.get("/runs").text)
    engine = open_database(own.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE signed_out")
    engine.dispose()
    told = visitor.post("/logout", data={"form_token": token})
    assert told.status_code == 503
    assert "Signed out here alone" in told.text
    assert 'stillhouse_session=""' in told.headers["set-cookie"]
    visitor.cookies.set("stillhouse_session", cookie)
    assert visitor.get("/runs").status_code == 303
    app.close()


@pytest.mark.parametrize(
    "place", ["//evil.example", "https://evil.example", "/\\evil", "", "/\n/x"]
)
def test_the_login_leads_nowhere_else(visitor: TestClient, place: str) -> None:
    told = visitor.post("/login", data={"key": KEY, "next": place})
    assert told.headers["location"] == "/"
    cookie = told.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))


def test_sessions_end_and_are_not_forged() -> None:
    now = [1000.0]
    access = Access("a" * 20, lambda: now[0])
    session = access.new_session()
    assert access.holds(session)
    assert access.fits(session, access.token(session))
    assert not access.fits(session, access.token(access.new_session()))
    assert not Access("b" * 20, lambda: now[0]).holds(session)
    assert not access.holds("9" + session)
    for bad in ("", ".", "..", "x.y.z", session[:-1], "é" * 10, "1" * 5000):
        assert not access.holds(bad)
    now[0] += SESSION_S
    assert not access.holds(session)


def test_names_of_hosts() -> None:
    assert all(map(is_local, (None, "localhost:8090", "127.0.0.1", "[::1]:1", "10.0.0.3:80")))
    assert not any(map(is_local, ("evil.example", "localhost.evil.example:8090", "[", "")))
    assert same_origin("http://a:1", "a:1")
    assert not any(same_origin(one, "a:1") for one in ("null", "http://b:1", "http://a:2"))


def test_without_any_key_it_is_read_only_and_local(world: World) -> None:
    app = made.dashboard_of(world, key=None)
    visitor = TestClient(app, base_url="http://127.0.0.1:8090", follow_redirects=False)
    assert "read only" in visitor.get("/").text
    assert "Promote…" not in visitor.get("/registry").text
    assert visitor.get("/", headers={"host": "rebound.example"}).status_code == 403
    told = visitor.post("/experiment/act?action=kill", data={"reason": "x", "version": "2"})
    assert told.status_code == 403
    assert visitor.post("/login", data={"key": ""}).headers["location"] == "/"
    app.close()


def test_a_form_of_another_site_does_nothing(admin: TestClient, world: World) -> None:
    ask = admin.get("/experiment/act?action=kill").text
    form = {"reason": "because", "version": version_of(ask), "form_token": token_of(ask)}
    for headers, data in (
        ({"origin": "http://evil.example"}, form),
        ({"origin": "null"}, form),
        ({}, form | {"form_token": "0" * 64}),
        ({}, {name: form[name] for name in ("reason", "version")}),
    ):
        told = admin.post("/experiment/act?action=kill", data=data, headers=headers)
        assert told.status_code == 403
    assert "killed" not in admin.get("/").text


def test_an_experiment_is_killed_by_hand_once(admin: TestClient) -> None:
    ask = admin.get("/experiment/act?action=kill").text
    assert "the teacher answers every request" in ask
    form = {"reason": "it is wrong", "version": version_of(ask), "form_token": token_of(ask)}
    path = "/experiment/act?action=kill"
    assert admin.post(path, data=form | {"reason": " "}).status_code == 400
    assert admin.post(path, data=form | {"version": "x"}).status_code == 400
    assert admin.post(path, data=form).headers["location"] == "/experiment?task=reviews"
    page = admin.get("/experiment").text
    assert "it is wrong" in page
    assert "dashboard" in page
    again = admin.post(path, data=form)
    assert again.status_code == 409
    assert "Another operator was first" in again.text
    ask = admin.get("/experiment/act?action=revive").text
    form |= {"version": version_of(ask)}
    assert admin.post("/experiment/act?action=revive", data=form).status_code == 303
    same = admin.post(
        "/experiment/act?action=revive", data=form | {"version": str(int(form["version"]) + 1)}
    )
    assert same.status_code == 400


def test_promotion_and_roll_back(own: World) -> None:
    app = made.dashboard_of(own)
    admin = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
    registry = Registry(own.folder / "registry")
    newest, live = registry.entries(TASK)[0], registry.live(TASK)
    assert live is not None
    assert live.id != newest.id
    admin.post("/login", data={"key": KEY})
    page = admin.get("/registry").text
    assert f"/registry/promote?ref={newest.id}" in page
    assert '<td data-name="Gate">none</td>' in page
    ask = admin.get(f"/registry/promote?ref={newest.id}").text
    form = {"reason": "the gate says so", "version": version_of(ask), "form_token": token_of(ask)}
    registry.alias(TASK, "steady", newest.id)  # another operator, meanwhile
    told = admin.post(f"/registry/promote?ref={newest.id}", data=form)
    assert told.status_code == 409
    assert registry.live(TASK) == registry.get(live.id)
    form["version"] = version_of(admin.get(f"/registry/promote?ref={newest.id}").text)
    assert admin.post(f"/registry/promote?ref={newest.id}", data=form).status_code == 303
    assert registry.get(f"{TASK}@live").id == newest.id
    assert registry.history(TASK)[-1].by == "dashboard"
    form["version"] = version_of(admin.get("/registry/rollback?task=reviews").text)
    assert admin.post("/registry/rollback?task=reviews", data=form).status_code == 303
    assert registry.get(f"{TASK}@live").id == live.id
    for path in ("/registry/promote?ref=s-000000000000", "/registry/rollback?task=spare"):
        assert admin.get(path).status_code == 404
    app.close()


def test_a_gateway_that_cannot_follow_is_told_of(
    own: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", KEY)
    monkeypatch.setattr(gateway_admin, "PAUSE_S", 0.001)
    path = own.folder / "gateway.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("port: 0", "port: 9"), "utf-8")
    app = made.dashboard_of(own)
    admin = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False, headers=BEARER)
    registry = Registry(own.folder / "registry")
    newest = registry.entries(TASK)[0]
    asking = admin.get(f"/registry/promote?ref={newest.id}").text
    assert "The gateway answers with it at once" in asking
    form = {"reason": "the gate says so", "version": version_of(asking)}
    told = admin.post(f"/registry/promote?ref={newest.id}", data=form)
    assert (told.status_code, "Done in the registry" in told.text) == (200, True)
    assert "start the gateway, then run: stillhouse registry reload reviews" in told.text
    assert registry.get(f"{TASK}@live").id == newest.id
    app.close()


def test_online_learning_is_shown_as_it_stands(own: World, visitor: TestClient) -> None:
    page = visitor.get("/online", headers=BEARER).text
    assert "Version 2 is live" in page
    assert "the gateway was not given it yet" in page
    assert "90.0%, 93.0%" in page  # the guard, live and new
    assert "3.0% (1.0 to 5.0)" in page
    for words in ("roll back", "a bad batch", "refuse", "12 rows"):
        assert words in page
    assert "1 of 2 answer" in page
    assert "user 0123abcd…" in page
    assert "costs 20.0% of the guard set" in page
    assert "Quarantined tenants:</strong> &lt;b&gt;evil" in page
    assert "0123abcd4" not in page  # no whole pseudonym
    empty = visitor.get("/online?task=spare", headers=BEARER).text
    assert "Nothing was learned yet" in empty
    path = own.folder / "loop" / TASK / "online" / "state.json"
    app = made.dashboard_of(own)
    again = TestClient(app, base_url="http://127.0.0.1", headers=BEARER)
    assert "Version 2 is live" in again.get("/online").text
    for damage in ("{", "[]", '{"versions": 3}'):
        path.write_text(damage, encoding="utf-8")
        assert "Nothing was learned yet" in again.get("/online").text
    path.write_text('{"live": 7, "events": [{"figures": {"live": "x"}}], "more": 1}', "utf-8")
    assert "Version 7 is live" in again.get("/online").text
    assert visitor.get("/online?task=nothing", headers=BEARER).status_code == 404
    app.close()


def test_a_registry_that_was_tampered_with_is_said_to_be_so(own: World) -> None:
    entry = next((own.folder / "registry").rglob("s-*.json"))
    entry.write_text(
        entry.read_text(encoding="utf-8").replace("accuracy", "recall"), encoding="utf-8"
    )
    app = made.dashboard_of(own)
    page = TestClient(app, base_url="http://127.0.0.1").get("/registry", headers=BEARER)
    assert page.status_code == 200
    assert "was changed" in page.text
    app.close()


def test_traffic_is_filtered_and_paged(visitor: TestClient) -> None:
    def ids(path: str) -> list[str]:
        page = visitor.get(path, headers=BEARER).text
        return re.findall(r'aria-label="Request (\w+)"', page)

    first = visitor.get("/traffic", headers=BEARER).text
    assert ids("/traffic")[:2] == ["r59", "r58"]
    older = re.findall(r'rel="next" href="([^"]+)"', first)[0].replace("&amp;", "&")
    assert ids(older)[0] == "r34"
    assert ids("/traffic?differing=1") == ["r16", "r12", "r8", "r4", "r0"]
    assert ids("/traffic?below=0.5") == ["r16", "r12", "r8", "r4", "r0"]
    assert ids("/traffic?variant=student")[-1] == "r40"
    assert ids("/traffic?id=s4") == ["r4"]
    assert ids("/traffic?id=r7") == ["r7"]
    assert ids("/traffic?task=spare") == []
    pair = visitor.get("/traffic?id=r0", headers=BEARER).text
    assert ">fresh</pre>" in pair
    assert ">rotten</pre>" in pair
    user = re.findall(r"\?user=([0-9a-f]{32})", pair)[0]
    assert ids(f"/traffic?user={user}") == [f"r{n}" for n in range(55, -1, -5)]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("below=2", "from 0 to 1"),
        ("below=nan", "from 0 to 1"),
        ("below=x", "from 0 to 1"),
        ("task=other", "there are reviews, spare"),
        ("variant=both", "teacher or student"),
        ("user=a%00b", "no NUL"),
    ],
)
def test_filters_that_make_no_sense_are_said(visitor: TestClient, query: str, said: str) -> None:
    told = visitor.get(f"/traffic?{query}", headers=BEARER)
    assert told.status_code == 400
    assert said in told.text


@pytest.mark.parametrize(
    "query", ["at=x&after=r1", "at=inf&after=r1", "at=1", "id=%27%20OR%201", "at=1e309&after=%00"]
)
def test_places_that_are_none_are_the_beginning(visitor: TestClient, query: str) -> None:
    assert visitor.get(f"/traffic?{query}", headers=BEARER).status_code == 200


def test_unknown_names_lead_nowhere(visitor: TestClient) -> None:
    for path in (
        "/experiment?task=other",
        "/drift?task=..",
        "/runs/run?name=..%2F..",
        "/runs/run?name=",
    ):
        assert visitor.get(path, headers=BEARER).status_code == 404
    assert visitor.get("/static/../app.py", headers=BEARER).status_code == 404
    assert visitor.get("/static/%2e%2e/app.py", headers=BEARER).status_code == 404


def test_the_figures_are_those_of_the_log(visitor: TestClient) -> None:
    page = visitor.get("/", headers=BEARER).text
    # 60 requests at 0.01 with the teacher; 40 paid so, 20 at 0.0001, and 20 shadow answers.
    assert "0.20 USD" in page
    assert "of 0.60 USD with the teacher alone, 60 requests" in page
    assert "33.3%" in page
    assert "within the margin" in page
    assert "critical: input shift" in page


def test_an_alert_that_the_newest_window_no_longer_sees_is_not_open(own: World) -> None:
    calm = made.window(6, own.now) | {"findings": [], "drift": None, "until": own.now}
    lines = [*(made.window(n, own.now) for n in range(1, 6)), calm]
    made.write_lines(own.folder / "loop" / TASK / "windows.jsonl", lines)
    app = made.dashboard_of(own)
    visitor = TestClient(app, base_url="http://127.0.0.1", headers=BEARER)
    assert "critical: input shift" not in visitor.get("/").text
    assert "no longer seen" in visitor.get("/drift").text
    app.close()


def test_lines_that_cannot_be_read_are_left_out(own: World) -> None:
    with (own.folder / "loop" / TASK / "windows.jsonl").open("ab") as file:
        file.write(b'{"number": 6, "since"')
    (own.folder / "run" / "train" / "history.json").write_text('[{"step": "x"}]', encoding="utf-8")
    (own.folder / "run" / "train" / "convergence.json").write_text("{}", encoding="utf-8")
    app = made.dashboard_of(own)
    visitor = TestClient(app, base_url="http://127.0.0.1", headers=BEARER)
    assert "Newest window: 5" in visitor.get("/drift").text
    page = visitor.get("/runs/run?name=reviews%2Frun").text
    assert "train/history.json cannot be read" in page
    assert "train/convergence.json cannot be read" in page
    app.close()


def test_a_database_that_is_away_is_said_to_be_so(own: World) -> None:
    app = made.dashboard_of(own)
    visitor = TestClient(app, base_url="http://127.0.0.1", headers=BEARER)
    engine = sa.create_engine(own.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hours RENAME TO gone")
    page = visitor.get("/")
    assert page.status_code == 503
    assert "cannot be read now" in page.text
    assert "SELECT" not in page.text
    engine.dispose()
    app.close()


def test_an_event_of_several_lines_stays_one() -> None:
    assert event("a", "<p>\n\nx</p>\r\n") == "event: a\ndata: <p>\ndata: x</p>\n\n"
    assert event("a", "") == "event: a\ndata:\n\n"


@pytest.mark.parametrize(
    ("change", "host", "key", "said"),
    [
        ({"log": {}}, "127.0.0.1", KEY, "log.url"),
        ({}, "0.0.0.0", None, "STILLHOUSE_ADMIN_KEY"),
        ({}, "0.0.0.0", "short", "STILLHOUSE_ADMIN_KEY"),
        ({}, "0.0.0.0", "schlüssel-0123456789", "holds what no key may hold"),
        ({}, "127.0.0.1", "\udcff", "holds what no key may hold"),
    ],
)
def test_what_cannot_be_shown_is_said(  # noqa: PLR0917 - parameters
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    host: str,
    key: str | None,
    said: str,
) -> None:
    if key is None:
        monkeypatch.delenv("STILLHOUSE_ADMIN_KEY", raising=False)
    else:
        monkeypatch.setenv("STILLHOUSE_ADMIN_KEY", key)
    gateway = {
        "upstreams": {"big": {"base_url": "http://127.0.0.1:9/v1", "model": "big"}},
        "tasks": {TASK: {"teacher": "big"}},
        "log": {"url": f"sqlite:///{tmp_path}/g.db"},
    }
    (tmp_path / "gateway.yaml").write_text(yaml.safe_dump(gateway | change), encoding="utf-8")
    loop = {"gateway": "gateway.yaml", "tasks": {TASK: {"recipe": "r.yaml"}}}
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(loop), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        of_loop(tmp_path / "loop.yaml", host)


def test_live_numbers_come_as_events(world: World) -> None:
    app = made.dashboard_of(world)
    with made.served(app) as url:
        asked = urllib.request.Request(f"{url}/events", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(asked, timeout=10) as stream:
            lines = [stream.readline().decode() for _ in range(4)]
        begun = time.monotonic()
        stream = urllib.request.urlopen(asked, timeout=10)
        stream.readline()
    assert "event: numbers\n" in lines
    # The server has ended though a stream was open.
    assert time.monotonic() - begun < 3
    stream.close()


def test_charts_are_given_as_tables_too(visitor: TestClient) -> None:
    page = visitor.get("/experiment", headers=BEARER).text
    specs = re.findall(r'data-chart="([^"]+)"', page)
    assert len(specs) == 2
    first = json.loads(specs[0].replace("&#34;", '"').replace("&quot;", '"'))
    assert first["series"][0]["band"][0][1] < first["series"][0]["points"][0][1]
    assert "<td>580</td><td>0.055</td>" in page


def test_a_candidate_is_named_and_not_approved_before_it_is_open(own: World) -> None:
    engine = sa.create_engine(own.url)
    states = StoredStates(engine)
    folder = StudentFolder(name="s-0123456789ab", path="/s/s-0123456789ab", fingerprint="f")
    plan = load_gateway(own.folder / "gateway.yaml").tasks[TASK].experiment.stages
    new, decision = offered(states.get(TASK), plan, folder, "the gate", own.now)
    assert states.swap(new.version - 1, new, decision)
    app = made.dashboard_of(own)
    admin = TestClient(app, base_url="http://127.0.0.1", headers=BEARER)
    page = admin.get("/experiment").text
    assert "candidate s-0123456789ab" in page
    form = {"reason": "at once", "version": str(new.version)}
    told = admin.post("/experiment/act?action=approve", data=form)
    assert told.status_code == 400
    assert "no gateway has told yet that s-0123456789ab is open" in told.text
    assert "is withdrawn" in admin.get("/experiment/act?action=rollback").text
    app.close()
    engine.dispose()


def test_a_task_of_any_name_is_found_where_watching_writes_it(world: World, tmp_path: Path) -> None:
    task = "mail/in"
    folder = task_folder(tmp_path, task)
    (folder / "cycles" / "0001").mkdir(parents=True)
    for name in ("windows.jsonl", "alerts.jsonl"):
        text = (world.folder / "loop" / TASK / name).read_text(encoding="utf-8")
        (folder / name).write_text(text, encoding="utf-8")
    watch = WatchFiles(tmp_path)
    assert (len(watch.windows(task)), len(watch.alerts(task))) == (5, 1)
    assert [one.name for one in RunFiles({}, tmp_path, (task,)).listed()] == [f"{task}/cycles/0001"]


def test_a_move_while_the_page_is_made_is_a_conflict(own: World) -> None:
    app = made.dashboard_of(own)
    admin = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False, headers=BEARER)
    newest = RegisteredStudents.entries
    registry = Registry(own.folder / "registry")
    registry.promote(registry.entries(TASK)[0].id, reason="first", by="ann")
    moved: list[int] = []

    def moved_after_the_read(self: RegisteredStudents, task: str | None = None) -> Any:
        found = newest(self, task)
        if not moved:
            moved.append(1)
            registry.roll_back(TASK, reason="meanwhile", by="bob")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegisteredStudents, "entries", moved_after_the_read)
        seen = version_of(admin.get(f"/registry/rollback?task={TASK}").text)
    told = admin.post(f"/registry/rollback?task={TASK}", data={"reason": "x", "version": seen})
    assert (moved, told.status_code) == ([1], 409)
    app.close()
