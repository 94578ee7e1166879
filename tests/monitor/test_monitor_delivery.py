"""Delivery over a real HTTP server; what goes wrong loses no alert and shows no URL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from monitor_world import World

from stillhouse.core.errors import UserError
from stillhouse.core.loop_monitor import AlertsSection
from stillhouse.monitor.delivery import Channel, channels, deliver, slack_body
from stillhouse.monitor.records import Alert
from stillhouse.monitoring import check_tasks
from teacher_servers import openai_answer, serve

ALERT = Alert(
    id="a-0123456789ab",
    at=1.0,
    task="reviews",
    kind="fidelity",
    cause="agreement",
    severity="critical",
    summary="agreement is 80% <script>",
    examples=({"request": "r1", "at": 1.0, "text": "see <!channel> & <http://x.org|y>"},),
    action="retrain",
    window=(0.0, 1.0),
)
SECRET = "T0KEN-in-the-path"


class Receiver:
    """A webhook: what it got, and what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.wait_s = 0.0
        self.got: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.append(await request.json())
        self.keys.append(request.headers["Idempotency-Key"])
        await asyncio.sleep(self.wait_s)
        headers = {"Location": "/elsewhere"} if self.status == 307 else {}
        return web.Response(status=self.status, headers=headers)


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    receiver = Receiver()
    routes = [web.post(f"/hook/{SECRET}", receiver.take), web.post("/elsewhere", receiver.take)]
    with serve(lambda _, __: openai_answer(), routes=routes) as running:
        receiver.url = f"{running.url}/hook/{SECRET}"
        yield receiver


@pytest.fixture
def receiver(server: Receiver) -> Receiver:
    server.status, server.wait_s = 200, 0.0
    server.got.clear()
    server.keys.clear()
    return server


def test_a_webhook_gets_the_alert_as_it_is_kept(receiver: Receiver) -> None:
    assert deliver(Channel("webhook", receiver.url, 5), ALERT) is None
    (body,) = receiver.got
    assert body["type"] == "stillhouse.alert"
    assert Alert.model_validate(body["alert"]) == ALERT
    assert receiver.keys == [ALERT.id]


def test_slack_gets_text_and_blocks_and_no_mention(receiver: Receiver) -> None:
    assert deliver(Channel("slack", receiver.url, 5), ALERT) is None
    (body,) = receiver.got
    assert body.keys() == {"text", "blocks"}
    text = json.dumps(body)
    assert "<!channel>" not in text
    assert "<script>" not in text
    assert "&lt;!channel&gt; &amp;" in text
    long = ALERT.model_copy(update={"summary": "x" * 10_000})
    for block in slack_body(long)["blocks"]:
        assert len(json.dumps(block)) < 3200


@pytest.mark.parametrize("status", [307, 400, 404, 500])
def test_anything_but_2xx_is_a_failure_and_no_redirect_is_followed(
    receiver: Receiver, status: int
) -> None:
    receiver.status = status
    problem = deliver(Channel("webhook", receiver.url, 5), ALERT)
    assert problem is not None
    assert str(status) in problem
    assert SECRET not in problem
    assert len(receiver.got) == 1


def test_a_slow_or_absent_receiver_is_not_waited_for(receiver: Receiver) -> None:
    receiver.wait_s = 1.0
    slow = deliver(Channel("webhook", receiver.url, 0.2), ALERT)
    gone = deliver(Channel("webhook", f"http://127.0.0.1:9/{SECRET}", 0.5), ALERT)
    for problem in (slow, gone):
        assert problem is not None
        assert SECRET not in problem
    assert SECRET not in repr(Channel("webhook", receiver.url, 1))


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/SECRET-PART",
        "ftp://127.0.0.1/SECRET-PART",
        "https://user:SECRET-PART@example.com/",
        "https:///SECRET-PART",
        "https://example.com:port/SECRET-PART",
        "https://example.com/SECRET-PART\nX: y",
        "SECRET-PART",
    ],
)
def test_an_url_that_may_not_be_used_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError) as caught:
        channels(AlertsSection(webhook_env="HOOK"), {"HOOK": url})
    assert "SECRET-PART" not in str(caught.value)
    assert "monitor.alerts.webhook_env" in str(caught.value)


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(UserError, match="the variable HOOK is not set"):
        channels(AlertsSection(slack_env="HOOK"), {})


def test_an_url_in_place_of_a_variables_name_is_not_shown(tmp_path: Path) -> None:
    world = World(tmp_path, {"alerts": {"webhook_env": "https://hooks.example.com/SECRET-PART"}})
    with pytest.raises(UserError, match="must be the name of a variable") as caught:
        check_tasks(world.loop)
    assert "SECRET-PART" not in str(caught.value)
    world.close()


def test_an_alert_that_was_not_taken_is_sent_by_the_next_check(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", receiver.url)
    world = World(tmp_path, {"alerts": {"webhook_env": "HOOK", "timeout_s": 2}})
    receiver.status = 500
    (first,) = check_tasks(world.loop, now=1000.0)
    assert [alert.cause for alert in first.alerts] == ["no_traffic"]
    assert first.undelivered == 1
    receiver.status = 200
    (second,) = check_tasks(world.loop, now=1100.0)
    assert second.undelivered == 0
    sent = [body["alert"]["cause"] for body in receiver.got]
    assert sent == ["no_traffic", "no_traffic", "undelivered"]
    (third,) = check_tasks(world.loop, now=1200.0)
    assert len(receiver.got) == 3
    assert third.alerts == []
    assert SECRET not in (world.kept / "state.json").read_text()
    world.close()
