"""Cycles for as long as it runs: each task when it is due, and on with what is unfinished.

A cycle that cannot go on (the teacher is down, the gateway is away) is tried again after a while,
as is a candidate that climbs. A mistake of the user's stops everything, but for the month's budget,
which is waited for. Knows loops and the schedule; the clock, the waiting and the end are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.loop_retrain import duration_s
from stillhouse.retrain.cycle import budget_of, run_cycle
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.schedule import Alarm, Due, due, read_alarms

LOOK_S: Final = 60.0  # between looks at the schedule and the alerts
AGAIN_S: Final = 600.0  # before a failed cycle is tried again


@dataclass(slots=True)
class _Task:
    loop: Loop
    again_at: float = 0.0


def watch(
    loops: Sequence[Loop],
    *,
    every_s: float | None,
    on_alert: bool,
    wait: Callable[[float], bool],
) -> None:
    """Run cycles until `wait` says to stop.

    Args:
        loops: the tasks.
        every_s: time between starts of a task's cycles; `None`: its own `every`, else by alerts.
        on_alert: whether alerts start cycles.
        wait: sleeps so many seconds; true: stop.

    Raises:
        UserError: something that waiting does not mend.
    """
    tasks = [_Task(loop) for loop in loops]
    while True:
        for task in tasks:
            _look(task, every_s, on_alert)
        if wait(LOOK_S):
            return


def next_due(loop: Loop, every_s: float | None, on_alert: bool) -> Due:
    """When a task's next cycle begins, and why; at once where one is unfinished."""
    if loop.files.unfinished() is not None:
        return Due(loop.clock(), "unfinished")
    if every_s is None and loop.section.every is not None:
        every_s = duration_s(loop.section.every)
    alarms: list[Alarm] = read_alarms(loop.files.root) if on_alert else []
    return due(
        loop.files.journal(),
        alarms,
        now=loop.clock(),
        every_s=every_s,
        min_interval_s=duration_s(loop.section.min_interval),
    )


def _look(task: _Task, every_s: float | None, on_alert: bool) -> None:
    loop = task.loop
    now = loop.clock()
    found = next_due(loop, every_s, on_alert)
    if found.at is None or max(found.at, task.again_at) > now:
        return
    if found.reason != "unfinished":
        try:
            budget_of(loop, loop.files.journal())
        except UserError as error:
            loop.say(str(error))
            task.again_at = now + AGAIN_S
            return
    try:
        cycle = run_cycle(loop, found.reason)
    except UserError:
        raise
    except StillhouseError as error:
        loop.say(
            f"{error}; tried again in {AGAIN_S / 60:.0f} minutes, nothing that is paid is lost"
        )
        task.again_at = loop.clock() + AGAIN_S
        return
    if cycle.step != "done":  # it climbs the gateway's stages
        task.again_at = loop.clock() + AGAIN_S
