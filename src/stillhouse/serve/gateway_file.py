"""gateway.yaml: reading it, and what must hold between its sections.

Every mistake becomes one line that names the key. Knows no server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml
from pydantic import Field, field_validator, model_validator

from stillhouse.core.errors import RecipeError, UserError
from stillhouse.core.recipe_file import parse_as
from stillhouse.core.recipe_section import Section
from stillhouse.serve.gateway_sections import (
    LOOPBACK,
    AdminSection,
    AnyUpstreamSection,
    BatchesSection,
    ClientKey,
    LimitsSection,
    ListenSection,
    LogSection,
    StudentSection,
    StudentsSection,
    TaskSection,
    TelemetrySection,
    UpstreamSection,
)

SHORTEST_ADMIN_KEY: Final = 16
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class GatewayFile(Section):
    """The whole file."""

    listen: ListenSection = ListenSection()
    admin: AdminSection | None = None
    clients: tuple[ClientKey, ...] = Field(
        default=(), description="Keys that are let in; none: everybody who reaches the port."
    )
    keys_in_store: bool = Field(default=False, description="Client keys are in the log's database.")
    upstreams: dict[str, AnyUpstreamSection] = Field(min_length=1)
    tasks: dict[str, TaskSection] = Field(min_length=1)
    students: StudentsSection | None = None
    limits: LimitsSection = LimitsSection()
    telemetry: TelemetrySection | None = None
    log: LogSection = LogSection()
    batches: BatchesSection | None = None

    @field_validator("upstreams", mode="before")
    @classmethod
    def _kind_may_be_left_out(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            name: {"kind": "openai", **one} if isinstance(one, dict) else one
            for name, one in value.items()
        }

    @model_validator(mode="after")
    def _holds_together(self) -> GatewayFile:
        for name, task in self.tasks.items():
            if not name.isprintable() or not name:
                raise ValueError("a task's name must be printable")
            for variant, upstream in (("teacher", task.teacher), ("student", task.student)):
                if upstream is not None and upstream not in self.upstreams:
                    raise ValueError(
                        f"tasks.{name}.{variant} names no upstream: there are "
                        f"{', '.join(self.upstreams)}"
                    )
            self._check_evidence(name, task)
            self._check_adapters(name, task)
        if self.listen.host not in LOOPBACK and not self.needs_key:
            raise ValueError(
                "listen.host is not loopback, so clients must be listed with their keys"
            )
        if self.listen.workers > 1 and self.log.url is None:
            raise ValueError(
                f"listen.workers is {self.listen.workers}, and workers share their states through "
                "a database: give log.url"
            )
        if self.keys_in_store and self.log.url is None:
            raise ValueError("keys_in_store needs log.url")
        if self.batches is not None and self.log.url is None:
            raise ValueError("batches needs log.url")
        return self

    def _check_adapters(self, name: str, task: TaskSection) -> None:
        student = None if task.student is None else self.upstreams[task.student]
        has = isinstance(student, StudentSection) and student.adapters is not None
        fallback, where = task.fallback, f"tasks.{name}.fallback.adapters"
        if has and fallback.calibrator is not None and fallback.adapters is None:
            raise ValueError(
                f"{where} is missing: {task.student} answers some askers with their own adapters, "
                "which the calibrator was not fitted to; write teacher (that is who answers "
                "them), or shown"
            )
        if fallback.adapters is not None and not has:
            raise ValueError(f"{where} is of a task whose student has no adapters")

    def _check_evidence(self, name: str, task: TaskSection) -> None:
        evidence, where = task.experiment.evidence, f"tasks.{name}.experiment.evidence"
        if evidence is None:
            return
        if task.student is None:
            raise ValueError(f"{where} is of a task without a student")
        if evidence.judge is not None and evidence.judge.upstream not in self.upstreams:
            raise ValueError(f"{where}.judge.upstream: there are {', '.join(self.upstreams)}")
        if evidence.reference == "corrected" and self.log.url is None:
            raise ValueError(f"{where}.reference: corrected needs log.url: the answers' texts")

    @property
    def needs_key(self) -> bool:
        """Whether clients must show a key."""
        return bool(self.clients) or self.keys_in_store


def load_gateway(path: Path) -> GatewayFile:
    """Read the file.

    Raises:
        RecipeError: no such file, not YAML, an unknown key, a value that does not fit.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(
            str(path), "there is no such file", action="see docs/gateway.md"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read: {error}") from None
    except Exception as error:  # PyYAML lets through what its constructors raise
        raise RecipeError(str(path), f"is not valid YAML: {error}", action="mend it") from None
    if not isinstance(raw, dict):
        raise RecipeError(str(path), "is not a mapping of sections", action="see docs/gateway.md")
    return _seen_from(path.parent, parse_as(GatewayFile, raw, str(path)))


def _seen_from(base: Path, file: GatewayFile) -> GatewayFile:
    """Relative paths of students, adapters, calibrators and gold sets are seen from its folder."""
    students = file.students
    if students is not None:
        roots = tuple(base / one.expanduser() for one in students.roots)
        students = students.model_copy(update={"roots": roots})
    upstreams = {
        name: one.model_copy(
            update={
                "path": base / one.path.expanduser(),
                "adapters": None if one.adapters is None else base / one.adapters.expanduser(),
            }
        )
        if isinstance(one, StudentSection)
        else one
        for name, one in file.upstreams.items()
    }
    tasks = {}
    for name, task in file.tasks.items():
        if task.fallback.calibrator is not None:
            place = base / task.fallback.calibrator.expanduser()
            fallback = task.fallback.model_copy(update={"calibrator": place})
            task = task.model_copy(update={"fallback": fallback})
        evidence = task.experiment.evidence
        if evidence is not None and evidence.judge is not None and evidence.judge.gold is not None:
            gold = base / evidence.judge.gold.expanduser()
            judge = evidence.judge.model_copy(update={"gold": gold})
            evidence = evidence.model_copy(update={"judge": judge})
            plan = task.experiment.model_copy(update={"evidence": evidence})
            task = task.model_copy(update={"experiment": plan})
        tasks[name] = task
    admin = file.admin
    if admin is not None and admin.loop is not None:
        admin = admin.model_copy(update={"loop": base / admin.loop.expanduser()})
    made = {"upstreams": upstreams, "tasks": tasks, "students": students, "admin": admin}
    return file.model_copy(update=made)


def secrets_of(file: GatewayFile, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The upstreams' keys by upstream, and the admin's under an empty name.

    Raises:
        UserError: a variable that the file names is not set, or holds what no header may.
    """
    wanted = {
        name: one.api_key_env
        for name, one in file.upstreams.items()
        if isinstance(one, UpstreamSection) and one.api_key_env is not None
    }
    if file.admin is not None:
        wanted[""] = file.admin.key_env
    found: dict[str, str] = {}
    for name, variable in wanted.items():
        field = f"upstreams.{name}.api_key_env" if name else "admin.key_env"
        if not _VARIABLE.fullmatch(variable):
            # It may be the key itself, which must not be shown.
            raise UserError(
                field, "is not the name of a variable", action="put the key in one, name it here"
            )
        value = environment.get(variable, "").strip()
        if not value:
            raise UserError(field, f"the variable {variable} is not set", action="export it")
        if not value.isascii() or not value.isprintable():
            raise UserError(field, f"the variable {variable} holds what no key may hold")
        if not name and file.admin is not None and file.admin.host not in LOOPBACK:
            if len(value) < SHORTEST_ADMIN_KEY:
                raise UserError(
                    field,
                    f"is shorter than {SHORTEST_ADMIN_KEY} characters, and admin.host is not "
                    "loopback",
                    action="make one with: openssl rand -hex 32",
                )
        found[name] = value
    return found
