"""Recipe section of `stillhouse teacher compare`: which teachers and ensembles, on what.

Knows no stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, JsonValue, model_validator

from stillhouse.core.recipe_ensemble import COMBINE_HELP, ENSEMBLE, Combine, MemberSection
from stillhouse.core.recipe_section import Section
from stillhouse.core.recipe_teacher import TeacherSection, ensemble_problem

OWN: Final = "teacher"  # the name under which the recipe's own teacher takes part
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class EnsembleOf(Section):
    """An ensemble of teachers that are compared; their answers are paid once."""

    of: tuple[str, ...] = Field(min_length=2, description="Names of compared teachers.")
    weights: tuple[float, ...] | None = Field(
        default=None, description="A weight a member; null: equal."
    )
    combine: Combine | None = Field(default=None, description=COMBINE_HELP)

    @model_validator(mode="after")
    def _fits(self) -> EnsembleOf:
        if len(set(self.of)) < len(self.of):
            raise ValueError("of: a teacher is named twice; give it a weight instead")
        if self.weights is not None and len(self.weights) != len(self.of):
            raise ValueError(f"weights: {len(self.of)} are needed, one a member")
        if self.weights is not None and not all(0 < w < float("inf") for w in self.weights):
            raise ValueError("weights: must be above 0")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The members' weights."""
        return self.weights or (1.0,) * len(self.of)


class ProbeSection(Section):
    """A small student trained on each teacher's answers to a sample of the traffic."""

    queries: int = Field(default=1000, ge=20, description="Traffic queries that are asked.")
    student: Literal["tfidf", "recipe"] = Field(
        default="tfidf",
        description="tfidf: word counts and logistic regression, seconds on one core; recipe: also "
        "the recipe's own student, trained as the recipe says (needs the train extra).",
    )


class CompareSection(Section):
    """What `stillhouse teacher compare` compares, beside the recipe's own teacher."""

    teachers: Mapping[str, TeacherSection] = Field(
        default_factory=dict, description="By name; `teacher` is the recipe's own."
    )
    ensembles: Mapping[str, EnsembleOf] = Field(
        default_factory=dict, description="By name; of teachers named above, or `teacher`."
    )
    sample: int | None = Field(
        default=500, ge=10, description="Labelled queries asked, drawn by hash; null: all."
    )
    probe: ProbeSection | None = Field(
        default=None, description="Also train a small student on each one's answers."
    )
    budget_usd: float | None = Field(
        default=None,
        gt=0,
        description="Limit on what all answers of the run folder may have cost; null: that of "
        "teacher.budget_usd.",
    )
    speed_queries: int = Field(
        default=32, ge=1, description="Labelled queries on which a local teacher is timed."
    )

    @model_validator(mode="after")
    def _fits(self) -> CompareSection:
        if not self.teachers and not self.ensembles:
            raise ValueError("needs teachers to compare with the recipe's own")
        for name in (*self.teachers, *self.ensembles):
            if _NAME.fullmatch(name) is None or name == OWN:
                raise ValueError(
                    f"{name!r} cannot be a name: letters, digits, . _ + and - can, and {OWN} is "
                    "the recipe's own teacher"
                )
            if name in self.teachers and name in self.ensembles:
                raise ValueError(f"{name} is both a teacher and an ensemble")
        for name, section in self.teachers.items():
            if section.kind == ENSEMBLE:
                raise ValueError(f"teachers.{name}: ensembles are named in compare.ensembles")
            if section.tune is not None:
                raise ValueError(
                    f"teachers.{name}.tune: tune it in a run of its own, and give the folder here "
                    "as hf:PATH (RUN/tune/model)"
                )
        for name, ensemble in self.ensembles.items():
            unknown = [one for one in ensemble.of if one != OWN and one not in self.teachers]
            if unknown:
                known = ", ".join([OWN, *self.teachers])
                raise ValueError(f"ensembles.{name}.of: {unknown[0]!r} is none of {known}")
        return self

    def problem(self, task_kind: str, own: TeacherSection) -> str | None:
        """What does not fit the rest of the recipe, or `None`."""
        for name, section in self.teachers.items():
            if section == own.model_copy(update={"tune": None}) and own.tune is None:
                return f"teachers.{name} is the recipe's own teacher, which takes part as {OWN}"
        everyone = {OWN: own, **self.teachers}
        for name, ensemble in self.ensembles.items():
            if own.kind == ENSEMBLE and OWN in ensemble.of:
                return f"ensembles.{name}.of: {OWN} is an ensemble itself; name its members"
            members = {one: everyone[one] for one in ensemble.of}
            problem = ensemble_problem(task_kind, ensemble.combine, members, ensemble.shares)
            if problem is not None:
                return f"ensembles.{name}: {problem}"
        return None

    def section_of(self, name: str, own: TeacherSection) -> dict[str, JsonValue]:
        """The recipe's teacher section that would ask this teacher or ensemble in a run.

        Args:
            name: of a teacher, an ensemble, or the recipe's own.
            own: the recipe's own teacher.
        """
        if name not in self.ensembles:
            return _told(own if name == OWN else self.teachers[name])
        ensemble = self.ensembles[name]
        members: list[JsonValue] = []
        for one, weight in zip(ensemble.of, ensemble.shares, strict=True):
            told = _told(own if one == OWN else self.teachers[one])
            member = {k: v for k, v in told.items() if k in MemberSection.model_fields}
            members.append({**member, **({"weight": weight} if ensemble.weights else {})})
        how: dict[str, JsonValue] = {"combine": ensemble.combine} if ensemble.combine else {}
        return {"model": f"{ENSEMBLE}:{name}", "members": members, **how}


def _told(teacher: TeacherSection) -> dict[str, JsonValue]:
    return dict(teacher.model_dump(mode="json", exclude_defaults=True))
