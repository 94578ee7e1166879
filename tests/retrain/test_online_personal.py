"""Adapters: better for their owner, refused where they harm, gone with their users."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_online import TASK, FakeStudent, Gateway, H, Rows, make, row, section

from stillhouse.core.errors import UserError
from stillhouse.core.live import LiveRow
from stillhouse.core.loop_online import GuardSection, PersonalSection
from stillhouse.models.adapter_files import (
    INDEX,
    delta_path,
    forget_user,
    owner_key,
    read_index,
)
from stillhouse.models.head_weights import Floats, HeadWeights
from stillhouse.models.personal_student import Personal, PersonalStudent, open_personal
from stillhouse.retrain.online import OnlineTask
from stillhouse.retrain.online_handover import HandOver
from stillhouse.retrain.online_personal import AdapterNote
from stillhouse.train.online_head import HeadRates, fit_delta


def task_of(tmp_path: Path, *, hand_over: HandOver | None = None, **changes: object) -> OnlineTask:
    own = PersonalSection.model_validate({"harm": 0.99, **changes})
    rates = HeadRates(own.steps, own.learning_rate, 0.0, own.anchor_l2)

    def fit(shared: HeadWeights, x: Floats, y: Floats) -> HeadWeights:
        return fit_delta(shared, x, y, rates, rank=own.rank)

    guard = GuardSection(share=0.3, least=20)
    told = section(personal=own, guard=guard, corrections="personal")
    return make(tmp_path, told, fit=fit, hand_over=hand_over, names={"small"})


def stream(own: int = 100) -> list[LiveRow]:
    """t0 has the teacher's answers; tenant `own` calls every text by the next label's name."""
    shared = [row(n, 0) for n in range(200)]
    return [*shared, *(row(n, 0, tenant="own", flip=True) for n in range(200, 200 + own))]


def opened(task: OnlineTask) -> PersonalStudent:
    live = task.state.version(task.state.live)
    return open_personal(task.store.root, FakeStudent(Path(live.path)), TASK.labels)


def asked(student: PersonalStudent, tenant: str) -> Personal:
    texts = [row(n, 0).messages[0].content for n in range(900, 1000)]
    return student.answer(texts, [tenant] * 100, [None] * 100)


def right(said: Personal, *, flip: bool) -> float:
    rows = [row(n, 0, flip=flip).student for n in range(900, 1000)]
    wanted = [one and (one.corrected or one.text) for one in rows]
    return float(np.mean([a == b for a, b in zip(said.labels, wanted, strict=True)]))


def note_of(task: OnlineTask) -> AdapterNote:
    (note,) = task.state.adapters
    return note


def test_an_owner_is_answered_in_its_own_way_and_others_are_not(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream()))
    note = note_of(task)
    assert (note.owner, note.refused, note.count) == ("own", None, 100)
    assert note.won > 50
    student = opened(task)
    own, other = asked(student, "own"), asked(student, "t0")
    assert right(own, flip=True) > 0.8
    assert right(other, flip=False) > 0.8
    assert (all(own.adapted), any(other.adapted)) == (True, False)
    assert np.exp(own.log_p).sum(-1) == pytest.approx(np.ones(100))


def test_shared_answers_are_the_shared_students_bit_for_bit(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream()))
    live = task.state.version(task.state.live)
    plain = PersonalStudent(FakeStudent(Path(live.path)), TASK.labels, {})
    assert asked(opened(task), "t0").log_p.tobytes() == asked(plain, "t0").log_p.tobytes()


def test_one_that_harms_the_guard_set_falls_back(tmp_path: Path) -> None:
    task = task_of(tmp_path, harm=0.05)
    task.run_once(Rows(stream()))
    assert "of the guard set" in (note_of(task).refused or "")
    assert not any(asked(opened(task), "own").adapted)


def test_one_that_wins_nothing_falls_back(tmp_path: Path) -> None:
    rows = stream(own=0)
    for n in range(200, 260):  # corrections that say what the student says
        one = row(n, 0, tenant="own", flip=True)
        assert one.student is not None
        same = one.student.model_copy(update={"corrected": one.student.text})
        rows.append(one.model_copy(update={"student": same}))
    task = task_of(tmp_path)
    task.run_once(Rows(rows))
    assert "wins" in (note_of(task).refused or "")
    assert not any(asked(opened(task), "own").adapted)


def test_too_few_corrections_make_none(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream(own=19)))
    assert task.state.adapters == ()


def test_a_forgotten_user_leaves_the_adapter(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream()))
    before = note_of(task)
    task.forget("own", ["user7"], [])
    after = note_of(task)
    assert after.count == before.count - 2
    assert after.delta != before.delta
    assert not task.store.delta_path(before.delta).exists()
    task.forget("own", [f"user{n}" for n in range(50)], [])
    assert task.state.adapters == ()
    assert json.loads((task.store.root / INDEX).read_text())["adapters"] == []
    assert not list((task.store.root / "adapters").iterdir())


def test_users_have_adapters_of_their_own(tmp_path: Path) -> None:
    own = [row(5000 + 50 * n, 0, tenant="own", flip=True) for n in range(40)]  # all user0's
    task = task_of(tmp_path, by="user")
    task.run_once(Rows([*stream(own=0), *own]))
    assert note_of(task).owner == owner_key("own", "user0", "user") == "own\nuser0"
    texts = [row(n, 0).messages[0].content for n in (1, 2, 3, 4)]
    who = ["user0", "user1", None, "user0"]
    said = opened(task).answer(texts, ["own", "own", "own", "t0"], who)
    assert said.adapted == [True, False, False, False]


def test_killed_before_the_commit_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path)
    task.state  # noqa: B018 - the base is committed

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(task.store), "commit", die)
        with pytest.raises(KeyboardInterrupt):
            task.run_once(Rows(stream()))
    again = task_of(tmp_path)
    again.run_once(Rows(stream()))
    assert note_of(again).count == 100
    assert all(asked(opened(again), "own").adapted)


def test_adapters_are_judged_anew_with_another_shared_head(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream()))
    before = note_of(task)
    task.run_once(Rows([row(n, 1) for n in range(1000, 1500)]))  # t0's topics change
    after = note_of(task)
    live = task.state.version(task.state.live)
    assert (after.shared, after.delta) == (live.head, before.delta)
    assert before.shared != after.shared
    task.roll_back(0, [])
    assert note_of(task).shared == task.state.version(0).head
    stale = open_personal(task.store.root, FakeStudent(Path(live.path)), TASK.labels)
    assert not any(asked(stale, "own").adapted)  # beside another shared student: none


def test_the_gateways_version_keeps_its_adapters_until_it_is_given_the_next(
    tmp_path: Path,
) -> None:
    gateway = Gateway("small")
    task = task_of(tmp_path, hand_over=gateway)
    task.run_once(Rows(stream()))

    def has() -> Path:
        return Path(gateway.told[-1][1]) if gateway.told else tmp_path / "student"

    there = FakeStudent(has())

    def own() -> list[bool]:
        student = open_personal(task.store.root, there, TASK.labels)
        return [all(asked(student, "own").adapted), any(asked(student, "t0").adapted)]

    assert own() == [True, False]
    gateway.away = True
    for phase, first in ((1, 1000), (0, 2000), (1, 3000)):  # several versions that it never had
        done = task.run_once(Rows([row(n, phase) for n in range(first, first + 500)]))
        assert done.swapped
        assert own() == [True, False]
    assert all(asked(opened(task), "own").adapted)  # and so has the live one
    task.forget("own", [f"user{n}" for n in range(50)], [])
    assert own() == [False, False]
    gateway.away = False
    task.run_once(Rows([]))
    index = read_index(task.store.root)
    assert index is not None
    assert has() == Path(task.state.version(task.state.live).path)


def test_changed_numbers_are_refused_and_lost_ones_fall_back(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.run_once(Rows(stream()))
    path = delta_path(task.store.root, note_of(task).delta)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(UserError, match="was changed"):
        opened(task)
    path.unlink()
    assert not any(asked(opened(task), "own").adapted)
    odd = HeadWeights(np.zeros((2, H), np.float32), np.zeros(2, np.float32))
    live = Path(task.state.version(task.state.live).path)
    with pytest.raises(UserError, match="is of the shape"):
        PersonalStudent(FakeStudent(live), TASK.labels, {"own": odd})
    assert PersonalStudent(FakeStudent(live), TASK.labels, {}).answer([], [], []).labels == []


def test_whom_the_gateway_forgot_has_no_part_in_an_adapter_at_once(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    rows = stream()
    task.run_once(Rows(rows))
    before = note_of(task)
    forget_user(task.store.root, "own", "user7")
    assert not any(asked(opened(task), "own").adapted)  # until it is made without them
    left = [one for one in rows if (one.tenant, one.user) != ("own", "user7")]
    task.run_once(Rows(left))
    after = note_of(task)
    assert (after.count, after.delta != before.delta) == (before.count - 2, True)
    assert all(asked(opened(task), "own").adapted)
    assert not list((task.store.root / "forgotten").iterdir())
    (task.store.root / "forgotten" / "odd.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        opened(task)
