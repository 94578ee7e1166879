"""The adapters of a task's state: kept in step with the live head and the corrected rows.

Runs before each commit, so that a state never names an adapter of rows that were forgotten or of a
head that is live no more. Numbers first, the index next, the state last. Knows desk and store; not
how an adapter is fitted.
"""

from __future__ import annotations

from stillhouse.core.loop_online import PersonalSection
from stillhouse.models.adapter_files import INDEX, AdapterEntry, AdapterIndex, write_index
from stillhouse.models.head_weights import HeadWeights, load_head, save_head
from stillhouse.retrain.online_intake import Desk
from stillhouse.retrain.online_personal import Around, Fit, Tabled, refresh
from stillhouse.retrain.online_state import Store


def personalise(
    desk: Desk,
    store: Store,
    around: Around,
    tabled: Tabled,
    *,
    section: PersonalSection | None,
    fit: Fit | None,
) -> None:
    """Put the adapters that there should be into the desk's state.

    Args:
        section, fit: `None`: nobody has one, and earlier ones go.
    """
    if section is None or fit is None:
        if desk.state.adapters:
            desk.state = desk.state.model_copy(update={"adapters": ()})
        if (store.root / INDEX).exists():
            write_index(store.root, AdapterIndex(shared=around.head.digest()))
        return

    def delta(digest: str) -> HeadWeights:
        return load_head(store.delta_path(digest), digest)

    found = refresh(
        desk.state.adapters,
        desk.personal,
        around,
        tabled=tabled,
        delta=delta,
        section=section,
        fit=fit,
    )
    for digest, numbers in found.made.items():
        save_head(store.delta_path(digest), numbers)
    desk.state = desk.state.model_copy(update={"adapters": found.notes})
    entries = tuple(
        AdapterEntry(owner=one.owner, delta=one.delta) for one in found.notes if one.refused is None
    )
    index = AdapterIndex(by=section.by, shared=around.head.digest(), adapters=entries)
    write_index(store.root, index)
