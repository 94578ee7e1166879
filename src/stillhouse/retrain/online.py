"""Online distillation of one task: read what came, learn in small steps, guard, swap, roll back.

A pass reads the rows since the last, learns from them in chunks, asks the guard after each, and
commits: a version's folder first, the state after it, the gateway last. Killed anywhere, the next
pass goes on from the last commit. Knows no database and no gateway: rows and hand-over are seams.

Shapes: H hidden, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from stillhouse.core.artefact import student_sha
from stillhouse.core.errors import UserError
from stillhouse.core.live import LiveRows
from stillhouse.core.loop_online import OnlineSection
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.adapter_files import forgotten_users
from stillhouse.models.head_weights import (
    Floats,
    HeadStudent,
    HeadWeights,
    load_head,
)
from stillhouse.retrain.online_adapters import personalise
from stillhouse.retrain.online_guard import empty_guard
from stillhouse.retrain.online_handover import HandOver, give
from stillhouse.retrain.online_intake import (
    Desk,
    desk_of,
    forget_counts,
    fresh_lessons,
    packed,
    take,
    usable_rows,
    users_gone,
)
from stillhouse.retrain.online_personal import Around, Fit
from stillhouse.retrain.online_rows import Beliefs, Lesson
from stillhouse.retrain.online_state import OnlineState, Seen, Store, Version
from stillhouse.retrain.online_step import Learn, Step, Table, harm_of, step, table
from stillhouse.retrain.online_trust import judge
from stillhouse.retrain.online_versions import Kind, Made, note, rebase, write_version


class Pass(NamedTuple):
    """What a pass came to."""

    read: int
    learned: int
    steps: tuple[Step, ...]
    live: int
    swapped: bool
    notes: tuple[str, ...]


class OnlineTask:
    """A task's online learning.

    Args:
        root: FOLDER/TASK/online.
        name: of the task, at the gateway.
        student: folder of the student that a retraining (or `run`) has put to work.
        opened: opens it; its features are read by this.
        learn: small steps (`train.online_head.refine`).
        fit: fits an adapter (`train.online_head.fit_delta`); `None`: nobody has one.
        held_out: samples that came with the student and were never trained on.
        replay: examples that it was trained on.
        beliefs: a local teacher's probabilities.
        hand_over: `None`: versions are written, and nobody is told.
        names: by which the gateway knows `student`.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        task: ClassificationTask,
        section: OnlineSection,
        *,
        student: Path,
        opened: Callable[[Path], HeadStudent],
        learn: Learn,
        clock: Callable[[], float],
        fit: Fit | None = None,
        held_out: Sequence[Lesson] = (),
        replay: Sequence[Lesson] = (),
        beliefs: Beliefs | None = None,
        hand_over: HandOver | None = None,
        names: Collection[str] = (),
    ) -> None:
        self.store, self.name = Store(root), name
        self._task, self._section, self._learn, self._clock = task, section, learn, clock
        self._beliefs, self._hand_over, self._held = beliefs, hand_over, tuple(held_out)
        self._names = frozenset(names)
        self._replay = tuple(replay)
        self._folder = student
        self._student = opened(student)
        self._sha = student_sha(student)
        self._fit, self._known = fit, dict[str, Floats]()
        self._contributors: dict[tuple[str, str], Seen] = {}  # since the live version

    def run_once(self, rows: LiveRows) -> Pass:
        """One pass over what came since the last.

        Raises:
            RunFolderError: another process does the same.
            UserError: the guard set is empty though there is something to learn.
        """
        self._forget_told()
        with self.store.locked():
            desk = desk_of(self._state(), self.store, self._section)
            lessons = fresh_lessons(
                desk,
                rows.rows(self.name, since=desk.state.at),
                self._task,
                self._section,
                self._beliefs,
            )
            steps: list[Step] = []
            notes: list[str] = []
            head = first = self._head(desk.state)
            for start in range(0, len(lessons), self._section.chunk):
                part = lessons[start : start + self._section.chunk]
                take(desk, part, self._section, partial(self._said, head))
                waiting = self._suspects(desk, head, notes)
                if desk.new >= self._section.least_rows and len(desk.guard):
                    head = self._step(desk, head, steps, notes, waiting)
            if len(lessons) and not desk.guard and desk.new >= self._section.least_rows:
                self._commit(desk)
                raise empty_guard()
            guard = steps[-1].verdict.to_json() if steps else {}
            swapped = head.digest() != first.digest()
            if swapped:
                self._new_version(desk, head, "learned", guard)
                desk.state = desk.state.happened(self._clock(), "swap", guard)
            self._commit(desk)
            learned = sum(1 for one in steps if one.verdict.answer == "accept")
            self._give(notes)
            state = self._state()
            return Pass(len(lessons), learned, tuple(steps), state.live, swapped, tuple(notes))

    def roll_back(self, number: int, notes: list[str], reason: str = "") -> Version:
        """Make an earlier version live at once; what later ones learned from is quarantined.

        Args:
            notes: hear why the gateway does not answer with it yet.

        Raises:
            UserError: it is not kept, or its folder was changed.
        """
        with self.store.locked():
            desk = desk_of(self._state(), self.store, self._section)
            version = desk.state.version(number)
            if student_sha(Path(version.path)) != version.student:
                raise UserError(version.path, "was changed after it was written")
            self._head(desk.state.model_copy(update={"live": number}))
            later = [one.lesson.id for one in desk.buffer.items if one.seq >= version.seen]
            desk.counts["quarantined rows"] += desk.buffer.quarantine(later)
            desk.counts["roll backs"] += 1
            desk.state = desk.state.model_copy(update={"live": number})
            desk.state = desk.state.happened(self._clock(), "roll_back", {}, reason)
            self._commit(desk)
            self._give(notes)
            return version

    def forget(self, tenant: str | None, whose: Iterable[str], notes: list[str]) -> int:
        """Take users out: of buffer, guard, corrections, and of every version that learned from
        them. The last clean version is live again, or what it learns without them.

        Args:
            tenant: whose users; `None`: of any tenant.
            whose: pseudonyms (`Lesson.whose`).
            notes: hear why the gateway still answers with a version that learned from them.

        Returns:
            How many rows went.
        """
        gone = frozenset(whose)

        def theirs(of: str, name: str) -> bool:
            return name in gone and tenant in (None, of)

        with self.store.locked():
            desk = desk_of(self._state(), self.store, self._section)
            rows = len(desk.buffer.drop(lambda one: theirs(one.tenant, one.whose)))
            for kept in ("guard", "personal"):
                old: list[Lesson] = getattr(desk, kept)
                left = [one for one in old if not theirs(one.tenant, one.whose)]
                rows += len(old) - len(left)
                setattr(desk, kept, left)
            clean = [
                one
                for one in desk.state.versions
                if not any(theirs(by.tenant, by.whose) for by in one.contributors)
            ]
            if len(clean) < len(desk.state.versions):
                self._rebuild(desk, clean)
            forget_counts(desk, gone)
            desk.state = desk.state.happened(self._clock(), "forget", {"rows": rows})
            self._commit(desk)
            self._give(notes)
            return rows

    def gone_from(self, rows: LiveRows, since: float) -> set[str]:
        """Users of whom the log no longer has a row that it should have: who was forgotten there.

        Args:
            since: Unix seconds; what is older the log may have let go by itself.
        """
        desk = desk_of(self._state(), self.store, self._section)
        return users_gone(desk, rows.ids(self.name, since=since), since)

    def _forget_told(self) -> None:
        """Forget whom the gateway has forgotten and says so; the word goes once it is done."""
        for path, user in forgotten_users(self.store.root):
            # What the gateway does not take now, it is given at the end of this pass.
            self.forget(user.tenant, [user.whose], [])
            path.unlink(missing_ok=True)

    @property
    def state(self) -> OnlineState:
        """As it is on disk."""
        return self._state()

    def _state(self) -> OnlineState:
        """The state, begun anew from the student where a retraining has put another to work; rows
        and tallies stay."""
        state = self.store.read() or OnlineState()
        if state.versions and state.version(state.base).student == self._sha:
            return state
        return rebase(
            state, self.store, self._student.head, self._sha, self._folder, at=self._clock()
        )

    def _head(self, state: OnlineState) -> HeadWeights:
        digest = state.version(state.live).head
        return load_head(self.store.head_path(digest), digest)

    def _features(self, lessons: Sequence[Lesson]) -> Mapping[str, Floats]:
        missing = [one for one in lessons if one.id not in self._known]
        if missing:
            texts = [self._task.input_text(one.query()) for one in missing]
            for one, row in zip(missing, self._student.features(texts), strict=True):
                self._known[one.id] = row
        return self._known

    def _said(self, head: HeadWeights, lessons: Sequence[Lesson]) -> list[str]:
        rows = self._table(lessons)
        return [self._task.labels[at] for at in head.logits(rows.features).argmax(-1)]

    def _table(self, lessons: Sequence[Lesson]) -> Table:
        return table(lessons, self._features(lessons), self._task.labels)

    def _step(
        self,
        desk: Desk,
        head: HeadWeights,
        steps: list[Step],
        notes: list[str],
        waiting: Container[str],
    ) -> HeadWeights:
        """Learn from the buffer once; the head that is live after it. The corrections of waiting
        tenants do not count."""
        items, usable = usable_rows(desk, self._section, waiting)
        if not any(usable):
            return head
        base = desk.state.version(desk.state.base)
        first = load_head(self.store.head_path(base.head), base.head)
        found = step(
            head,
            items,
            usable,
            self._features([one.lesson for one in items]),
            self._task.labels,
            guard=self._table(desk.guard),
            held_out=(first, self._table(self._held)) if self._held else None,
            replay=self._table(self._replay),
            new_from=desk.state.learned_to,
            section=self._section,
            learn=self._learn,
            seed=self._section.seed + desk.state.steps,
        )
        steps.append(found)
        answer = found.verdict.answer
        desk.counts[f"steps: {answer}"] += 1
        desk.state = desk.state.happened(self._clock(), answer, found.verdict.to_json())
        desk.new = 0
        update: dict[str, object] = {"steps": desk.state.steps + 1}
        if answer == "refuse":
            count = desk.buffer.quarantine(found.suspects)
            desk.counts["quarantined rows"] += count
            notes.append(f"the guard refused a step; {count} rows are quarantined")
        elif answer == "accept":
            both = list(zip(items, usable, strict=True))
            old = desk.state.learned_to
            desk.buffer.hold(one.lesson.id for one, on in both if not on and one.seq >= old)
            update["learned_to"] = desk.buffer.seen
            note(self._contributors, [one.lesson for one, on in both if on])
        desk.state = desk.state.model_copy(update=update)
        return found.head if answer == "accept" else head

    def _suspects(self, desk: Desk, head: HeadWeights, notes: list[str]) -> set[str]:
        """Suspected tenants whose rows, learned alone, make the guard worse are learned from no
        more; those whose rows were not shown to be harmless either are returned: their corrections
        wait."""
        waiting: set[str] = set()
        for tenant, trust in judge(desk.tallies, self._section.trust).items():
            if trust.state != "suspected" or tenant in desk.state.quarantined:
                continue
            own = [one.lesson for one in desk.buffer.items if one.lesson.tenant == tenant]
            if not own or not desk.guard:
                waiting.add(tenant)
                continue
            rows, guard = self._table(own), self._table(desk.guard)
            harm = harm_of(head, rows, guard, self._section, self._learn)
            if harm == "unclear":
                waiting.add(tenant)
            if harm != "harms":
                continue
            names = tuple(sorted({*desk.state.quarantined, tenant}))
            desk.state = desk.state.model_copy(update={"quarantined": names})
            notes.append(
                f"tenant {tenant} is quarantined: {trust.rate:.0%} of its answers disagree, "
                f"{trust.others:.0%} of the others', and they make the guard set worse"
            )
        return waiting

    def _new_version(
        self, desk: Desk, head: HeadWeights, kind: Kind, guard: Mapping[str, JsonValue]
    ) -> None:
        """Write a version's folder and put it into the state."""
        desk.state = write_version(
            desk.state,
            self.store,
            self._student,
            Made(head, kind, guard, self._contributors, desk.buffer.seen, self._clock()),
            self._section.keep,
        )
        self._contributors = {}

    def _rebuild(self, desk: Desk, clean: Sequence[Version]) -> None:
        """Go back to the newest clean version, and learn again without those who are gone."""
        last = max(clean, key=lambda one: one.number)
        desk.state = desk.state.model_copy(
            update={"versions": tuple(clean), "live": last.number, "learned_to": last.seen}
        )
        desk.counts["rebuilds"] += 1
        self._contributors = {}
        if not desk.guard or not len(desk.buffer):
            return
        head, steps = self._head(desk.state), list[Step]()
        new = self._step(desk, head, steps, [], self._suspects(desk, head, []))
        if new.digest() != head.digest():
            self._new_version(desk, new, "rebuilt", steps[-1].verdict.to_json())

    def _commit(self, desk: Desk) -> None:
        around = Around(self._head(desk.state), self._sha, desk.guard, self._clock())
        personalise(
            desk,
            self.store,
            around,
            self._table,
            section=self._section.personal,
            fit=self._fit,
        )
        held = [one.lesson for one in desk.buffer.items] + desk.guard + desk.personal
        kept = {one.id for one in (*held, *self._held, *self._replay)}
        self._known = {name: row for name, row in self._known.items() if name in kept}
        state = packed(desk, self.store)
        self.store.commit(state)
        self.store.point(state.version(state.live))

    def _give(self, notes: list[str]) -> None:
        """Hand the live version to the gateway, if it has another."""
        if self._hand_over is None:
            return
        state = self._state()
        found, why = give(state, self.name, self._hand_over, self._names)
        if why is not None:
            notes.append(why)
        elif found is not state:
            self.store.commit(found)
