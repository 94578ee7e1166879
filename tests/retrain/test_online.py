"""Online learning: guard, roll back, crash, caps, deletion, poison. Synthetic features."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stillhouse.core.errors import RunFolderError, StillhouseError, UserError
from stillhouse.core.live import LiveAnswer, LiveRow
from stillhouse.core.loop_online import CapsSection, GuardSection, OnlineSection
from stillhouse.core.records import Message
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.head_weights import Floats, HeadRead, HeadWeights, load_head, save_head
from stillhouse.models.onnx_student import log_softmax
from stillhouse.retrain.online import OnlineTask
from stillhouse.retrain.online_intake import desk_of, take
from stillhouse.retrain.online_rows import is_guard, lessons_of
from stillhouse.retrain.online_state import OnlineState, Store
from stillhouse.retrain.online_step import Table, between, harm_of
from stillhouse.train.online_head import HeadRates, refine

TASK = ClassificationTask(kind="classification", labels=("a", "b", "c"))
H = 16
_RNG = np.random.default_rng(0)
CENTRES = _RNG.normal(size=(2, 3, H)).astype(np.float32)  # before and after the shift


class FakeStudent:
    """A student whose features are in its texts."""

    def __init__(self, folder: Path) -> None:
        found = json.loads((folder / "head.json").read_text())
        self.head = HeadWeights(
            np.array(found["weight"], dtype=np.float32), np.array(found["bias"], dtype=np.float32)
        )

    def features(self, texts: Sequence[str]) -> Floats:
        return np.array([json.loads(text) for text in texts], dtype=np.float32)

    def read(self, texts: Sequence[str]) -> HeadRead:
        features = self.features(texts)
        return HeadRead(log_softmax(self.head.logits(features)), features, [1] * len(texts))

    def write(self, head: HeadWeights, out: Path) -> None:
        out.mkdir(parents=True)
        (out / "head.json").write_text(
            json.dumps({"weight": head.weight.tolist(), "bias": head.bias.tolist()})
        )


class Rows:
    """`LiveRows` in memory."""

    def __init__(self, rows: Sequence[LiveRow]) -> None:
        self.all = list(rows)

    def rows(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[LiveRow]:
        return iter([one for one in self.all if since is None or one.at >= since])

    def ids(
        self, task: str, since: float | None = None, until: float | None = None
    ) -> Iterator[str]:
        return (one.id for one in self.rows(task, since, until))

    def newest(self, task: str, count: int) -> list[LiveRow]:
        return self.all[-count:]


def row(number: int, phase: int, *, tenant: str = "t0", flip: bool = False) -> LiveRow:
    rng = np.random.default_rng(number)
    label = int(rng.integers(3))
    x = CENTRES[phase, label] + rng.normal(size=H) * 0.8
    right = TASK.labels[label]
    wrong = TASK.labels[(label + 1) % 3]
    student = LiveAnswer(
        id=f"r{number}", text=right, latency_ms=1, corrected=wrong if flip else None
    )
    teacher = None if flip else LiveAnswer(id=f"r{number}", text=right, latency_ms=1)
    return LiveRow(
        id=f"r{number}",
        at=float(number),
        task="t",
        tenant=tenant,
        unit=f"u{number}",
        user=f"user{number % 50}",
        messages=(Message(role="user", content=json.dumps([float(v) for v in x])),),
        seen="student" if flip else "teacher",
        arm="teacher_only",
        teacher=teacher,
        student=student,
    )


def base_head() -> HeadWeights:
    return HeadWeights(CENTRES[0] * 1.0, -(CENTRES[0] ** 2).sum(-1) / 2)


def section(**changes: object) -> OnlineSection:
    given = {
        "guard": GuardSection(share=0.3, rows=300, least=20),
        "steps": 40,
        "learning_rate": 0.03,
        "caps": CapsSection(user_share=0.2),
        "late_hours": 0,
    }
    return OnlineSection.model_validate({**given, **changes})


def make(tmp_path: Path, section: OnlineSection, **more: object) -> OnlineTask:
    folder = tmp_path / "student"
    if not folder.exists():
        FakeStudent.write(None, base_head(), folder)  # type: ignore[arg-type]
    rates = HeadRates(section.steps, section.learning_rate, section.anchor_kl, section.anchor_l2)

    def learn(live: HeadWeights, x: Floats, y: Floats, draw: Callable[[], object]) -> HeadWeights:
        return refine(live, x, y, rates, draw)  # type: ignore[arg-type]

    given = {"learn": learn, "clock": lambda: 1.0, "student": folder, "opened": FakeStudent, **more}
    return OnlineTask(tmp_path / "online", "t", TASK, section, **given)  # type: ignore[arg-type]


def quality(task: OnlineTask, phase: int, base: int = 90_000) -> float:
    state = task.state
    head = load_head(
        task.store.head_path(state.version(state.live).head), state.version(state.live).head
    )
    good = 0
    for number in range(base, base + 400):
        one = row(number, phase)
        said = head.logits(np.array([json.loads(one.messages[0].content)], dtype=np.float32))
        good += TASK.labels[int(said.argmax())] == one.teacher.text  # type: ignore[union-attr]
    return good / 400


class Gateway:
    """A gateway that answers with a student, takes another, or is away."""

    def __init__(self, student: str | None) -> None:
        self.student, self.version = student, 7
        self.away = False
        self.told: list[tuple[str, str, str, int | None]] = []

    def state(self, task: str) -> Gateway:
        if self.away:
            raise StillhouseError("gateway: refuses connections")
        return self

    def reload(
        self, task: str, path: str, name: str, reason: str = "", *, version: int | None = None
    ) -> None:
        self.told.append((task, path, name, version))
        self.student = name


def test_it_follows_a_shift_and_is_handed_over(tmp_path: Path) -> None:
    gateway = Gateway("small")
    task = make(tmp_path, section(), hand_over=gateway, names={"small"})
    before = quality(task, 1)
    done = task.run_once(Rows([row(n, 1) for n in range(600)]))
    assert done.swapped
    assert quality(task, 1) > before + 0.15
    live = task.state.version(task.state.live)
    assert gateway.told == [("t", live.path, f"t-online-{live.number}", 7)]
    assert (tmp_path / "online" / "current").resolve() == Path(live.path)
    assert task.state.handed == live.number
    assert not task.run_once(Rows([row(n, 1) for n in range(600)])).swapped  # nothing new


def test_the_guard_refuses_a_bad_update_and_suspects_are_quarantined(tmp_path: Path) -> None:
    def worse(live: HeadWeights, x: Floats, y: Floats, draw: object) -> HeadWeights:
        return HeadWeights(live.weight * -50, live.bias * -50)  # a quarter of the way is wrong too

    task = make(tmp_path, section(), learn=worse)
    done = task.run_once(Rows([row(n, 0) for n in range(300)]))
    assert not done.swapped
    assert {one.verdict.answer for one in done.steps} == {"refuse"}
    assert task.state.live == 0
    assert task.state.counts["steps: refuse"] == len(done.steps)


def test_part_of_a_step_is_taken_where_all_of_it_is_too_far() -> None:
    new = HeadWeights(CENTRES[1], np.ones(3, dtype=np.float32))
    assert between(base_head(), new, 1.0).weight == pytest.approx(new.weight, abs=1e-5)
    half = between(base_head(), new, 0.5)
    assert half.weight == pytest.approx((base_head().weight + new.weight) / 2, abs=1e-5)


def test_nothing_is_swapped_without_a_guard_set(tmp_path: Path) -> None:
    task = make(tmp_path, section(guard=GuardSection(share=1e-9)))
    with pytest.raises(UserError, match="guard set is empty"):
        task.run_once(Rows([row(n, 1) for n in range(100)]))
    assert task.state.live == 0


def test_too_small_a_guard_set_holds(tmp_path: Path) -> None:
    task = make(tmp_path, section(guard=GuardSection(share=0.1, least=90)))
    done = task.run_once(Rows([row(n, 1) for n in range(200)]))
    assert [one.verdict.answer for one in done.steps] == ["hold"]
    assert not done.swapped


def test_roll_back_is_exact_and_seen_to_be(tmp_path: Path) -> None:
    task = make(tmp_path, section())
    task.run_once(Rows([row(n, 1) for n in range(400)]))
    first = task.state.live
    head = load_head(
        task.store.head_path(task.state.version(first).head), task.state.version(first).head
    )
    task.run_once(Rows([row(n, 0) for n in range(400, 1200)]))
    assert task.state.live != first
    task.roll_back(first, [])
    state = task.state
    back = load_head(
        task.store.head_path(state.version(state.live).head), state.version(state.live).head
    )
    x = np.random.default_rng(1).normal(size=(50, H)).astype(np.float32)
    assert back.logits(x).tobytes() == head.logits(x).tobytes()
    folder = Path(state.version(first).path)
    assert FakeStudent(folder).head.digest() == head.digest()
    buffer = task.store.rows(state.buffer)
    assert all(one.quarantined for one in buffer if one.seq >= state.version(first).seen)
    (folder / "head.json").write_text("{}")
    with pytest.raises(UserError, match="was changed"):
        task.roll_back(first, [])
    with pytest.raises(UserError, match="is not kept"):
        task.roll_back(77, [])


@pytest.mark.parametrize("at", ["write", "commit", "point"])
def test_killed_in_the_middle_it_goes_on_to_the_same(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows([row(n, 1) for n in range(400)])
    whole = make(tmp_path / "whole", section())
    whole.run_once(rows)

    task = make(tmp_path / "cut", section())

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    task.state  # the base is committed  # noqa: B018
    with monkeypatch.context() as patch:
        patch.setattr(*((FakeStudent, at) if at == "write" else (type(task.store), at)), die)
        with pytest.raises(KeyboardInterrupt):
            task.run_once(rows)
    again = make(tmp_path / "cut", section())
    again.run_once(rows)
    assert again.state.version(again.state.live).head == whole.state.version(1).head
    assert again.state.buffer == whole.state.buffer
    assert not list((tmp_path / "cut" / "online").rglob("*.partial"))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    task = make(tmp_path, section())
    with task.store.locked(), pytest.raises(RunFolderError, match="another process"):
        task.run_once(Rows([]))


def test_a_forgotten_user_leaves_rows_and_versions(tmp_path: Path) -> None:
    task = make(tmp_path, section())
    rows = [row(n, 1) for n in range(500)]
    task.run_once(Rows(rows))
    live = task.state.version(task.state.live)
    victim = live.contributors[0].whose
    old_head = live.head
    gone = task.forget(None, [victim], [])
    assert gone > 0
    state = task.state
    assert all(by.whose != victim for one in state.versions for by in one.contributors)
    assert old_head not in {one.head for one in state.versions}
    assert not task.store.head_path(old_head).exists()
    texts = "".join(p.read_text() for p in (tmp_path / "online").glob("*.json*"))
    assert not re.search(rf"{victim}(?!\d)", texts)  # user1 is not user10
    assert state.version(state.live).kind == "rebuilt"
    assert quality(task, 1) > 0.8
    left = Rows([one for one in rows if one.user not in (victim, "user7")])
    assert task.gone_from(left, since=0) == {"user7"}


def test_a_poisoned_tenant_costs_little_and_is_quarantined(tmp_path: Path) -> None:
    clean = [row(n, 1, tenant=f"t{n % 4}") for n in range(800)]
    bad = [row(n + 5000, 1, tenant="evil", flip=True) for n in range(160)]
    mixed = sorted(
        clean + [one.model_copy(update={"at": float(one.at - 5000) * 5}) for one in bad],
        key=lambda one: (one.at, one.id),
    )
    honest = make(tmp_path / "honest", section(chunk=100))
    honest.run_once(Rows(clean))
    task = make(tmp_path / "poisoned", section(chunk=100))
    task.run_once(Rows(mixed))
    assert task.state.quarantined == ("evil",)
    assert quality(task, 1) >= quality(honest, 1) - 0.02


@pytest.mark.parametrize("harm", ["unclear", "harmless"])
def test_a_suspected_tenants_corrections_wait_until_they_are_shown_harmless(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.retrain.online.harm_of", lambda *_: harm)
    clean = [row(n, 0, tenant=f"t{n % 4}") for n in range(400)]
    bad = [row(n + 5000, 0, tenant="evil", flip=True) for n in range(80)]
    task = make(tmp_path, section())
    (step,) = task.run_once(Rows([*clean, *bad])).steps
    assert task.state.quarantined == ()
    buffer = [one.lesson.tenant for one in task.store.rows(task.state.buffer)]
    assert buffer.count("evil") > 30
    waits = buffer.count("evil") if harm == "unclear" else 0
    assert step.learned == len(buffer) - waits
    contributors = task.state.version(task.state.live).contributors
    assert step.verdict.answer == "accept"
    assert any(one.tenant == "evil" for one in contributors) == (harm == "harmless")


@pytest.mark.parametrize("refused", [False, True])
def test_corrections_that_waited_are_new_when_they_are_released(
    tmp_path: Path, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = "unclear"
    monkeypatch.setattr("stillhouse.retrain.online.harm_of", lambda *_: harm)
    rows = [row(n, 0, tenant=f"t{n % 4}") for n in range(400)]
    rows += [row(n + 5000, 0, tenant="evil", flip=True) for n in range(80)]
    make(tmp_path, section()).run_once(Rows(rows))
    task = make(tmp_path, section())  # from what is on disk
    clean = task.state.live
    evil = {one.id for one in rows if one.tenant == "evil"}
    held = {one.lesson.id for one in task.store.rows(task.state.buffer)} & evil
    assert len(held) > 30

    def worse(live: HeadWeights, x: Floats, y: Floats, draw: object) -> HeadWeights:
        return HeadWeights(live.weight * -50, live.bias * -50)

    harm = "harmless"
    rows += [row(n + 9000, 0, tenant=f"t{n % 4}") for n in range(100)]
    task = make(tmp_path, section(), **({"learn": worse} if refused else {}))
    (step,) = task.run_once(Rows(rows)).steps
    assert step.verdict.answer == ("refuse" if refused else "accept")
    if not refused:
        assert task.state.live != clean
        task.roll_back(clean, [])
    kept = task.store.rows(task.state.buffer)
    gone = {one.lesson.id for one in kept if one.quarantined}
    there = {one.lesson.id for one in kept} & held
    if refused:
        # The refused step looks among these for what it quarantines.
        new_from = task.state.learned_to
        assert all(one.seq >= new_from for one in kept if one.lesson.id in there)
    else:
        assert there <= gone


def test_what_rows_do_to_the_guard_is_harm_no_harm_or_not_to_be_said() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=1300)
    x = (CENTRES[0, labels] + rng.normal(size=(1300, H)) * 0.8).astype(np.float32)
    right, wrong = (np.eye(3, dtype=np.float32)[(labels + by) % 3] for by in (0, 1))
    rates = HeadRates(60, 0.01, 0.0, 0.0)

    def learn(live: HeadWeights, x: Floats, y: Floats, draw: Callable[[], object]) -> HeadWeights:
        return refine(live, x, y, rates, draw)  # type: ignore[arg-type]

    def said(targets: Floats, guards: int) -> str:
        rows, guard = Table(x[:300], targets[:300]), Table(x[300:][:guards], right[300:][:guards])
        return harm_of(base_head(), rows, guard, section(), learn)

    assert said(wrong, 1000) == "harms"
    assert said(right, 1000) == "harmless"
    assert said(right, 5) == "unclear"


def test_more_users_guard_until_a_swap_can_be_tested_and_none_of_them_teaches(
    tmp_path: Path,
) -> None:
    few = section(guard=GuardSection(share=0.2, least=20), caps=CapsSection(user_share=1.0))
    given = [row(n, 0, tenant=f"t{n % 3}") for n in range(600)]
    given = [one.model_copy(update={"user": f"user{n // 2}"}) for n, one in enumerate(given)]
    lessons = lessons_of(given, TASK).kept
    desk = desk_of(OnlineState(), Store(tmp_path), few)
    early = next(
        at
        for at, one in enumerate(lessons)
        if take(desk, [one], few, lambda some: ["a"] * len(some)) is not None
        and len(desk.guard) >= 20
    )
    alone = sum(is_guard(one, 0.2, few.seed) for one in lessons[: early + 1])
    assert alone < 16  # it would not have been enough yet
    take(desk, lessons[early + 1 :], few, lambda some: ["a"] * len(some))
    guard = {(one.tenant, one.whose) for one in desk.guard}
    taught = {(one.lesson.tenant, one.lesson.whose) for one in desk.buffer.items}
    assert not guard & taught
    later = {(one.tenant, one.whose) for one in lessons[early + 2 :]} & guard
    by_hash = {(o.tenant, o.whose) for o in lessons[early + 2 :] if is_guard(o, 0.2, few.seed)}
    assert later <= by_hash | {(one.tenant, one.whose) for one in lessons[: early + 2]}


def test_a_new_student_keeps_the_rows(tmp_path: Path) -> None:
    task = make(tmp_path, section())
    task.run_once(Rows([row(n, 1) for n in range(300)]))
    buffer, number = task.state.buffer, task.state.live
    shutil.rmtree(tmp_path / "student")
    FakeStudent.write(None, HeadWeights(CENTRES[1], np.zeros(3, np.float32)), tmp_path / "student")  # type: ignore[arg-type]
    again = make(tmp_path, section())
    state = again.state
    assert (state.live, state.base, state.buffer) == (number + 1, number + 1, buffer)
    assert [one.kind for one in state.versions] == ["base"]


def test_a_changed_head_file_is_refused(tmp_path: Path) -> None:
    head = base_head()
    head = head._replace(weight=np.asfortranarray(head.weight))  # as a transposed layer comes
    save_head(tmp_path / "x.safetensors", head)
    assert load_head(tmp_path / "x.safetensors", head.digest()).digest() == head.digest()
    save_head(tmp_path / "x.safetensors", head._replace(bias=head.bias + 1))
    with pytest.raises(UserError, match="was changed"):
        load_head(tmp_path / "x.safetensors", head.digest())


def test_a_refinement_is_pure_and_stays_near_at_strong_anchors() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, H)).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 60)]

    def moved(l2: float) -> float:
        draws = np.random.default_rng(1)
        learn = partial(refine, base_head(), x, y, HeadRates(50, 0.01, 0.0, l2))
        new = learn(lambda: (draws.integers(0, 60, 32), np.ones(32)))
        return float(np.abs(new.weight - base_head().weight).max())

    assert moved(0.1) == moved(0.1)
    assert moved(1e3) < moved(0.0) / 5


def test_a_student_that_was_put_to_work_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    gateway = Gateway("s-promoted")
    task = make(tmp_path, section(), hand_over=gateway, names={"small"})
    done = task.run_once(Rows([row(n, 1) for n in range(600)]))
    assert done.swapped
    assert (gateway.told, gateway.student) == ([], "s-promoted")
    (note,) = done.notes
    assert "was not handed over: the gateway answers with s-promoted" in note
    gateway.student = "small"  # put back: the next pass hands over what waits
    assert task.run_once(Rows([])).notes == ()
    assert gateway.student == f"t-online-{task.state.live}"
    assert gateway.told[0][3] == 7  # the state that was read, and no other


def test_a_roll_back_and_a_deletion_say_where_the_gateway_did_not_follow(tmp_path: Path) -> None:
    gateway = Gateway("small")
    task = make(tmp_path, section(), hand_over=gateway, names={"small"})
    task.run_once(Rows([row(n, 1) for n in range(600)]))
    victim = task.state.version(task.state.live).contributors[0].whose
    gateway.away = True
    for act in (partial(task.roll_back, 0), partial(task.forget, None, [victim])):
        notes: list[str] = []
        act(notes)
        assert len(notes) == 1
        assert "refuses connections" in notes[0]


def test_the_gateways_version_stays_on_disk_until_it_has_the_next(tmp_path: Path) -> None:
    gateway = Gateway("small")
    task = make(tmp_path, section(keep=2), hand_over=gateway, names={"small"})
    task.run_once(Rows([row(n, 1) for n in range(600)]))
    (_, path, name, _) = gateway.told[-1]
    gateway.away = True
    for phase, first in ((0, 1000), (1, 2000), (0, 3000)):
        rows = Rows([row(n, phase) for n in range(first, first + 500)])
        assert task.run_once(rows).swapped
        assert Path(path).is_dir()
    gateway.away = False
    assert task.run_once(Rows([])).notes == ()
    assert gateway.student not in ("small", name)
