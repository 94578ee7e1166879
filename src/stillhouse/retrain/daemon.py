"""Cycles for as long as it runs: each task when it is due, and on with what is unfinished.

A cycle that cannot go on (the teacher is down, the gateway is away) is tried again after a while,
as is a candidate that climbs. A mistake of the user's sets its own task aside, which is tried again
likewise; only where every task is set aside does it end. The month's budget is waited for. Knows
loops and the schedule; the clock, the waiting and the end are passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.loop_retrain import duration_s
from stillhouse.retrain.cycle import budget_of, run_cycle
from stillhouse.retrain.loop import Loop
from stillhouse.retrain.schedule import Alarm, Due, due, read_alarms

LOOK_S: Final = 60.0  # between looks at the schedule and the alerts
AGAIN_S: Final = 600.0  # before a failed cycle is tried again

_MINUTES: Final = round(AGAIN_S / 60)


@dataclass(slots=True)
class _Task:
    loop: Loop
    tried_at: float | None = None  # when it could not go on
    mistake: UserError | None = None  # what its last look came to
    ahead: set[str] = field(default_factory=set)  # alerts dated later than now, once said

    @property
    def waits(self) -> bool:
        """Whether it could not go on lately. A clock that was set back makes no wait longer."""
        return self.tried_at is not None and 0 <= self.loop.clock() - self.tried_at < AGAIN_S


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
        UserError: every task has something that waiting does not mend; one of them.
    """
    tasks = [_Task(loop) for loop in loops]
    while True:
        for task in tasks:
            _look_apart(task, every_s, on_alert, alone=len(tasks) == 1)
        mistakes = [task.mistake for task in tasks if task.mistake is not None]
        if mistakes and len(mistakes) == len(tasks):
            raise mistakes[0]
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


def _look_apart(task: _Task, every_s: float | None, on_alert: bool, *, alone: bool) -> None:
    """Look at a task; whatever is wrong with it is no other task's."""
    loop = task.loop
    if task.waits:
        return
    before, task.mistake = task.mistake, None
    try:
        _look(task, every_s, on_alert)
    except UserError as error:
        task.mistake = error
        if not alone and (before is None or str(before) != str(error)):
            loop.say(f"{error}; this task is set aside and tried again every {_MINUTES} minutes")
    except (StillhouseError, OSError) as error:
        loop.say(f"{error}; tried again in {_MINUTES} minutes, nothing that is paid is lost")
    else:
        return
    task.tried_at = loop.clock()


def _say_what_is_ahead(task: _Task, now: float) -> None:
    """Alerts of the future start nothing until then; clocks a look apart are no matter."""
    ahead = [one for one in read_alarms(task.loop.files.root) if one.at > now + LOOK_S]
    new = [one for one in ahead if one.id not in task.ahead]
    task.ahead = {one.id for one in ahead}
    if new:
        task.loop.say(
            f"{len(new)} alerts are dated later than now ({new[-1].id} by "
            f"{(new[-1].at - now) / 3600:,.1f} hours) and start nothing until then; set the clock "
            "of this machine, or of the one that watches, right"
        )


def _look(task: _Task, every_s: float | None, on_alert: bool) -> None:
    loop = task.loop
    now = loop.clock()
    if on_alert:
        _say_what_is_ahead(task, now)
    found = next_due(loop, every_s, on_alert)
    if found.at is None or found.at > now:
        return
    if found.reason != "unfinished":
        try:
            budget_of(loop, loop.files.journal())
        except UserError as error:
            loop.say(str(error))
            task.tried_at = now
            return
    cycle = run_cycle(loop, found.reason)
    if cycle.step != "done":  # it climbs the gateway's stages
        task.tried_at = loop.clock()
