"""What a text student's trimmed vocabulary loses of its teacher's belief: counted, said, recorded.

Knows recipes, students and bound caches; trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from stillhouse.core.progress import Progress
from stillhouse.core.recipe import Recipe
from stillhouse.train.cached_teacher import CachedTeacher, with_head
from stillhouse.train.kept import mean_mass, whole_of
from stillhouse.train.signal_binding import Bound, Learnt
from stillhouse.train.students import Student


@dataclass(slots=True)
class Lost:
    """Says it to people as it is known; `facts` are for `train.json`, empty without a trimmed
    vocabulary."""

    title: str
    progress: Progress
    facts: dict[str, object] = field(default_factory=dict)
    _masses: dict[str, float] = field(default_factory=dict)

    def kept(self, name: str, mass: float) -> None:
        """The mean probability that a teacher gives to the kept pieces, on held-out targets."""
        self._masses[name] = round(mass, 5)
        self.facts["mass_on_kept_pieces"] = self._masses
        self.progress.say(
            f"{self.title}: {name} puts {mass:.2%} of its belief on the pieces that were kept"
        )

    def cut_otherwise(
        self, recipe: Recipe, student: Student, teacher: str, sets: Sequence[Learnt]
    ) -> None:
        """Count examples that the student cuts into other pieces than its source: there a live
        teacher is asked about a spelling that it hardly ever saw."""
        readers = recipe.train.teachers
        whole = whole_of(recipe, student, teacher)
        if whole is None or (readers is not None and readers.tokenizers == "universal"):
            return
        counts = [len(whole.differing(part.encoded.rows, part.examples)) for part in sets]
        self._count(counts[0], counts[1])
        if any(counts):
            self.progress.say(
                f"{self.title}: {counts[0]:,} of {len(sets[0].examples):,} training and "
                f"{counts[1]:,} of {len(sets[1].examples):,} held-out examples are cut into other "
                "pieces than by the whole tokenizer"
            )

    def left_out(self, bound: Bound, teacher: str, device: torch.device) -> None:
        """The same of a cache, which holds nothing of such examples."""
        kept = bound.signals.kept
        if kept is None:
            return
        self._count(0, bound.left_out)
        if bound.left_out:
            self.progress.say(
                f"{self.title}: {bound.left_out:,} held-out examples are not watched: they are cut "
                "into other pieces than the captured ones"
            )
        whole = with_head(replace(bound.signals, kept=None), teacher, device)
        mass = mean_mass(CachedTeacher(whole), bound.held_out.rows, kept, device)
        self.kept(bound.signals.train.manifest.key.teacher, mass)

    def _count(self, train: int, held_out: int) -> None:
        self.facts["cut_otherwise"] = {"train": train, "held_out": held_out}
