"""What a task's windows are compared with: the run, or the first windows of its student.

A student that comes later has first windows of its own. Past windows are read again from the log,
so that no text is kept here, and who was deleted there is gone here too. Knows the log's rows and
the state; judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from stillhouse.core.live import LiveRow, LiveRows
from stillhouse.core.records import Message, Query
from stillhouse.core.tasks import Task, canonical_json
from stillhouse.evaluate.fidelity import agreement_scores
from stillhouse.monitor.drift_records import Observation
from stillhouse.monitor.observe import observe
from stillhouse.monitor.pools import Kept, Setting, keep, random_pairs
from stillhouse.monitor.reference import Reference, reference_of_windows, together
from stillhouse.monitor.samples import Pair
from stillhouse.monitor.state import Baseline, Past, WatchState
from stillhouse.monitor.windows import gathered, in_bounds

GONE_SHARE: Final = 0.5
STUDENTS: Final = 20  # whose first windows are remembered
NONE: Final = ""  # the key of windows before there was a student


class RunData(NamedTuple):
    """A run as a reference: what its student did, and the held-out requests."""

    reference: Reference
    observations: tuple[Observation, ...]


class Earlier(NamedTuple):
    """Judged windows read again."""

    kept: list[Kept]
    past: tuple[Past, ...]
    late: int


class Renewed(NamedTuple):
    """The state, and whether a reference's requests are no longer in the log."""

    state: WatchState
    lost: bool


class Baselines:
    """References of one task during one check."""

    def __init__(
        self,
        setting: Setting,
        rows: LiveRows,
        run: RunData | None,
        language: Callable[[str], str | None] | None,
    ) -> None:
        self._setting, self._rows, self._language = setting, rows, language
        source = setting.section.reference.source
        self._run = None if source == "windows" else run
        self._observed: dict[str, tuple[Observation, ...]] = {}

    def earlier(self, past: Sequence[Past]) -> Earlier:
        """The windows that may be pooled, and requests that came into them since."""
        if not past:
            return Earlier([], (), 0)
        rows = self._rows.rows(self._setting.name, past[0].since, past[-1].until)
        bounds = [(one.since, one.until) for one in past]
        kept, fresh, late = [], [], 0
        found = in_bounds(rows, bounds, self._setting.section.window.most)
        for one, (members, count) in zip(past, found, strict=True):
            kept.append(keep(self._setting, members))
            late += max(0, count - one.requests)
            fresh.append(one.model_copy(update={"requests": max(count, one.requests)}))
        return Earlier(kept, tuple(fresh), late)

    def held_for(self, state: WatchState, student: str | None) -> WatchState:
        """A run is held to be of the student that is served when it is first named."""
        if self._run is None or student is None or state.run == self._run.reference.run:
            return state
        return state.model_copy(update={"run": self._run.reference.run, "run_student": student})

    def reference(self, state: WatchState, student: str | None) -> Reference | None:
        """What the student's windows are compared with; `None`: nothing yet."""
        own = state.baselines.get(student or NONE, Baseline()).reference
        if self._run is None or not self._of_run(state, student):
            return own
        return together(self._run.reference, own)

    def observations(self, state: WatchState, student: str | None) -> tuple[Observation, ...]:
        """The requests that drift is looked for against; empty: none yet."""
        if self._run is not None and self._of_run(state, student):
            return self._run.observations
        baseline = state.baselines.get(student or NONE)
        if baseline is None or baseline.reference is None or not baseline.past:
            return ()
        key = self.compared(state, student)
        if key not in self._observed:
            rows = [row for past in baseline.past for row in self._of(past)]
            self._observed[key] = tuple(self.observed(rows))
        return self._observed[key]

    def before(
        self, state: WatchState, student: str | None, count: int
    ) -> list[list[Observation]] | None:
        """The requests of each of the newest `count` (1 or more) judged windows, oldest first.

        `None`: there are fewer, or one of them is another student's, is in the reference, had no
        request, or the log has lost its requests.
        """
        past = state.past[-count:]
        first = self._firsts(state, student)
        if len(past) < count or any(one.student != student or one.number in first for one in past):
            return None
        found = []
        for one in past:
            rows = self._rows.rows(self._setting.name, one.since, one.until)
            held = gathered(rows, self._setting.section.window.most)
            if not held.requests or held.requests < GONE_SHARE * one.requests:
                return None
            found.append(self.observed(held.rows))
        return found

    def compared(self, state: WatchState, student: str | None) -> str:
        """Which student is compared with what: another name, another comparison."""
        if self._run is not None and self._of_run(state, student):
            reference = f"run {self._run.reference.run}"
        else:
            reference = f"windows {sorted(self._firsts(state, student))}"
        return f"{student or NONE}: {reference}"

    def _firsts(self, state: WatchState, student: str | None) -> set[int]:
        """Numbers of the windows that are the student's reference; none where a run is."""
        own = state.baselines.get(student or NONE, Baseline())
        return set() if self._of_run(state, student) else {past.number for past in own.past}

    def observed(self, rows: Iterable[LiveRow]) -> list[Observation]:
        """Requests as drift compares them."""
        task = self._setting.task
        return observe(
            rows,
            text=text_of(task),
            parse=parse_of(task),
            agree=agree_of(task),
            language=self._language,
        )

    def grown(self, state: WatchState, past: Past) -> WatchState:
        """With one more of a student's first windows, if it is one."""
        section = self._setting.section
        key = past.student or NONE
        baseline = state.baselines.get(key, Baseline())
        first, least = section.reference.windows, section.window.least
        if self._is_full(baseline):
            return state
        baseline = baseline.model_copy(update={"past": (*baseline.past, past)})
        enough = sum(one.random for one in baseline.past) >= least
        longest = max(first, section.window.lookback)
        if len(baseline.past) >= first and (enough or len(baseline.past) >= longest):
            fresh = baseline.reference or self._made(baseline)
            baseline = baseline.model_copy(update={"reference": fresh})
        return _with(state, key, baseline)

    def renewed(self, state: WatchState, student: str | None) -> Renewed:
        """A student's first windows read again: outcomes that came late join a reference that
        lacked them; where the log has lost their requests, the next windows take their place."""
        key = student or NONE
        baseline = state.baselines.get(key)
        if baseline is None or baseline.reference is None or not self._is_full(baseline):
            return Renewed(state, lost=False)
        held = sum(len(self._of(past)) for past in baseline.past)
        if held < GONE_SHARE * sum(past.requests for past in baseline.past):
            fresh = baseline.model_copy(update={"past": ()})
            return Renewed(_with(state, key, fresh), lost=True)
        if baseline.reference.accuracy is None:
            accuracy = self._made(baseline).accuracy
            changed = baseline.reference.model_copy(update={"accuracy": accuracy})
            state = _with(state, key, baseline.model_copy(update={"reference": changed}))
        return Renewed(state, lost=False)

    def _is_full(self, baseline: Baseline) -> bool:
        if baseline.reference is None:
            return False
        return len(baseline.past) >= self._setting.section.reference.windows

    def _of_run(self, state: WatchState, student: str | None) -> bool:
        if self._run is None or state.run != self._run.reference.run:
            return False
        return student is None or state.run_student in (None, student)

    def _of(self, past: Past) -> list[LiveRow]:
        rows = self._rows.rows(self._setting.name, past.since, past.until)
        return gathered(rows, self._setting.section.window.most).rows

    def _made(self, baseline: Baseline) -> Reference:
        section = self._setting.section
        kept = [keep(self._setting, self._of(past)) for past in baseline.past]
        pairs = random_pairs(kept)
        segments: dict[str, list[Pair]] = {}
        for pair, keys in pairs:
            for key in keys:
                segments.setdefault(key, []).append(pair)
        return reference_of_windows(
            [pair for pair, _ in pairs],
            [one for each in kept for one in each.samples.student],
            segments,
            student=baseline.past[-1].student,
            least=section.window.least,
            least_segment=section.segments.least,
        )


def text_of(task: Task) -> Callable[[tuple[Message, ...]], str]:
    """What of a request's messages is compared."""

    def text(messages: tuple[Message, ...]) -> str:
        if not messages or messages[-1].role == "assistant":
            return ""
        return task.varying_text(Query(id="-", messages=messages))

    return text


def parse_of(task: Task) -> Callable[[str], str | None] | None:
    """An answer's label or canonical form; free text has none."""
    if task.kind == "generation":
        return None

    def parse(text: str) -> str | None:
        value = task.parse(text).value
        if value is None or isinstance(value, str):
            return value
        return canonical_json(value)

    return parse


def agree_of(task: Task) -> Callable[[str, str], float]:
    """Agreement of the student's text with the teacher's."""
    return lambda student, teacher: agreement_scores(task, [student], [teacher])[0]


def _with(state: WatchState, key: str, baseline: Baseline) -> WatchState:
    others = {name: one for name, one in state.baselines.items() if name != key}
    newest = dict(list({**others, key: baseline}.items())[-STUDENTS:])
    return state.model_copy(update={"baselines": newest})
