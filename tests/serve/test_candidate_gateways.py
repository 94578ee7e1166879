"""New students beside the running one in gateways on loopback, with real student processes.

The students in them are fakes that do what a request's words say.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from candidate_gateways import STAGES, Stored, ask, raw, stored, student, until, who
from gateway_servers import ADMIN, Model, Running, gateway, models, says, status
from test_gates import gate_file
from test_gateway_http import send

from stillhouse.core.errors import UserError
from stillhouse.retrain.gateway_admin import GatewayAdmin, GatewayError
from stillhouse.serve import server, student_pool, student_process
from stillhouse.serve.gate_file import NEVER
from stillhouse.serve.gateway_sections import TaskSection
from stillhouse.serve.inheriting import inherited_gate
from stillhouse.serve.live_rows import StoredRows
from stillhouse.serve.records import ExperimentState, StudentFolder
from stillhouse.serve.seats import CLOSED, NO_GATE
from stillhouse.serve.tables import open_database

USERS = [f"u{n}" for n in range(40)]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    own = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([own, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(student_process, "MODULE", "fake_student")
    monkeypatch.setattr(student_pool, "PAUSE_S", (0.05, 0.1))
    monkeypatch.setattr(student_pool, "LOOK_S", 0.05)
    monkeypatch.setattr(server, "REFRESH_S", 0.05)


@pytest.fixture
def teacher() -> Iterator[Model]:
    model = Model(says("good"))
    with models(model):
        yield model


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    student(tmp_path / "old", "fp_old")
    for name in ("new", "newer"):
        student(tmp_path / "registry" / name, f"fp_{name}")
    return tmp_path


def admin_of(running: Running) -> GatewayAdmin:
    return GatewayAdmin(running.admin, ADMIN)


def full(running: Running) -> None:
    """The student of the file has come through."""
    admin = admin_of(running)
    for _ in STAGES[1:]:
        admin.act("t", "approve", "tried before")


def answers(url: str, words: str = "good") -> Counter[str]:
    """Which models answer some users."""
    found: Counter[str] = Counter()
    for user in USERS:
        got = ask(url, words, user)
        assert got.status == 200
        found[who(got)] += 1
    return found


def served(running: Running) -> list[Any]:
    return [one for _, one in running.log.calls]


def test_it_climbs_from_shadow_to_full_while_the_running_one_answers(
    teacher: Model, folders: Path
) -> None:
    new = folders / "registry" / "new"
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        state = admin.offer("t", str(new), "s-new", "retrained")
        assert (state.kind, state.share, state.student, state.candidate) == (
            "shadow",
            0,
            "small",
            "s-new",
        )
        assert (state.problems, state.last and state.last.action) == ((), "offer")
        assert admin.offer("t", str(new), "s-new", "asked again") == state
        # at shadow: the running one, and the teacher's answers with the new one's unseen
        found = answers(running.url)
        assert set(found) == {"student", "model-there"}
        until(
            lambda: (
                sum(one.shadow_of is not None for one in served(running)) == found["model-there"]
            )
        )
        rows = served(running)
        assert {one.upstream for one in rows if one.shadow_of} == {"s-new"}
        assert {one.upstream for one in rows if one.arm == "incumbent"} == {"small"}
        assert {one.arm for one in rows if one.shadow_of} == {"shadow"}
        # at canary: all three
        admin.act("t", "approve", "")
        found = answers(running.url)
        assert set(found) == {"student", "s-new", "model-there"}
        assert {one.arm for one in served(running) if one.upstream == "s-new"} == {
            "shadow",
            "treatment",
        }
        # what the new one cannot answer the teacher does
        got = [ask(running.url, "fail", user) for user in USERS]
        assert {who(one) for one in got} == {"model-there"}
        # full: it is the student, and the old one's processes end
        old = running.gateway.students[0]
        admin.act("t", "approve", "")
        state = admin.state("t")
        assert (state.kind, state.student, state.candidate) == ("full", "s-new", None)
        assert set(answers(running.url)) == {"s-new"}
        until(lambda: old.pool.pick() is None)
        shown = send(running.admin, None, "/state", {"authorization": f"Bearer {ADMIN}"}, "GET")
        assert shown.json["students"] == {"t": {"student": "s-new", "candidate": None}}
        assert shown.json["breakers"]["small"] == "closed"
        view = admin.experiment("t")
        assert (view["student"], view["candidate"]) == ("s-new", None)
        told = [one["action"] for one in view["decisions"]]  # type: ignore[index,union-attr,call-overload]
        assert told[-3:] == ["offer", "approve", "approve"]


def test_withdrawn_it_is_gone_and_the_running_one_stands_where_it_stood(
    teacher: Model, folders: Path
) -> None:
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        admin.offer("t", str(folders / "registry" / "new"), "s-new", "")
        admin.act("t", "approve", "")
        assert answers(running.url)["s-new"]
        state = admin.withdraw("t", "a look at its answers")
        assert (state.kind, state.share, state.student, state.candidate) == (
            "full",
            1,
            "small",
            None,
        )
        assert state.last is not None
        assert (state.last.action, state.last.student, state.last.reason) == (
            "withdraw",
            "s-new",
            "a look at its answers",
        )
        assert set(answers(running.url)) == {"student"}
        own = psutil.Process()
        until(lambda: len([one for one in own.children() if one.is_running()]) == 1)
        with pytest.raises(GatewayError, match="No new student climbs"):
            admin.withdraw("t")
        assert admin.offer("t", str(folders / "registry" / "new"), "s-new", "").candidate == "s-new"


def test_an_offer_that_outlives_its_client_is_whole_and_a_repeat_is_told_its_state(
    teacher: Model, folders: Path
) -> None:
    """The client gives up while the student is being opened, and asks for the same again."""
    path = student(folders / "registry" / "slow", "fp_slow", slow="1.5")
    (folders / "registry" / "link").symlink_to(path)
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        before = admin.state("t")
        impatient = GatewayAdmin(running.admin, ADMIN, open_s=0.3)
        with pytest.raises(GatewayError, match="it may yet do it"):
            impatient.offer("t", str(path), "s-1", "cycle 1", version=before.version)
        assert admin.state("t") == before  # nothing is named before it is open
        # Made on the state before, as whoever has not heard the answer makes it.
        again = admin.offer("t", str(path), "s-1", "cycle 1", version=before.version)
        assert (again.candidate, again.version) == ("s-1", before.version + 1)
        assert again.last is not None
        for way in (path, folders / "registry" / "link"):
            told = admin.offer("t", str(way), "s-1", "cycle 1", version=before.version)
            assert told == again
        with pytest.raises(GatewayError, match="at version"):
            admin.offer("t", str(folders / "registry" / "new"), "s-1", "", version=before.version)
        with pytest.raises(GatewayError, match="climbs already"):
            admin.offer("t", str(folders / "registry" / "new"), "s-2", "")
        until(lambda: len(psutil.Process().children()) == 2)  # the running one and the new one
        made = admin.experiment("t")["decisions"]
        assert isinstance(made, list)
        assert [one["action"] for one in made].count("offer") == 1  # type: ignore[index,call-overload]


def test_a_reload_that_is_asked_for_again_is_told_its_state(teacher: Model, folders: Path) -> None:
    path = str(folders / "registry" / "new")
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        before = admin.state("t")
        first = admin.reload("t", path, "s-1", version=before.version)
        assert (first.student, first.version) == ("s-1", before.version + 1)
        assert admin.reload("t", path, "s-1", version=before.version) == first
        until(lambda: len(psutil.Process().children()) == 1)


def test_what_may_not_be_opened_or_cannot_be_changes_nothing(
    teacher: Model, folders: Path, tmp_path: Path
) -> None:
    registry = folders / "registry"
    student(registry / "broken", "fp_x", broken="")
    student(registry / "gated", "fp_y", **{"gate.json": "{}"})
    (registry / "out").symlink_to(folders / "old")
    (registry / "empty").mkdir()
    given = raw(teacher.url, folders)
    refused = [
        ("old", "s-1", 422, "below one of gateway.yaml's students.roots"),
        ("registry/out", "s-1", 422, "below one of gateway.yaml's students.roots"),
        ("registry/../old", "s-1", 422, "below one of gateway.yaml's students.roots"),
        ("registry/nothing", "s-1", 422, "below one of gateway.yaml's students.roots"),
        ("registry", "s-1", 422, "below one of gateway.yaml's students.roots"),
        ("registry/empty", "s-1", 422, "holds no student"),
        ("registry/broken", "s-1", 422, "its weights are torn"),
        ("registry/gated", "s-1", 422, "is no gate"),
        ("registry/new", "big", 409, "is an upstream's name"),
        ("registry/new", "a b", 400, "name must be"),
        ("registry/new", "", 400, "name must be"),
    ]
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        before = admin.state("t")
        for how in (admin.offer, admin.reload):
            for path, name, code, why in refused:
                with pytest.raises(GatewayError, match=why) as error:
                    how("t", str(folders / path), name, "")
                assert error.value.status == code, (path, name)
        with pytest.raises(GatewayError, match="at version"):
            admin.offer("t", str(registry / "new"), "s-1", "", version=before.version - 1)
        with pytest.raises(GatewayError, match="no such task"):
            admin.offer("u", str(registry / "new"), "s-1", "")
        with pytest.raises(GatewayError, match="admin key"):
            GatewayAdmin(running.admin, "wrong").offer("t", str(registry / "new"), "s-1", "")
        headers = {"authorization": f"Bearer {ADMIN}"}
        relative = send(
            running.admin, {"path": "registry/new", "name": "s-1"}, "/tasks/t/candidate", headers
        )
        assert (relative.status, relative.json["error"]["code"]) == (422, "outside_roots")
        assert admin.state("t") == before
        assert set(answers(running.url)) == {"student"}
        until(lambda: len(psutil.Process().children()) == 1)  # nothing was left open
    rootless = {**given, "students": None}
    with gateway(rootless) as running, pytest.raises(GatewayError, match=r"no students\.roots"):
        admin_of(running).offer("t", str(registry / "new"), "s-1", "")
    plan = {"experiment": {"stages": [{"kind": "full"}]}}
    flat = {**given, "tasks": {"t": {**given["tasks"]["t"], **plan}}}
    with gateway(flat) as running, pytest.raises(GatewayError, match="no stage before full"):
        admin_of(running).offer("t", str(registry / "new"), "s-1", "")
    alone = {**given, "tasks": {"t": {"teacher": "big"}}}
    with gateway(alone) as running, pytest.raises(GatewayError, match="has no student"):
        admin_of(running).offer("t", str(registry / "new"), "s-1", "")


def test_one_whose_process_is_killed_loses_no_request_and_comes_back(
    teacher: Model, folders: Path
) -> None:
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        admin.offer("t", str(folders / "registry" / "new"), "s-new", "")
        admin.act("t", "approve", "")
        assert answers(running.url)["s-new"]
        [small] = [one.pid for one in running.gateway.students[0].pool.processes]
        for one in psutil.Process().children():
            if one.pid != small:
                one.kill()
        found = answers(running.url)
        assert found["student"]  # the running one does not notice
        until(lambda: answers(running.url)["s-new"] > 0)
        down = [one for one in served(running) if one.arm == "treatment" and one.fell_back]
        assert {one.upstream for one in down} <= {"big"}
        assert admin.state("t").candidate == "s-new"


def test_without_the_teacher_its_slice_is_the_running_students(
    teacher: Model, folders: Path
) -> None:
    with gateway(raw(teacher.url, folders)) as running:
        full(running)
        admin_of(running).offer("t", str(folders / "registry" / "new"), "s-new", "")
        teacher.answer = status(500)
        assert set(answers(running.url)) == {"student"}


def test_what_the_teacher_answers_for_the_running_one_is_asked_of_the_new_one_too(
    teacher: Model, folders: Path
) -> None:
    with gateway(raw(teacher.url, folders)) as running:
        full(running)
        admin_of(running).offer("t", str(folders / "registry" / "new"), "s-new", "")
        assert set(answers(running.url, "fail")) == {"model-there"}
        until(lambda: sum(one.shadow_of is not None for one in served(running)) == len(USERS))
        shadows = Counter(one.arm for one in served(running) if one.shadow_of)
        assert shadows["incumbent"] > 0  # in the log; no evidence: only what is hard is there


def test_a_bare_threshold_of_the_file_is_every_students(teacher: Model, folders: Path) -> None:
    given = raw(teacher.url, folders)
    given["tasks"]["t"]["fallback"] = {"threshold": 0.9}
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        admin.offer("t", str(folders / "registry" / "new"), "s-new", "")
        admin.act("t", "approve", "")
        assert set(answers(running.url, "unsure")) == {"model-there"}
        assert running.states.get("t").threshold == 0.9


def test_its_own_gate_holds_for_it_alone_and_for_its_newer_versions(
    teacher: Model, folders: Path
) -> None:
    new, newer = folders / "registry" / "new", folders / "registry" / "newer"
    gate_file(new, student="fp_new")
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        admin.offer("t", str(new), "s-new", "")
        admin.act("t", "approve", "")
        assert set(answers(running.url)) == {"s-new", "student", "model-there"}
        # what it is not sure of the teacher answers; the running one has no gate
        assert set(answers(running.url, "unsure")) == {"student", "model-there"}
        reasons = {
            ask(running.url, "unsure", user).headers.get("x-stillhouse-fallback") for user in USERS
        }
        assert reasons == {None, "low-confidence"}
        admin.act("t", "approve", "")
        assert running.states.get("t").threshold == 0.9
        assert set(answers(running.url, "unsure")) == {"model-there"}
        admin.reload("t", str(newer), "s-newer", "refined")
        assert set(answers(running.url)) == {"s-newer"}
        assert set(answers(running.url, "unsure")) == {"model-there"}
        gate_file(folders / "registry" / "new", student="fp_other")
        with pytest.raises(GatewayError, match="was fitted for the student fp_other") as error:
            admin.offer("t", str(new), "s-third", "")
        assert error.value.status == 422


def test_a_gate_that_was_calibrated_for_one_student_judges_no_other(
    teacher: Model, folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = raw(teacher.url, folders)
    (tmp_path / "gate").mkdir()
    path = gate_file(tmp_path / "gate", student="fp_old")
    given["tasks"]["t"]["fallback"] = {"calibrator": str(path)}
    same = student(folders / "registry" / "same", "fp_old")
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        assert set(answers(running.url, "unsure")) == {"model-there"}
        assert not admin.state("t").teacher_answers
        state = admin.reload(
            "t", str(folders / "registry" / "new"), "s-new", "promoted", refined=False
        )
        # Nothing says how sure it is: whatever it says, the teacher answers.
        assert (state.student, state.teacher_answers) == ("s-new", True)
        assert set(answers(running.url, "unsure")) == {"model-there"}
        assert set(answers(running.url, "good")) == {"model-there"}
        got = ask(running.url, "good", "u")
        assert got.headers["x-stillhouse-fallback"] == "low-confidence"
        streamed = ask(running.url, "good", "u", stream=True)
        assert (streamed.status, streamed.headers["x-stillhouse-variant"]) == (200, "teacher")
        assert "t: s-new: it has no gate.json, and none is fitted to it" in caplog.text
        rows = served(running)[-2:]
        assert [(one.fell_back, one.confidence) for one in rows] == [(True, None)] * 2
        assert all({"logit", "certainty"} <= set(one.features) for one in rows)
        # Rolled back to the student that it was fitted to, the file's gate holds again.
        admin.reload("t", str(same), "s-same", "rolled back", refined=False)
        assert running.states.get("t").threshold == 0.9
        assert set(answers(running.url, "unsure")) == {"model-there"}
        assert set(answers(running.url)) == {"s-same"}
        body = {"path": str(same), "name": "s-x", "refined": "no"}
        headers = {"authorization": f"Bearer {ADMIN}"}
        told = send(running.admin, body, "/tasks/t/reload", headers)
        assert (told.status, told.json["error"]["param"]) == (400, "refined")


def test_without_a_gate_none_climbs_where_the_task_wants_one(
    teacher: Model, folders: Path, tmp_path: Path
) -> None:
    """The teacher's answers in its stead would be its evidence, and it would come through."""
    given, registry = raw(teacher.url, folders), folders / "registry"
    (tmp_path / "gate").mkdir()
    path = gate_file(tmp_path / "gate", student="fp_old")
    given["tasks"]["t"]["fallback"] = {"calibrator": str(path)}
    gate_file(student(registry / "never", "fp_never"), student="fp_never", threshold=None)
    gate_file(student(registry / "own", "fp_own"), student="fp_own")
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        before = admin.state("t")
        for name, why in (("new", "none is fitted to it"), ("never", "shows no threshold")):
            with pytest.raises(GatewayError, match=f"s-1 cannot climb: .*{why}") as error:
                admin.offer("t", str(registry / name), "s-1", "")
            assert (error.value.status, error.value.code) == (422, "no_gate")
        assert admin.state("t") == before
        until(lambda: len(psutil.Process().children()) == 1)  # neither was left open
        # One with a gate of its own climbs, and is gated by it from its first request on.
        admin.offer("t", str(registry / "own"), "s-own", "")
        admin.act("t", "approve", "")
        assert "s-own" in set(answers(running.url))
        assert set(answers(running.url, "unsure")) == {"model-there"}
        admin.act("t", "approve", "")
        # By hand a student without a gate may take over from it (a roll back must be possible).
        assert admin.reload("t", str(registry / "newer"), "s-newer", "", refined=False).student
        assert set(answers(running.url)) == {"model-there"}
        with pytest.raises(GatewayError, match="none is fitted to it"):
            admin.offer("t", str(registry / "new"), "s-1", "")
    # Of a running student with a gate of its own, without a word in gateway.yaml, likewise.
    del given["tasks"]["t"]["fallback"]["calibrator"]
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        assert admin.reload("t", str(registry / "own"), "s-own", "", refined=False)
        with pytest.raises(GatewayError, match="none is fitted to it"):
            admin.offer("t", str(registry / "new"), "s-1", "")
        assert set(answers(running.url, "unsure")) == {"model-there"}


def test_a_file_that_says_so_shows_students_without_a_gate(
    teacher: Model, folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given, registry = raw(teacher.url, folders), folders / "registry"
    (tmp_path / "gate").mkdir()
    path = gate_file(tmp_path / "gate", student="fp_old")
    given["tasks"]["t"]["fallback"] = {"calibrator": str(path), "ungated": "shown"}
    with gateway(given) as running:
        admin = admin_of(running)
        full(running)
        state = admin.reload("t", str(registry / "new"), "s-new", "promoted", refined=False)
        assert not state.teacher_answers
        assert running.states.get("t").threshold is None
        assert set(answers(running.url, "unsure")) == {"s-new"}
        assert "t: s-new has no gate.json, and none is fitted to it: all" in caplog.text
        assert admin.offer("t", str(registry / "newer"), "s-newer", "").candidate == "s-newer"


@pytest.mark.full
def test_gateways_on_one_database_close_a_student_without_a_gate_alike(
    teacher: Model, folders: Path, tmp_path: Path
) -> None:
    given, database = raw(teacher.url, folders), folders / "gateway.db"
    (tmp_path / "gate").mkdir()
    path = gate_file(tmp_path / "gate", student="fp_old")
    given["tasks"]["t"]["fallback"] = {"calibrator": str(path)}
    with stored(given, database) as one, stored(given, database) as other:
        for _ in STAGES[1:]:
            one.admin.act("t", "approve", "")
        path = folders / "registry" / "new"
        one.admin.reload("t", str(path), "s-new", "promoted", refined=False)
        until(lambda: student_of(other)[0] == "s-new" and not other.admin.state("t").problems)
        assert other.admin.state("t").teacher_answers
        for url in (one.url, other.url):
            assert set(answers(url)) == {"model-there"}
    with stored(given, database) as again:  # over a restart
        assert student_of(again)[0] == "s-new"
        assert set(answers(again.url)) == {"model-there"}


def ungated(teacher: Model, folders: Path, says_: str) -> dict[str, Any]:
    """gateway.yaml with a calibrator of the old student, and what holds of students without one."""
    given, path = raw(teacher.url, folders), folders / "gate"
    if not path.exists():
        path.mkdir()
        gate_file(path, student="fp_old")
    given["tasks"]["t"]["fallback"] = {"calibrator": str(path / "gate.json"), "ungated": says_}
    return given


@pytest.mark.parametrize(
    ("first", "then"),
    [("teacher", "shown"), pytest.param("shown", "teacher", marks=pytest.mark.full)],
)
def test_after_a_restart_a_student_without_a_gate_is_as_the_file_says_now(
    teacher: Model, folders: Path, first: str, then: str
) -> None:
    registry, database = folders / "registry", folders / "gateway.db"
    found = {"teacher": {"model-there"}, "shown": {"s-new"}}
    with stored(ungated(teacher, folders, first), database) as one:
        for _ in STAGES[1:]:
            one.admin.act("t", "approve", "")
        one.admin.reload("t", str(registry / "new"), "s-new", "promoted", refined=False)
        assert set(answers(one.url, "unsure")) == found[first]
        version = one.admin.state("t").version
        with stored(ungated(teacher, folders, then), database) as other:
            # All gateways on the database follow the one that was started last.
            assert other.admin.state("t").version == version + 1
            assert set(answers(other.url, "unsure")) == found[then]
            until(lambda: set(answers(one.url, "unsure")) == found[then])
    with stored(ungated(teacher, folders, then), database) as again:
        state = again.admin.state("t")
        assert state.version == version + 1  # written once
        assert (student_of(again), state.teacher_answers) == (
            ("s-new", None, "full"),
            then == "teacher",
        )
        again.admin.reload("t", str(registry / "newer"), "s-newer", "refined")
        assert again.admin.state("t").teacher_answers == (then == "teacher")
        found["shown"] = {"s-newer"}
        assert set(answers(again.url, "unsure")) == found[then]


def test_after_a_restart_one_that_the_file_closes_does_not_climb_on(
    teacher: Model, folders: Path
) -> None:
    registry, database = folders / "registry", folders / "gateway.db"
    with stored(ungated(teacher, folders, "shown"), database) as one:
        for _ in STAGES[1:]:
            one.admin.act("t", "approve", "")
        one.admin.reload("t", str(registry / "new"), "s-new", "promoted", refined=False)
        one.admin.offer("t", str(registry / "newer"), "s-newer", "")
    with stored(ungated(teacher, folders, "shown"), database) as same:
        assert student_of(same) == ("s-new", "s-newer", "shadow")
    with stored(ungated(teacher, folders, "teacher"), database) as again:
        assert student_of(again) == ("s-new", None, "full")
        assert set(answers(again.url)) == {"model-there"}
        told = [line.decision for line in again.parts.parts.states.audit("t")]  # type: ignore[attr-defined]
        [gone] = [one for one in told if one.action == "withdraw"]
        assert "none is fitted to it" in gone.reason
    # The file's gate is fitted to the running student at last.
    gate_file(folders / "gate", student="fp_new")
    with stored(ungated(teacher, folders, "teacher"), database) as fitted:
        assert set(answers(fitted.url)) == {"s-new"}
        assert set(answers(fitted.url, "unsure")) == {"model-there"}


def test_a_refined_student_has_no_gate_of_one_that_had_none() -> None:
    state = ExperimentState(task="t", threshold=NEVER)
    bare = StudentFolder(name="s", path="/s", fingerprint="fp")
    closed = bare.model_copy(update={"gate": NO_GATE, "threshold": NEVER})
    own = bare.model_copy(update={"gate": "/s/gate.json", "threshold": 0.7})
    shown = TaskSection(teacher="big", student="small", fallback={"ungated": "shown"})  # type: ignore[arg-type]
    wants = TaskSection(teacher="big", student="small", fallback={"calibrator": "/no/gate.json"})  # type: ignore[arg-type]
    for running in (bare, closed):
        assert inherited_gate(shown, None, state, running, refined=True) is None
        assert inherited_gate(wants, None, state, running, refined=True) == CLOSED
    for task in (shown, wants):
        found = inherited_gate(task, None, state, own, refined=True)
        assert found is not None
        assert (found.path, found.threshold) == ("/s/gate.json", 0.7)


def test_a_reload_under_load_loses_no_request(teacher: Model, folders: Path) -> None:
    with gateway(raw(teacher.url, folders)) as running:
        admin = admin_of(running)
        full(running)
        found: Counter[tuple[int, str, str | None]] = Counter()
        stop = threading.Event()

        def load() -> None:
            while not stop.is_set():
                got = ask(running.url, "slow good")
                key = got.status, who(got), got.headers.get("x-stillhouse-fallback")
                found[key] += 1

        threads = [threading.Thread(target=load) for _ in range(4)]
        for one in threads:
            one.start()
        version = running.states.get("t").counts_from
        for name in ("new", "newer"):
            until(lambda: sum(found.values()) > 4)
            state = admin.reload("t", str(folders / "registry" / name), f"s-{name}", "refined")
            assert (state.kind, state.student, state.last and state.last.action) == (
                "full",
                f"s-{name}",
                "reload",
            )
            until(lambda name=name: found[200, f"s-{name}", None] > 4)  # type: ignore[misc]
        stop.set()
        for one in threads:
            one.join()
        assert set(found) == {(200, name, None) for name in ("student", "s-new", "s-newer")}
        assert running.states.get("t").counts_from == version  # its evidence goes on
        until(lambda: len(psutil.Process().children()) == 1)
        assert admin.reload("t", str(folders / "registry" / "newer"), "s-newer", "").student
        with pytest.raises(GatewayError, match="is open already"):
            admin.reload("t", str(folders / "registry" / "new"), "s-newer", "")


def student_of(one: Stored) -> tuple[str | None, str | None, str]:
    state = one.admin.state("t")
    return state.student, state.candidate, state.kind


def test_two_gateways_open_and_switch_alike_and_a_restart_keeps_it(
    teacher: Model, folders: Path
) -> None:
    given, database = raw(teacher.url, folders), folders / "gateway.db"
    new = folders / "registry" / "new"
    with stored(given, database) as one, stored(given, database) as other:
        for _ in STAGES[1:]:
            one.admin.act("t", "approve", "")
        one.admin.offer("t", str(new), "s-new", "retrained")
        # First that it knows of it: before that it has no problem with it either.
        until(lambda: student_of(other)[1] == "s-new" and not other.admin.state("t").problems)
        other.admin.act("t", "approve", "")
        until(lambda: one.admin.state("t").kind == "canary")
        for url in (one.url, other.url):
            assert {"s-new", "student"} <= set(answers(url))
        one.admin.act("t", "approve", "")
        until(lambda: student_of(other) == ("s-new", None, "full"))
        for url in (one.url, other.url):
            until(lambda url=url: set(answers(url)) == {"s-new"})  # type: ignore[misc]
        # a refined version: whoever was not asked opens it too
        other.admin.reload("t", str(folders / "registry" / "newer"), "s-newer", "")
        until(lambda: set(answers(one.url)) == {"s-newer"})
    with stored(given, database) as again:
        # gateway.yaml still names the old folder; it is not even opened
        assert student_of(again) == ("s-newer", None, "full")
        assert set(answers(again.url)) == {"s-newer"}
        assert again.gateway.students[0].pool.pick() is None
        again.admin.offer("t", str(new), "s-new", "back")
    with stored(given, database) as later:  # a restart amid its climb
        until(lambda: not later.admin.state("t").problems)
        assert student_of(later) == ("s-newer", "s-new", "shadow")
        later.admin.act("t", "approve", "")
        assert {"s-new", "s-newer"} <= set(answers(later.url))
    engine = open_database(f"sqlite:///{database}")
    names = {row.student_name for row in StoredRows(engine).rows("t")}
    assert names == {None, "small", "s-new", "s-newer"}
    actions = [line.decision.action for line in later.parts.parts.states.audit("t")]  # type: ignore[attr-defined]
    assert actions.count("offer") == 2
    assert actions.count("reload") == 1
    engine.dispose()
    (folders / "registry" / "newer" / "config.json").unlink()
    why = "s-newer, which was promoted, cannot be opened"
    with pytest.raises(UserError, match=why), stored(given, database):
        pass


def test_a_gateway_that_cannot_open_it_goes_on_as_before_and_holds_it(
    teacher: Model, folders: Path
) -> None:
    given, database = raw(teacher.url, folders), folders / "gateway.db"
    new = folders / "registry" / "new"
    with stored(given, database) as one:
        for _ in STAGES[1:]:
            one.admin.act("t", "approve", "")
        one.admin.offer("t", str(new), "s-new", "")
        (new / "mark").write_text("fp_other")  # as another host has it under that path
        with stored(given, database) as other:
            until(
                lambda: any("files were changed" in why for why in other.admin.state("t").problems)
            )
            with pytest.raises(GatewayError, match="has not opened s-new") as error:
                one.admin.act("t", "approve", "")
            assert error.value.status == 409
            assert set(answers(other.url)) == {"student"}  # as before the offer
            rows = other.parts.parts.calls
            assert rows is not None
            assert {who(ask(one.url, "good", user)) for user in USERS} >= {"model-there"}
        assert one.admin.state("t").problems == ()  # it has left
        one.admin.act("t", "approve", "")
