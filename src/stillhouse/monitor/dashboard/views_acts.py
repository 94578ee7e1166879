"""What changes something: signing in and out, the registry's moves, experiments by hand.

Each goes over a page that says what will happen and asks why; the form carries the version that was
seen, so that of two operators the second is told and nothing is done. Knows no database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qs, quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from stillhouse.core.errors import StillhouseError
from stillhouse.monitor.dashboard.access import COOKIE, SESSION_S, Access
from stillhouse.monitor.dashboard.guard import ACTS, SESSION
from stillhouse.monitor.dashboard.pages import Pages
from stillhouse.monitor.dashboard.shown import ExperimentShown
from stillhouse.monitor.dashboard.sources import ConflictError, Sources, Student, Students

BODY: Final = 16_384
REASON: Final = 500
BY: Final = "dashboard"
# What each action does, for the page that asks.
ACTIONS: Final = {
    "approve": "The student advances to the next stage, whatever the evidence says.",
    "retry": "The experiment is let go: the policy decides again.",
    "rollback": "The experiment goes back to its first stage and is held there.",
    "kill": "From now on the teacher answers every request of the task.",
    "revive": "The kill switch is turned off: the student answers its share again.",
}


FOLLOWS: Final = {
    True: "The gateway answers with it at once, at the share that its student has now.",
    False: "No running gateway is told.",
}
LEFT: Final = (
    "Other processes of this dashboard could not be told ({error}): whoever has this browser's "
    "cookie may use it there until it ends by itself."
)
WITHDRAWN: Final = "The new student is withdrawn, and the running one goes on alone."


class Asking(NamedTuple):
    """A page that asks before something is done."""

    title: str
    text: str
    button: str
    to: str
    back: str
    version: int
    danger: bool = False


class Acts:
    """Forms and what they do."""

    def __init__(self, sources: Sources, pages: Pages, access: Access) -> None:
        self._from, self._pages, self._access = sources, pages, access

    def login_page(self, request: Request) -> Response:
        """Where the key is given."""
        place = _safe(request.query_params.get("next", "/"))
        return self._pages.html(request, "login.html", next=place, problem="")

    async def login(self, request: Request) -> Response:
        """A key was given."""
        form = await _form(request)
        place = _safe(form.get("next", "/"))
        if self._access.key is None:
            return RedirectResponse(f"{_base(request)}/", 303)
        if self._access.busy():
            problem, status = "Too many wrong keys; wait a minute.", 429
        elif self._access.opens(form.get("key", "").strip()):
            response = RedirectResponse(f"{_base(request)}{place}", 303)
            response.set_cookie(
                COOKIE,
                self._access.new_session(),
                max_age=SESSION_S,
                path=f"{_base(request)}/",
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
            return response
        else:
            self._access.wrong()
            problem, status = "This is not the admin key.", 401
        return self._pages.html(request, "login.html", status, next=place, problem=problem)

    async def logout(self, request: Request) -> Response:
        """The session ends, and the browser forgets it."""
        refused = self._refused(request, await _form(request))
        if refused is not None:
            return refused
        response: Response = RedirectResponse(f"{_base(request)}/login", 303)
        if request.scope.get(SESSION, ""):
            try:
                await self._access.end(request.scope[SESSION])
            except StillhouseError as error:
                said = ("Signed out here alone", LEFT.format(error=error))
                response = self._message(request, "", 503, said, "/login")
        response.delete_cookie(COOKIE, path=f"{_base(request)}/")
        return response

    def registry(self, request: Request) -> Response:
        """All students."""
        part = self._from.students
        tasks = []
        problem = ""
        try:
            for task in self._pages.tasks if part is not None else ():
                entries = list(part.entries(task)) if part is not None else []
                history = (
                    list(part.history(task))[::-1][:50] if part is not None and entries else []
                )
                gates = {} if part is None else part.gates(task)
                tasks.append((task, entries, history, _previous(entries), gates))
        except StillhouseError as error:
            problem = str(error)
        return self._pages.html(
            request,
            "registry.html",
            here="registry",
            kept=part is not None,
            found=tasks,
            problem=problem,
        )

    def ask_promote(self, request: Request) -> Response:
        """Whether a student is to become the live one."""
        ref = request.query_params.get("ref", "")
        part = self._from.students
        entry = None if part is None else _entry(part, ref)
        if part is None or entry is None:
            return self._none(request, "registry", "There is no such student.")
        return self._asking(
            request,
            "registry",
            Asking(
                f"Promote {entry.id}",
                f"{entry.id} becomes the live student of {entry.task}; the live one is retired and "
                f"can be rolled back to. {FOLLOWS[part.follows]}",
                "Promote it",
                f"/registry/promote?ref={quote(entry.id, safe='')}",
                "/registry",
                part.version(entry.task),
            ),
        )

    async def promote(self, request: Request) -> Response:
        """A student becomes the live one."""
        ref, part = request.query_params.get("ref", ""), self._from.students
        if part is None:
            return self._none(request, "registry", "There is no registry here.")
        return await self._done(
            request,
            "registry",
            "/registry",
            lambda reason, version: part.promote(ref, reason=reason, by=BY, version=version),
        )

    def ask_roll_back(self, request: Request) -> Response:
        """Whether the previous student is to be live again."""
        task, part = request.query_params.get("task", ""), self._from.students
        if part is None or task not in self._pages.tasks:
            return self._none(request, "registry", "There is nothing to roll back to.")
        # Before what is shown: a move between the two reads is then a conflict, and not hidden.
        version = part.version(task)
        previous = _previous(list(part.entries(task)))
        if previous is None:
            return self._none(request, "registry", "There is nothing to roll back to.")
        return self._asking(
            request,
            "registry",
            Asking(
                f"Roll {task} back",
                f"{previous.id}, the previous student, becomes the live one of {task} again. "
                f"{FOLLOWS[part.follows]}",
                "Roll back",
                f"/registry/rollback?task={quote(task, safe='')}",
                "/registry",
                version,
                danger=True,
            ),
        )

    async def roll_back(self, request: Request) -> Response:
        """The previous student is live again."""
        task, part = request.query_params.get("task", ""), self._from.students
        if part is None:
            return self._none(request, "registry", "There is no registry here.")
        return await self._done(
            request,
            "registry",
            "/registry",
            lambda reason, version: part.roll_back(task, reason=reason, by=BY, version=version),
        )

    def ask_act(self, request: Request) -> Response:
        """Whether something is to be done to an experiment by hand."""
        task, action = self._pages.task(request), request.query_params.get("action", "")
        if not task or action not in ACTIONS:
            return self._none(request, "experiment", "There is no such task or action.")
        found: ExperimentShown = self._from.experiments.whole(task)
        where = f"task={quote(task, safe='')}"
        return self._asking(
            request,
            "experiment",
            Asking(
                f"{action.capitalize()}: {task}",
                WITHDRAWN if action == "rollback" and found.candidate else ACTIONS[action],
                action.capitalize(),
                f"/experiment/act?{where}&action={action}",
                f"/experiment?{where}",
                found.version,
                danger=action in ("kill", "rollback"),
            ),
        )

    async def act(self, request: Request) -> Response:
        """It is done."""
        task, action = self._pages.task(request), request.query_params.get("action", "")
        if not task or action not in ACTIONS:
            return self._none(request, "experiment", "There is no such task or action.")
        experiments = self._from.experiments
        return await self._done(
            request,
            "experiment",
            f"/experiment?task={quote(task, safe='')}",
            lambda reason, version: experiments.act(
                task, action, reason=reason, by=BY, version=version
            ),
        )

    async def _done(
        self, request: Request, here: str, back: str, do: Callable[[str, int], str | None]
    ) -> Response:
        form = await _form(request)
        refused = self._refused(request, form)
        if refused is not None:
            return refused
        reason, told = form.get("reason", "").strip()[:REASON], form.get("version", "")
        if not reason or not (told.isascii() and told.isdecimal() and len(told) < 19):
            text = "Say why: it is written into the log." if not reason else "The form is damaged."
            return self._message(request, here, 400, ("Nothing was done", text), back)
        try:
            left = await asyncio.to_thread(do, reason, int(told))
        except ConflictError as error:
            text = f"Nothing was done: {error}. Look at what stands now, then decide again."
            return self._message(request, here, 409, ("Another operator was first", text), back)
        except StillhouseError as error:
            return self._message(request, here, 400, ("Nothing was done", str(error)), back)
        if left is not None:
            return self._message(request, here, 200, ("Done in the registry", left), back)
        return RedirectResponse(f"{_base(request)}{back}", 303)

    def _refused(self, request: Request, form: dict[str, str]) -> Response | None:
        """Whoever may not act; a session's form must carry its token, a Bearer key needs none."""
        session = request.scope.get(SESSION, "")
        if not request.scope.get(ACTS, False):
            text = "Only who signs in with the admin key may change anything."
            return self._message(request, "", 403, ("Read only", text), "/")
        if session and not self._access.fits(session, form.get("form_token", "")):
            text = "The form is not of this session: load the page anew."
            return self._message(request, "", 403, ("Nothing was done", text), "/")
        return None

    def _asking(self, request: Request, here: str, asking: Asking) -> Response:
        return self._pages.html(request, "confirm.html", here=here, asking=asking)

    def _none(self, request: Request, here: str, text: str) -> Response:
        return self._message(request, here, 404, ("Not found", text), f"/{here}")

    def _message(
        self, request: Request, here: str, status: int, said: tuple[str, str], back: str
    ) -> Response:
        title, text = said
        return self._pages.html(
            request, "message.html", status, here=here, title=title, text=text, back=back
        )


def _entry(part: Students, ref: str) -> Student | None:
    return next((one for one in part.entries() if one.id == ref), None)


def _previous(entries: list[Student]) -> Student | None:
    return next((one for one in entries if "previous" in one.aliases), None)


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


def _safe(place: str) -> str:
    """A path of this dashboard: nothing that a browser takes for another server."""
    if not place.startswith("/") or place[:2] in ("//", "/\\") or not place.isprintable():
        return "/"
    return place


async def _form(request: Request) -> dict[str, str]:
    """A form's fields; one that is too long or no form has none."""
    raw = b""
    try:
        async for part in request.stream():
            raw += part
            if len(raw) > BODY:
                return {}
    except ClientDisconnect:
        return {}
    try:
        found = parse_qs(raw.decode("utf-8"), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return {}
    return {name: values[0] for name, values in found.items()}
