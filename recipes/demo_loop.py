"""The whole loop on this machine: a student takes over, traffic shifts, and it is distilled again.

    make demo-loop                        # after `make demo`, whose run it uses
    python recipes/demo_loop.py --exit    # ends when the story is told

What runs: `stillhouse serve` with the run's student in it, the run's teacher as a server
(`demo_loop_teacher`), users who replay real texts (`demo_loop_traffic`), and the commands
`stillhouse monitor`, `retrain` and `dashboard`, each as a user would start it. Time is compressed
(`demo_loop_files`): hundreds of requests stand for days. Every step is checked, and what was seen
is in OUT/story.json; a step that does not come about ends the demo with what it waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from demo_loop_files import NAME, Places, Scale, copied_run, student_of, write_files
from demo_loop_processes import Processes, free_ports
from demo_loop_traffic import Mix, Said, Sent, Users, editorials_of, reviews_of

from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.recipe import Recipe
from stillhouse.core.tasks import ClassificationTask
from stillhouse.retrain.gateway_admin import GatewayAdmin, GatewayState
from stillhouse.retrain.registry import Registry

ROOT: Final = Path(__file__).parents[1]
BATCH: Final = 30  # requests between two looks at a climbing student
PAUSE_S: Final = 1.5  # until the gateway has read what was scored


class Story:
    """What happened, told and kept."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.monotonic()
        self.steps: list[dict[str, Any]] = []

    def tell(self, step: str, text: str, **facts: Any) -> None:
        """A line on the screen, and a step in the file."""
        seconds = round(time.monotonic() - self._began, 1)
        self.steps.append({"step": step, "seconds": seconds, "text": text, **facts})
        write_json(self._path, {"steps": self.steps})
        sys.stdout.write(f"[{int(seconds) // 60:2d}:{int(seconds) % 60:02d}] {text}\n")
        sys.stdout.flush()


class Demo:
    """One telling.

    Args:
        places: where everything is; the folder is empty.
        usual, other: texts before the shift, and of the shift.
        taught_by: run whose teacher is started; `None`: `places.teacher` runs already.
    """

    def __init__(
        self,
        places: Places,
        scale: Scale,
        usual: list[Said],
        other: list[Said],
        processes: Processes,
        *,
        taught_by: Path | None,
    ) -> None:
        recipe = Recipe.model_validate(read_json(places.run / "recipe.json"))
        assert isinstance(recipe.task, ClassificationTask)
        self._places, self._scale, self._processes = places, scale, processes
        self._taught_by = taught_by
        self._mix = Mix(usual, other)
        self._users = Users(f"http://127.0.0.1:{places.listen}/v1", NAME, recipe.task, corrects=0.3)
        self._admin = GatewayAdmin(f"http://127.0.0.1:{places.admin}", processes.admin_key)
        self.story = Story(places.root / "story.json")

    def tell(self) -> None:
        """All of it, but for the dashboard."""
        self.start()
        self.promote_the_first()
        self.watch_usual_traffic()
        self.shift()
        self.retrain()
        self.promote_the_new()
        self.after()

    # --- the steps -------------------------------------------------------------------------------

    def start(self) -> None:
        """Registry, teacher, gateway, canaries."""
        places, tell = self._places, self.story.tell
        write_files(places, self._scale)
        registry = Registry(places.registry)
        first = registry.add(
            student_of(places.run),
            task=NAME,
            lineage={"run": str(places.run)},
            metrics={},
            by="demo",
            reason="the task's first student",
        )
        registry.promote(first.id, reason="the only one", by="demo")
        if self._taught_by is not None:
            port = places.teacher.rpartition(":")[2].removesuffix("/v1")
            script = str(ROOT / "recipes" / "demo_loop_teacher.py")
            command = [script, "--run", str(self._taught_by), "--port", port]
            self._processes.start("teacher", command, f"{places.teacher}/models")
        tell("teacher", "teacher: stored answers to known reviews, the model to all else")
        self._processes.stillhouse(
            "gateway", "serve", str(places.gateway), ready=f"{self._users_url()}/healthz"
        )
        tell("gateway", f"gateway: {self._users_url()}/v1, student {first.id} at shadow")
        self._run("monitor", "freeze", str(places.loop), NAME)
        tell("canaries", f"{self._scale.canaries} canaries frozen: has the teacher changed?")

    def promote_the_first(self) -> None:
        """Shadow, canary, full, on agreement with the teacher."""
        sent, state = self._until(lambda found: found.kind == "full", share=0.0)
        assert state.last is not None
        self.story.tell(
            "first_full",
            f"student at full after {sent} requests: {state.last.reason}",
            requests=sent,
            stages=self._stages(),
        )

    def watch_usual_traffic(self) -> None:
        """Windows of the usual, in which nothing is to be found."""
        sent = self._send(self._scale.normal * self._scale.window)
        found = self._check()
        self.story.tell(
            "usual",
            f"usual traffic: {self._told(sent)}; monitor: {found['severity'] or 'fine'}",
            accuracy=sent.accuracy,
            severity=found["severity"],
            alerts=_kinds(found),
        )

    def shift(self) -> None:
        """Other texts come, until the monitor says what happened."""
        share, before = self._scale.share, time.monotonic()
        for window in range(1, self._scale.shifted + 1):
            sent = self._send(self._scale.window, share)
            found = self._check()
            alerts = [one for one in found["alerts"] if one["kind"] == "input_shift"]
            self.story.tell(
                "shifted",
                f"{share:.0%} editorials: {self._told(sent)}; monitor: "
                f"{found['severity'] or 'fine'}",
                accuracy=sent.accuracy,
                severity=found["severity"],
                alerts=_kinds(found),
            )
            if alerts:
                alert = alerts[0]
                self.story.tell(
                    "found",
                    f"found after {window * self._scale.window} requests: {alert['summary']}\n"
                    f"        cause: {alert['cause']}; do: {alert['action']}",
                    windows=window,
                    alert=alert,
                    seconds_since=round(time.monotonic() - before, 1),
                )
                return
        raise SystemExit(f"the shift was not found in {self._scale.shifted} windows")

    def retrain(self) -> None:
        """A cycle of distilling again, up to the offer to the gateway."""
        before = time.monotonic()
        done = self._run("retrain", str(self._places.loop), NAME, "--json", passes=(0, 3))
        cycle = json.loads(done.splitlines()[-1])
        if cycle["step"] != "decide":
            raise SystemExit(f"retraining did not end in a candidate: {cycle['verdict']}")
        seconds = round(time.monotonic() - before, 1)
        self.story.tell(
            "retrained",
            f"distilled again in {seconds:.0f} s: {cycle['trained'].get('examples')} examples, "
            f"{cycle['asked']} answers asked of the teacher\n        {cycle['verdict']}",
            cycle=cycle,
            seconds_taken=seconds,
        )

    def promote_the_new(self) -> None:
        """The candidate climbs beside the first student, and the registry follows."""
        name = self._registry_candidate()
        sent, state = self._until(lambda found: found.student == name, share=self._scale.share)
        assert state.last is not None
        self._run("retrain", str(self._places.loop), NAME, passes=(0, 3))
        live = Registry(self._places.registry).live(NAME)
        if live is None or live.id != name:
            raise SystemExit(f"{name} is at full, and the registry's live student is {live}")
        self.story.tell(
            "new_live",
            f"{name} is live after {sent} requests: {state.last.reason}",
            student=name,
            parent=live.parent,
            requests=sent,
            stages=self._stages(),
        )

    def after(self) -> None:
        """The new student on the new traffic."""
        sent = self._send(self._scale.window, self._scale.share)
        before = next(one for one in self.story.steps if one["step"] == "shifted")
        self.story.tell(
            "after",
            f"the new student on the same mix: {self._told(sent)}; the first one was right about "
            f"{before['accuracy']:.0%}",
            accuracy=sent.accuracy,
            before=before["accuracy"],
        )

    def show(self, port: int) -> None:
        """The dashboard, over all of this: to look at, unless an admin's key was given."""
        url, loop = f"http://127.0.0.1:{port}/", str(self._places.loop)
        self._processes.stillhouse(
            "dashboard", "dashboard", loop, "--port", str(port), ready=url, keyless=True
        )
        self.story.tell("dashboard", f"the story in a browser: {url}", url=url)

    def state(self) -> GatewayState:
        """Where the gateway's experiment stands."""
        return self._admin.state(NAME)

    # --- parts of steps --------------------------------------------------------------------------

    def _users_url(self) -> str:
        return f"http://127.0.0.1:{self._places.listen}"

    def _run(self, *arguments: str, passes: tuple[int, ...] = (0,)) -> str:
        return self._processes.run(*arguments, passes=passes)

    def _send(self, count: int, share: float = 0.0) -> Sent:
        sent = asyncio.run(self._users.send(self._mix.take(count, share)))
        if sent.failed:
            raise SystemExit(f"{sent.failed} of {sent.requests} requests failed")
        time.sleep(PAUSE_S)
        return sent

    def _until(
        self, holds: Callable[[GatewayState], bool], share: float
    ) -> tuple[int, GatewayState]:
        """Send traffic until the gateway's state is so."""
        sent = 0
        while True:
            state = self.state()
            if holds(state):
                return sent, state
            if sent >= self._scale.most:
                last = "nothing" if state.last is None else state.last.reason
                raise SystemExit(f"after {sent} requests it stands at {state.kind}: {last}")
            sent += self._send(BATCH, share).requests

    def _stages(self) -> list[str]:
        found = self._admin.experiment(NAME)
        decisions = found.get("decisions")
        assert isinstance(decisions, list)
        return [str(one["action"]) for one in decisions if isinstance(one, dict)]

    def _check(self) -> dict[str, Any]:
        said = self._run("monitor", "check", str(self._places.loop), "--json", passes=(0, 4, 5))
        found: dict[str, Any] = json.loads(said)["tasks"][0]
        return found

    def _registry_candidate(self) -> str:
        state = self.state()
        if state.candidate is None:
            raise SystemExit("the gateway was offered no student")
        return state.candidate

    @staticmethod
    def _told(sent: Sent) -> str:
        who = ", ".join(f"{count} by the {name}" for name, count in sorted(sent.variants.items()))
        rate = sent.requests / sent.seconds
        return f"{sent.requests} requests ({who}; {rate:.0f} a second), {sent.accuracy:.0%} right"


def _kinds(found: dict[str, Any]) -> list[str]:
    return [str(one["kind"]) for one in found["alerts"]]


def main() -> None:
    """Tell it, and leave the dashboard open."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--out", type=Path, default=Path("runs/demo-loop"))
    parser.add_argument(
        "--editorials", type=Path, default=Path(".cache/demo-loop/vaderSentiment-3.3.2.tar.gz")
    )
    parser.add_argument("--exit", action="store_true", help="end once the story is told")
    arguments = parser.parse_args()
    if not (arguments.run / "report.json").exists():
        sys.exit(f"{arguments.run} is no finished run: make demo")
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    task = Recipe.model_validate(read_json(arguments.run / "recipe.json")).task
    assert isinstance(task, ClassificationTask)
    teacher, listen, admin, board = free_ports(4)
    run = copied_run(arguments.run, arguments.out / "run")
    places = Places(arguments.out, run, f"http://127.0.0.1:{teacher}/v1", listen, admin)
    usual = reviews_of(arguments.run, task)
    other = editorials_of(arguments.editorials, task.labels)
    with Processes(arguments.out / "logs") as processes:
        demo = Demo(places, Scale(), usual, other, processes, taught_by=arguments.run)
        demo.tell()
        demo.show(board)
        if not arguments.exit:
            sys.stdout.write("Ctrl-C ends everything\n")
            with contextlib.suppress(KeyboardInterrupt):
                processes.wait()


if __name__ == "__main__":
    main()
