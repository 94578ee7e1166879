"""Alerts to a URL: as JSON, or as Slack takes it. A failed delivery loses nothing.

The URL comes from an environment variable and is never shown: it is a secret itself. https, or http
to this machine; no redirects, no proxy, bounded time. An alert that was not taken is
tried again at the next check, so that a receiver may get one twice: its id tells. Knows alerts and
HTTP; does not know which alerts there should be.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from stillhouse.core.errors import UserError
from stillhouse.core.loop_monitor import AlertsSection
from stillhouse.monitor.records import Alert
from stillhouse.monitor.state import Undelivered

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
EXAMPLE_CHARS: Final = 150
_ICONS: Final = {"critical": ":red_circle:", "warning": ":warning:", "info": ":information_source:"}
# Slack refuses longer texts of a block.
SLACK_CHARS: Final = 2900
Name = Literal["webhook", "slack"]


class Channel(NamedTuple):
    """Where alerts go. Its text form does not show the URL."""

    name: Name
    url: str
    timeout_s: float

    def __repr__(self) -> str:
        """Without the URL, which is a secret."""
        return f"Channel({self.name})"


def channels(section: AlertsSection, environment: Mapping[str, str] = os.environ) -> list[Channel]:
    """The channels that loop.yaml names.

    Raises:
        UserError: a variable is not set, or holds no URL that may be used. Never shows it.
    """
    found: list[Channel] = []
    named: tuple[tuple[Name, str | None], ...] = (
        ("webhook", section.webhook_env),
        ("slack", section.slack_env),
    )
    for name, variable in named:
        if variable is None:
            continue
        field = f"monitor.alerts.{name}_env"
        url = environment.get(variable, "").strip()
        if not url:
            raise UserError(field, f"the variable {variable} is not set", action="export it")
        problem = _problem(url)
        if problem is not None:
            raise UserError(field, f"the variable {variable} {problem}", action="set another URL")
        found.append(Channel(name, url, section.timeout_s))
    return found


def _problem(url: str) -> str | None:
    if not url.isascii() or not url.isprintable() or " " in url:
        return "holds what no URL may hold"
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "holds no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "holds no http(s) URL"
    if parts.username is not None or parts.password is not None:
        return "holds a user or password in its URL"
    if parts.scheme == "http" and host not in LOOPBACK:
        return "holds a plain http URL of another machine, where https is needed"
    return None


def deliver(channel: Channel, alert: Alert) -> str | None:
    """Send one alert; what went wrong, or `None`. Never raises for the network, shows no URL."""
    body = webhook_body(alert) if channel.name == "webhook" else slack_body(alert)
    data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "stillhouse-monitor",
        "Idempotency-Key": alert.id,
    }
    try:
        status = asyncio.run(_post(channel, data, headers))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The message of an error may hold the address: its kind is enough.
        return f"{channel.name}: {type(error).__name__}"
    if 200 <= status < 300:
        return None
    told = "redirects, which is not followed" if 300 <= status < 400 else "refused"
    return f"{channel.name}: {told} (status {status})"


async def _post(channel: Channel, data: bytes, headers: Mapping[str, str]) -> int:
    timeout = aiohttp.ClientTimeout(total=channel.timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
        session.post(channel.url, data=data, headers=headers, allow_redirects=False) as answer,
    ):
        return answer.status


def webhook_body(alert: Alert) -> dict[str, Any]:
    """The alert as it is kept, and what sort of message it is."""
    return {"type": "stillhouse.alert", "version": 1, "alert": alert.model_dump(mode="json")}


def slack_body(alert: Alert) -> dict[str, Any]:
    """`{"text", "blocks"}`: a header, summary, cause and action, and examples."""
    title = f"{alert.task}: {alert.kind.replace('_', ' ')} ({alert.severity})"
    icon = _ICONS[alert.severity]
    lines = [f"{icon} *{_escaped(title)}*", _escaped(alert.summary)]
    blocks: list[dict[str, Any]] = [
        _section("\n".join(lines)),
        _section(f"*Cause:* {_escaped(alert.cause)}\n*Do:* {_escaped(alert.action)}"),
    ]
    shown = [_example(one) for one in alert.examples]
    if shown:
        blocks.append(_section("*Examples:*\n" + "\n".join(shown)))
    blocks.append(
        {"type": "context", "elements": [{"type": "mrkdwn", "text": f"alert {alert.id}"}]}
    )
    return {"text": _escaped(f"{title}: {alert.summary}")[:SLACK_CHARS], "blocks": blocks}


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:SLACK_CHARS]}}


def _example(example: Mapping[str, Any]) -> str:
    parts = [
        f"{name}: {str(value)[:EXAMPLE_CHARS]}"
        for name, value in example.items()
        if name not in ("at", "request", "score", "id") and value is not None
    ]
    return "> " + _escaped(" | ".join(parts)).replace("\n", " ")


def _escaped(text: str) -> str:
    """Slack's control characters: a text must make no link, mention or command."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def deliver_all(
    available: Sequence[Channel], waiting: Sequence[Undelivered], alerts: Mapping[str, Alert]
) -> list[Undelivered]:
    """Send what waits, oldest first; returns what still does.

    A channel that failed is not tried again here. What waits for a channel that loop.yaml no longer
    names, or is of an alert that is not kept any more, is dropped.
    """
    by_name = {channel.name: channel for channel in available}
    down: dict[str, str] = {}
    left: list[Undelivered] = []
    for one in waiting:
        channel, alert = by_name.get(one.channel), alerts.get(one.alert)
        if channel is None or alert is None:
            continue
        problem = down.get(one.channel) or deliver(channel, alert)
        if problem is not None:
            down[one.channel] = problem
            left.append(one.model_copy(update={"tries": one.tries + 1, "problem": problem}))
    return left
