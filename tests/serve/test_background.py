"""What runs beside the requests of a gateway goes on past whatever it cannot read."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from rollout_world import file_of

from gateway_stores import call_of, served_of
from stillhouse.serve import batch_runner, server
from stillhouse.serve.batch_runner import BatchRunner
from stillhouse.serve.gateway_file import GatewayFile
from stillhouse.serve.keys import StoredKeys
from stillhouse.serve.metrics import Metrics
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.server import Gateway
from stillhouse.serve.stored_calls import served_since
from stillhouse.serve.stored_parts import SWEEP_S, StoredParts
from stillhouse.serve.tables import STATES, StoreError, open_database
from stillhouse.serve.traffic_log import TrafficLog

NAMES = Pseudonyms(b"0123456789abcdef")


def test_a_gateway_keeps_looking_whatever_it_finds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "REFRESH_S", 0.0)
    looks: list[float] = []

    async def run() -> None:
        enough = asyncio.Event()
        loop = asyncio.get_running_loop()

        def refresh(now: float) -> None:
            looks.append(now)
            if len(looks) == 4:
                loop.call_soon_threadsafe(enough.set)
            raise ValueError("a row of another version" if len(looks) < 4 else "another row")

        async def tell(_: object) -> None:
            raise AssertionError

        gateway = SimpleNamespace(metrics=Metrics(), _refresh=refresh, _tell=tell)
        roster: Any = SimpleNamespace(breakers=dict)
        task = asyncio.create_task(Gateway._keep_fresh(gateway, roster))  # type: ignore[arg-type]
        await asyncio.wait_for(enough.wait(), 10)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = re.search(rb"refresh_failures_total (\d+)", gateway.metrics.page())
        assert found is not None
        assert int(found[1]) >= 3

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    said = [one.getMessage() for one in caplog.records]
    assert said[:1] == ["cannot be kept up to date: ValueError: a row of another version"]
    assert said.count(said[0]) == 1


def test_a_runner_of_batches_goes_on_past_one_that_it_cannot_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_runner, "POLL_S", 0.001)
    claims: list[int] = []
    told: list[str] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(repr(context["exception"]))
        )

        def claim() -> None:
            claims.append(1)
            if len(claims) == 1:
                raise ValueError("no batch")
            runner.stop()

        work = SimpleNamespace(batches=SimpleNamespace(claim=claim), changed=asyncio.Event())
        tools: Any = SimpleNamespace(
            work=work, section=SimpleNamespace(concurrent=1, running=1), metrics=Metrics()
        )
        runner = BatchRunner(tools)
        await asyncio.wait_for(runner.run(), 10)
        assert b"batch_failures_total 1.0" in tools.metrics.page()

    asyncio.run(run())
    assert len(claims) == 2
    assert told == ["ValueError('no batch')"]


@pytest.mark.parametrize("body", [b'{"task": "reviews", "later": 1}', b'{"task": "\xff"}', b"[]"])
def test_a_state_that_cannot_be_read_keeps_nothing_else_from_being_done(
    tmp_path: Path, body: bytes
) -> None:
    url = f"sqlite:///{tmp_path}/g.db"
    raw = file_of().model_dump(mode="json", by_alias=True, exclude_unset=True)
    file = GatewayFile.model_validate({**raw, "log": {"url": url, "retention_days": 1}})
    now = time.time()
    parts = StoredParts(file, NAMES, lambda kinds: str, now)
    engine = open_database(url)
    log = TrafficLog(engine, NAMES, redact=None)
    assert log.offer(call_of(1), served_of(1))  # of 1970
    log.close()
    keys = StoredKeys(engine)
    secret = keys.make("shop", ["*"], now)
    parts.refresh(now)
    assert served_since(engine, "reviews", 0.0) == []
    assert parts._keys.check(secret) is not None
    before = parts.parts.states.get("reviews")
    log = TrafficLog(engine, NAMES, redact=None)
    assert log.offer(call_of(2), served_of(2))
    log.close()
    identity = keys.listed()[0].id
    assert keys.revoke(identity, now)
    with engine.begin() as connection:
        text = "UPDATE states SET body = CAST(? AS TEXT) WHERE task = 'reviews'"
        assert connection.exec_driver_sql(text, (body,)).rowcount == 1
    with pytest.raises(StoreError, match="the stored state of reviews cannot be read"):
        parts.refresh(now + SWEEP_S)
    assert parts.parts.states.get("reviews") == before
    assert served_since(engine, "reviews", 0.0) == []
    assert parts._keys.check(secret) is None
    with engine.begin() as connection:
        good = sa.update(STATES).values(body=before.model_dump_json())
        connection.execute(good)
    parts.refresh(now + 2 * SWEEP_S)
    parts.close()
    engine.dispose()


@pytest.mark.parametrize("scopes", [b"no JSON", b"3", b'["\xff"]', b"{}"])
def test_a_damaged_key_may_do_nothing_and_the_others_what_they_may(
    tmp_path: Path, scopes: bytes
) -> None:
    engine = open_database(f"sqlite:///{tmp_path}/g.db")
    keys = StoredKeys(engine)
    first, second = keys.make("shop", ["*"], 0.0), keys.make("bank", ["reviews"], 1.0)
    with engine.begin() as connection:
        text = "UPDATE keys SET scopes = CAST(? AS TEXT) WHERE tenant = 'shop'"
        assert connection.exec_driver_sql(text, (scopes,)).rowcount == 1
    keys.refresh()
    damaged, whole = keys.check(first), keys.check(second)
    assert damaged is not None
    assert damaged.scopes == frozenset()
    assert whole is not None
    assert whole.scopes == {"reviews"}
    assert [one.scopes for one in keys.listed()] == [frozenset(), {"reviews"}]
    engine.dispose()
