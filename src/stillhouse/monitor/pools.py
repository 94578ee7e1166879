"""Samples of several windows of one student, pooled until there are enough of them.

Knows samples and their segments; makes no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

from stillhouse.core.live import LiveRow
from stillhouse.core.loop_monitor import MonitorSection
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.monitor.samples import Judged, Pair, Samples, input_text, main_student, samples_of
from stillhouse.monitor.segments import Item, Segmenter

T = TypeVar("T")
# Pairs whose units were drawn by hash, whatever they asked.
RANDOM: Final = ("teacher_only", "shadow")


class Setting(NamedTuple):
    """What all windows of a task have in common."""

    name: str
    task: Task
    section: MonitorSection
    segmenter: Segmenter


class Kept(NamedTuple):
    """What is held of a window: samples, and the segments of its pairs."""

    student: str | None
    samples: Samples
    pair_keys: tuple[tuple[str, ...], ...]


class Pool(NamedTuple):
    """Samples, and of how many windows they are."""

    pairs: list[Pair]
    windows: int


class JudgedPool(NamedTuple):
    """Judged answers, and of how many windows they are."""

    judged: list[Judged]
    windows: int


def keep(setting: Setting, rows: Sequence[LiveRow]) -> Kept:
    """What a window's rows give to it and to later ones."""
    student, _ = main_student(rows)
    samples = samples_of(rows, setting.task, student, setting.section.bounds.acceptable)
    items = [
        Item(
            input_text(setting.task, pair.row),
            pair.row.tenant,
            None if pair.labels is None else pair.labels[1],
        )
        for pair in samples.pairs
    ]
    return Kept(student, samples, tuple(setting.segmenter.of(items)))


def items_of(setting: Setting, rows: Sequence[LiveRow]) -> list[Item]:
    """All requests, with the label of the teacher, else of the student."""
    found = []
    for row in rows:
        label = None
        for answer in (row.student, row.teacher):
            if isinstance(setting.task, ClassificationTask) and answer is not None and answer.text:
                value = setting.task.parse(answer.text).value
                label = label if value is None else str(value)
        found.append(Item(input_text(setting.task, row), row.tenant, label))
    return found


class Pools:
    """Of windows of one student, oldest first; the last is the one that is judged."""

    def __init__(self, same: Sequence[Kept], least: int) -> None:
        self.windows = len(same)
        self._same = same
        self._least = least

    def pairs(self, populations: Sequence[str] = RANDOM) -> Pool:
        """Pairs of some populations."""

        def pick(one: Kept) -> Iterable[Pair]:
            return (pair for pair in one.samples.pairs if pair.population in populations)

        return Pool(*pooled(self._same, pick, self._least))

    def judged(self, whose: Literal["student", "teacher"]) -> JudgedPool:
        """Answers that somebody judged."""

        def pick(one: Kept) -> Iterable[Judged]:
            return one.samples.student if whose == "student" else one.samples.teacher

        return JudgedPool(*pooled(self._same, pick, self._least))

    def by_segment(self, least: int) -> Mapping[str, Pool]:
        """Random pairs of each segment, pooled on its own: small ones go further back."""
        found: dict[str, Pool] = {}
        for count, one in enumerate(reversed(self._same), start=1):
            fresh: dict[str, list[Pair]] = {}
            for pair, keys in random_pairs([one]):
                for key in keys:
                    fresh.setdefault(key, []).append(pair)
            for key, more in fresh.items():
                before = found.get(key)
                if before is None:
                    found[key] = Pool(more, count)
                elif len(before.pairs) < least:
                    found[key] = Pool([*more, *before.pairs], count)
        return found


def pooled(
    same: Sequence[Kept], pick: Callable[[Kept], Iterable[T]], least: int
) -> tuple[list[T], int]:
    """Samples of the newest window and of those before it until there are `least`, and of how many
    windows they are."""
    found: list[T] = []
    windows = 0
    for one in reversed(same):
        if windows and len(found) >= least:
            break
        found = [*pick(one), *found]
        windows += 1
    return found, max(windows, 1)


def random_pairs(kept: Iterable[Kept]) -> list[tuple[Pair, tuple[str, ...]]]:
    """The pairs whose units were drawn by hash, with their segments."""
    return [
        (pair, keys)
        for one in kept
        for pair, keys in zip(one.samples.pairs, one.pair_keys, strict=True)
        if pair.population in RANDOM
    ]
