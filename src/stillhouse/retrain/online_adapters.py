"""The adapters of a task's state: kept in step with the live head and the corrected rows.

Runs before each commit, so that a state never names an adapter of rows that were forgotten or of a
head that is live no more. Numbers first, the index next, the state last. Knows desk and store; not
how an adapter is fitted.
"""

from __future__ import annotations

from collections.abc import Set

from stillhouse.core.errors import UserError
from stillhouse.core.loop_online import PersonalSection
from stillhouse.models.adapter_files import (
    INDEX,
    AdapterEntry,
    AdapterIndex,
    Adapters,
    read_index,
    write_index,
)
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
    kept = {(one.owner, one.delta) for one in found.notes}
    index = index.model_copy(update={"earlier": _earlier(desk, store, index, kept)})
    write_index(store.root, index)


def _earlier(
    desk: Desk, store: Store, new: AdapterIndex, kept: Set[tuple[str, str]]
) -> Adapters | None:
    """The adapters of the version that the gateway has, where that is not the live one: it goes on
    with them until it is given that.

    Args:
        kept: owners with their adapter's digest; the others' numbers go, as do those of forgotten
            rows.
    """
    given = [one.head for one in desk.state.versions if one.number == desk.state.handed]
    if not given or given[0] == new.shared:
        return None
    try:
        old = read_index(store.root)
    except UserError:
        return None
    entries = None if old is None or old.by != new.by else old.of(given[0])
    if entries is None:
        return None
    left = tuple(one for one in entries if (one.owner, one.delta) in kept)
    return Adapters(shared=given[0], adapters=left)
