"""Where an example comes from: the hash of its prompt, the filters it passed, whose query it was.

Extra keys in the dataset's lines, that TRL, `datasets` and fine-tuning APIs pass over. The user is
a pseudonym. Knows examples and queries; decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stillhouse.core.lineage import pseudonym
from stillhouse.core.recipe_data import DatasetSection
from stillhouse.core.records import Example, Query, message_key
from stillhouse.dataset.checks import CHECKS
from stillhouse.dataset.validators import validator_names

# In the order in which `select` asks them: what one rejects, those after it never see.
SOFT: Final = ("consistency", "agreement", "judge")


def filters_passed(section: DatasetSection, *, golden: bool, beliefs: bool) -> tuple[str, ...]:
    """Names of what every example of a dataset passed, in the order it is applied.

    They are the reasons under which rejections.jsonl holds what did not pass.
    """
    soft = {
        "consistency": section.consistency is not None,
        "agreement": section.agreement is not None,
        # A pairwise judge ranks and lets everything pass.
        "judge": section.judge is not None and section.judge.mode == "pointwise",
    }
    return (
        *(name for name, _ in CHECKS),
        *validator_names(section.validators),
        *(name for name in SOFT if soft[name]),
        *(("no_belief",) if beliefs else ()),
        *(("contamination_golden",) if golden else ()),
        "duplicate",
        *(("near_duplicate",) if section.near_duplicate < 1 else ()),
    )


def with_provenance(
    examples: Sequence[Example], queries: Sequence[Query], filters: Sequence[str], user_key: str
) -> list[Example]:
    """The examples with `prompt_hash`, `filters` and `user`.

    A readmitted answer passed neither the soft filter that rejected it nor those after it; of a
    true answer no soft filter was asked.

    Args:
        examples: accepted examples; their ids are of `queries`.
        queries: the traffic.
        filters: see `filters_passed`.
        user_key: key of the pseudonyms; see `core.lineage.pseudonym`.
    """
    users = {query.id: query.user for query in queries}
    passed = tuple(filters)

    def one(example: Example) -> Example:
        user = users.get(example.id)
        unasked: tuple[str, ...] = ()
        if example.reference is not None:
            unasked = SOFT
        elif example.readmitted is not None:
            unasked = SOFT[SOFT.index(example.readmitted) :]
        return example.model_copy(
            update={
                "prompt_hash": message_key(example.prompt),
                "filters": tuple(name for name in passed if name not in unasked),
                "user": None if user is None else pseudonym(user_key, user),
            }
        )

    return [one(example) for example in examples]
