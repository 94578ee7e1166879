"""Whether the teacher still exists, and when its provider switches it off.

Asked is the provider's models endpoint (`retirement_ask`); `lifecycle` reads what it says, and what
is known without it. Knows which of them goes before.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime

from stillhouse.core.errors import StillhouseError
from stillhouse.core.optional import late
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_teacher import TeacherSection
from stillhouse.teacher.lifecycle import Lifecycle, announced


def lifecycle_of(section: TeacherSection) -> Lifecycle:
    """What is known of a teacher's life: the recipe first, then its provider, then the table.

    Raises:
        UserError: no key in the environment, or a URL that is none.
        TeacherError: the provider cannot be reached, or refuses the key.
    """
    if section.local:
        return Lifecycle(model=section.model, exists=True, source="its weights are on this machine")
    if section.kind == "replay":  # no provider is asked for what lies in a file
        return Lifecycle(model=section.model, exists=True, source="its answers are in a file")
    if section.members:
        return _of_members(section)
    ask_provider = late("stillhouse.teacher.retirement_ask").ask_provider
    return _merged(section, asyncio.run(ask_provider(section)))


def _of_members(section: TeacherSection) -> Lifecycle:
    """The member that goes first: one that is gone, else the earliest date, else deprecated."""
    if section.retires_on is not None:
        return announced(section)
    found = [lifecycle_of(member) for member in section.member_sections]
    first = min(
        found,
        key=lambda one: (one.exists is not False, one.retires_on or date.max, not one.deprecated),
    )
    if first.exists is False or first.retires_on is not None or first.deprecated:
        return first
    exists = True if all(one.exists for one in found) else None
    return Lifecycle(model=section.model, exists=exists, source="as its members do")


def _merged(section: TeacherSection, asked: Lifecycle) -> Lifecycle:
    known = announced(section)
    if asked.exists is False or known.retires_on is None:
        return asked
    if asked.retires_on is not None and section.retires_on is None:
        return asked
    return asked.model_copy(update={"retires_on": known.retires_on, "source": known.source})


def warn_of_retirement(section: TeacherSection, progress: Progress) -> None:
    """Say before asking what is announced; a provider that does not answer now is no news here."""
    for one in section.member_sections or (section,):
        if one.local:
            continue
        try:
            found = lifecycle_of(one)
        except StillhouseError:  # advice alone: what is wrong with the teacher, asking it will say
            found = announced(one)
        warning = found.warning(datetime.now(UTC).date())
        if warning is not None:
            progress.say(f"WARNING: teacher {warning}")
