"""States, keys and evidence on SQLite and on a real PostgreSQL: the same promises on both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy.engine import Engine

from gateway_stores import call_of, served_of
from stillhouse.core.errors import UserError
from stillhouse.serve.keys import StoredKeys
from stillhouse.serve.presence import StoredPresence
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Decision, ExperimentState, Outcome
from stillhouse.serve.states import StoredStates
from stillhouse.serve.stored_calls import (
    Deleted,
    delete_before,
    delete_user,
    outcomes_since,
    pairs_since,
    served_since,
)
from stillhouse.serve.tables import METADATA, StoreError, open_database
from stillhouse.serve.traffic_log import TrafficLog, UnknownRequestError

NAMES = Pseudonyms(b"0123456789abcdef")


def decision(stage: int) -> Decision:
    return Decision(
        at=1.0, task="reviews", action="advance", from_stage=stage, to_stage=stage + 1, reason="ok"
    )


def advance(states: StoredStates, version: int) -> bool:
    new = ExperimentState(task="reviews", version=version + 1, stage=version + 1)
    return states.swap(version, new, decision(version))


def test_migrations_make_the_tables_that_the_code_knows(engine: Engine, url: str) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    open_database(url).dispose()  # a second time changes nothing


def test_gateways_that_start_at_once_migrate_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for engine in pool.map(open_database, [url] * 4):
            engine.dispose()


def test_a_database_of_a_newer_version_is_refused(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="another version"):
        open_database(url)


def test_gateways_on_one_database_never_promote_twice(url: str) -> None:
    engines = [open_database(url) for _ in range(4)]
    gateways = [StoredStates(engine) for engine in engines]
    with ThreadPoolExecutor(4) as pool:
        for version in range(12):
            won = list(pool.map(lambda one, v=version: advance(one, v), gateways))
            assert sum(won) == 1
            assert {one.get("reviews").stage for one in gateways} == {version + 1}
    audit = gateways[0].audit("reviews")
    assert [line.version for line in audit] == list(range(1, 13))
    assert audit[0].decision == decision(0)
    for engine in engines:
        engine.dispose()


def test_a_state_and_its_decision_are_written_together_or_not_at_all(engine: Engine) -> None:
    states = StoredStates(engine)
    assert advance(states, 0)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE decisions"))
    with pytest.raises(sa.exc.DBAPIError):
        advance(states, 1)
    fresh = StoredStates(engine)
    assert fresh.get("reviews").version == states.get("reviews").version == 1


def test_a_swap_from_an_old_or_unknown_version_changes_nothing(engine: Engine) -> None:
    states = StoredStates(engine)
    assert not advance(states, 5)
    assert states.get("reviews") == ExperimentState(task="reviews")
    assert states.audit("reviews") == []
    with pytest.raises(ValueError, match="follows"):
        states.swap(0, ExperimentState(task="reviews", version=2), decision(0))


def test_keys_are_hashed_scoped_and_revoked(engine: Engine) -> None:
    keys, elsewhere = StoredKeys(engine), StoredKeys(engine)
    text = keys.make("shop", ["reviews", "feedback"], now=1.0)
    found = keys.check(text)
    assert found is not None
    assert (found.tenant, found.may("reviews"), found.may("other")) == ("shop", True, False)
    for wrong in (text[:-1], text + "x", "", "sh-" + "0" * 12 + text[15:], "' OR 1=1 --", "é\0"):
        assert keys.check(wrong) is None
    with engine.connect() as connection:
        stored = str(connection.execute(sa.text("SELECT * FROM keys")).all())
    assert text.split("-", 2)[2] not in stored
    elsewhere.refresh()
    assert elsewhere.check(text) == found
    [info] = keys.listed()
    assert keys.revoke(info.id, now=2.0)
    assert not keys.revoke(info.id, now=3.0)
    assert keys.check(text) is None
    elsewhere.refresh()
    assert elsewhere.check(text) is None
    with pytest.raises(UserError, match="scope"):
        keys.make("shop", [], now=1.0)


def shadowed(log: TrafficLog, number: int, teacher: float, student: float, fell: bool) -> None:
    assert log.offer(call_of(number), served_of(number))
    shadow = {"id": f"s{number}", "variant": "student", "shadow_of": f"r{number}"}
    told = served_of(number, **shadow, arm="shadow", fell_back=fell)
    assert log.offer(call_of(number, id=f"s{number}"), told)
    for name, score in ((f"r{number}", teacher), (f"s{number}", student)):
        log.outcome(Outcome(request=name, kind="scorer", score=score, at=number + 0.5))


def test_evidence_outcomes_deletion_and_retention(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    shadowed(log, 1, 1.0, 0.0, fell=True)
    shadowed(log, 2, 0.5, 1.0, fell=False)
    log.outcome(Outcome(request="s2", kind="scorer", score=0.25, at=9.0))  # said again
    log.outcome(Outcome(request="r2", kind="feedback", score=0.0, at=9.0), "shop")
    other = served_of(3, user="bob", task="other")
    assert log.offer(call_of(3, user="bob"), other)
    assert log.flush(10)
    pairs = pairs_since(engine, "reviews", 0.0)
    assert [(p.request, p.teacher, p.student, p.bare) for p in pairs] == [
        ("r1", 1.0, 1.0, 0.0),
        ("r2", 0.5, 0.25, 0.25),
    ]
    assert [p.request for p in pairs_since(engine, "reviews", 2.0)] == ["r2"]
    assert len(outcomes_since(engine, "reviews", 0.0)) == 6
    [said] = outcomes_since(engine, "reviews", 0.0, {"feedback"})
    assert (said.served.id, said.outcome.score) == ("r2", 0.0)
    assert [one.id for one in served_since(engine, "reviews", 2.0)] == ["r2", "s2"]

    assert delete_before(engine, 2.0) == Deleted(calls=2, outcomes=2)
    assert delete_user(engine, NAMES.of("else", "ann")) == Deleted(0, 0)
    assert delete_user(engine, NAMES.of("shop", "ann")) == Deleted(calls=2, outcomes=4)
    assert log.owner("r2") is None
    assert log.owner("r3") == "shop"
    log.close()


def test_feedback_for_an_unknown_or_foreign_request_is_refused(engine: Engine) -> None:
    log = TrafficLog(engine, NAMES, redact=None)
    assert log.offer(call_of(1), served_of(1))
    for name, tenant in (("r1", "rival"), ("r9", "shop"), ("r9\0", "shop"), ("\ud800", None)):
        with pytest.raises(UnknownRequestError, match="not known"):
            log.outcome(Outcome(request=name, kind="feedback", score=1.0, at=1.0), tenant)
    for score in (float("nan"), float("inf"), -0.1, 1.1):
        with pytest.raises(ValidationError):
            Outcome(request="r1", kind="feedback", score=score, at=1.0)
    log.close()
    assert outcomes_since(engine, "reviews", 0.0) == []


@pytest.mark.parametrize("url", ["mysql://a:b@h/x", "sqlite://", "nothing", ""])
def test_a_url_of_no_database_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"log\.url"):
        open_database(url)


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_database("postgresql://me:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreError, match="unable to open"):
        open_database(f"sqlite:///{tmp_path}/none/x.db")


def test_gateways_tell_each_other_what_they_have_open(engine: Engine) -> None:
    one, other = StoredPresence(engine), StoredPresence(engine)
    other._shown = "elsewhere:1"
    assert "no gateway" in one.missing("t", "s-1", 0.0)[0]
    has = {"t": {"open": ["s-1"], "problems": {}}}
    one.tell(has, 100.0)
    assert one.missing("t", "s-1", 100.0) == []
    other.tell({"t": {"open": [], "problems": {"s-1": "no space left"}}}, 101.0)
    assert one.missing("t", "s-1", 101.0) == ["elsewhere:1 has not opened s-1: no space left"]
    # a gateway that was killed is not waited for
    one.tell(has, 125.0)
    assert one.missing("t", "s-1", 125.0) == []
    other.tell(has, 126.0)
    other.leave()
    assert one.missing("t", "s-1", 126.0) == []
