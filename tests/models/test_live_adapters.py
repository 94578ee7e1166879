"""Adapters while they are served: found by asker, read anew, put aside where they are broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from stillhouse.core.errors import UserError
from stillhouse.models.adapter_files import (
    INDEX,
    AdapterEntry,
    AdapterIndex,
    Adapters,
    By,
    delta_path,
    forget_user,
    forgotten_users,
    read_index,
    write_index,
)
from stillhouse.models.head_weights import HeadWeights, save_head
from stillhouse.models.live_adapters import BROKEN, SHARED, Found, LiveAdapters
from stillhouse.models.personal_student import personal_log_p

C, H = 3, 5
HEAD = HeadWeights(np.eye(C, H, dtype=np.float32), np.zeros(C, np.float32))


def delta(number: int, classes: int = C) -> HeadWeights:
    rng = np.random.default_rng(number)
    weight = rng.normal(size=(classes, H)).astype(np.float32)
    return HeadWeights(weight, rng.normal(size=classes).astype(np.float32))


def put(root: Path, by: By = "tenant", head: HeadWeights = HEAD, **owners: HeadWeights) -> None:
    """Numbers first, the index last, as the learner does."""
    entries = []
    for owner, numbers in owners.items():
        save_head(delta_path(root, numbers.digest()), numbers)
        entries.append(AdapterEntry(owner=owner.replace("__", "\n"), delta=numbers.digest()))
    write_index(root, AdapterIndex(by=by, shared=head.digest(), adapters=tuple(entries)))


class Clock:
    """Far ahead of the files, so that they count as settled."""

    now = 4e9

    def __call__(self) -> float:
        return self.now


def live(root: Path, **more: int) -> LiveAdapters:
    return LiveAdapters(root, HEAD, clock=Clock(), **more)


def name(adapters: LiveAdapters, asker: str | None) -> str:
    adapters.refresh()
    return adapters.find(asker).name


def test_a_tenant_and_a_user_are_answered_by_their_own(tmp_path: Path) -> None:
    adapters = live(tmp_path / "none yet")
    assert name(adapters, "shop") == SHARED
    one, two = delta(1), delta(2)
    put(tmp_path, shop=one, bank=two)
    adapters = live(tmp_path)
    assert name(adapters, "shop") == one.digest()[:12]
    found = adapters.find("bank\nsomebody")
    assert found.delta is not None
    assert found.delta.digest() == two.digest()
    assert [adapters.find(asker) for asker in ("other", "", None)] == [Found(SHARED, None)] * 3
    put(tmp_path, by="user", shop__u=one)
    assert name(adapters, "shop\nu") == one.digest()[:12]
    assert [adapters.find(asker).name for asker in ("shop", "shop\nv", "x\nu")] == [SHARED] * 3
    assert adapters.troubles() == []


def test_a_new_index_counts_at_once_and_only_changed_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, shop=delta(1))
    adapters = live(tmp_path)
    assert name(adapters, "shop") == delta(1).digest()[:12]
    reads: list[None] = []
    own = LiveAdapters._read
    monkeypatch.setattr(LiveAdapters, "_read", lambda self: (reads.append(None), own(self)))
    for _ in range(3):
        assert name(adapters, "shop") == delta(1).digest()[:12]
    assert reads == []
    put(tmp_path, shop=delta(2))
    assert name(adapters, "shop") == delta(2).digest()[:12]
    assert len(reads) == 1
    put(tmp_path)
    assert name(adapters, "shop") == SHARED


def test_files_that_were_just_written_are_looked_at_again(tmp_path: Path) -> None:
    clock = Clock()
    put(tmp_path, shop=delta(1))
    adapters = LiveAdapters(tmp_path, HEAD, clock=clock)
    at = os.stat(tmp_path / INDEX)
    clock.now = at.st_mtime + 0.01
    assert name(adapters, "shop") == delta(1).digest()[:12]
    # Another index in the same tick of the file system's clock: same time, node and size.
    text = (tmp_path / INDEX).read_text().replace(delta(1).digest(), delta(2).digest())
    save_head(delta_path(tmp_path, delta(2).digest()), delta(2))
    with (tmp_path / INDEX).open("r+") as file:
        file.write(text)
    os.utime(tmp_path / INDEX, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert name(adapters, "shop") == delta(2).digest()[:12]


def test_a_forgotten_user_takes_the_adapter_along(tmp_path: Path) -> None:
    put(tmp_path, shop=delta(1), bank=delta(2))
    adapters = live(tmp_path)
    assert name(adapters, "shop") != SHARED
    forget_user(tmp_path, "shop", "u")
    assert [name(adapters, one) for one in ("shop", "bank")] == [SHARED, delta(2).digest()[:12]]
    (told,) = forgotten_users(tmp_path)
    assert told.user.whose == "u"
    told.path.unlink()  # the learner has made it anew
    assert name(adapters, "shop") != SHARED
    put(tmp_path, by="user", shop__u=delta(1), shop__v=delta(2))
    forget_user(tmp_path, "shop", "u")
    assert [name(adapters, f"shop\n{one}") == SHARED for one in "uv"] == [True, False]
    forget_user(tmp_path / "nothing", "shop", "u")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("harm", ["bit", "garbage", "cut", "gone", "shape"])
def test_a_broken_adapter_falls_back_and_is_told_once(tmp_path: Path, harm: str) -> None:
    numbers = delta(1, 2 if harm == "shape" else C)
    put(tmp_path, shop=numbers, bank=delta(2))
    path = delta_path(tmp_path, numbers.digest())
    raw = bytearray(path.read_bytes())
    if harm == "bit":
        raw[-1] ^= 1
        path.write_bytes(raw)
    elif harm == "garbage":
        path.write_bytes(b"\xff" * 40)
    elif harm == "cut":
        path.write_bytes(raw[:20])
    elif harm == "gone":
        path.unlink()
    adapters = live(tmp_path)
    for _ in range(3):
        adapters.refresh()
        assert adapters.find("shop") == Found(BROKEN, None)
        assert adapters.find("bank").delta is not None
    (told,) = adapters.troubles()
    assert str(path) in told
    assert "the shared student answers" in told
    put(tmp_path, shop=delta(3))
    assert name(adapters, "shop") == delta(3).digest()[:12]
    assert adapters.troubles() == []


def test_an_adapter_that_was_replaced_since_the_index_was_read_is_no_trouble(
    tmp_path: Path,
) -> None:
    put(tmp_path, shop=delta(1))
    adapters = live(tmp_path)
    adapters.refresh()
    put(tmp_path, shop=delta(2))
    delta_path(tmp_path, delta(1).digest()).unlink()
    assert adapters.find("shop").name == delta(2).digest()[:12]
    assert adapters.troubles() == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"by": "everybody", "shared": "x"}',
        json.dumps({"shared": HEAD.digest(), "adapters": [{"owner": "shop", "delta": "../x"}]}),
    ],
)
def test_a_damaged_index_means_no_adapters(tmp_path: Path, text: str) -> None:
    put(tmp_path, shop=delta(1))
    adapters = live(tmp_path)
    assert name(adapters, "shop") != SHARED
    (tmp_path / INDEX).write_text(text)
    assert [name(adapters, "shop") for _ in range(2)] == [SHARED] * 2
    (told,) = adapters.troubles()
    assert "is damaged" in told


def test_a_damaged_word_of_the_forgotten_means_no_adapters(tmp_path: Path) -> None:
    put(tmp_path, shop=delta(1))
    (tmp_path / "forgotten").mkdir()
    (tmp_path / "forgotten" / "x.json").write_text("{}")
    adapters = live(tmp_path)
    assert name(adapters, "shop") == SHARED
    (told,) = adapters.troubles()
    assert "stillhouse online --forget" in told
    with pytest.raises(UserError, match="is damaged"):
        forgotten_users(tmp_path)


def test_beside_another_version_of_the_student_none_is_used(tmp_path: Path) -> None:
    put(tmp_path, head=delta(9), shop=delta(1))
    adapters = live(tmp_path)
    assert [name(adapters, "shop") for _ in range(2)] == [SHARED] * 2
    (told,) = adapters.troubles()
    assert "another version" in told


def test_a_version_that_waits_for_its_successor_keeps_its_own(tmp_path: Path) -> None:
    one, two = delta(1), delta(2)
    put(tmp_path, head=delta(9), shop=two)
    save_head(delta_path(tmp_path, one.digest()), one)
    index = read_index(tmp_path)
    assert index is not None
    entry = AdapterEntry(owner="shop", delta=one.digest())
    earlier = Adapters(shared=HEAD.digest(), adapters=(entry,))
    write_index(tmp_path, index.model_copy(update={"earlier": earlier}))
    adapters = live(tmp_path)
    assert name(adapters, "shop") == one.digest()[:12]
    assert adapters.troubles() == []
    forget_user(tmp_path, "shop", "u")
    assert name(adapters, "shop") == SHARED


def test_only_so_many_are_in_memory(tmp_path: Path) -> None:
    put(tmp_path, **{f"t{n}": delta(n) for n in range(6)})
    adapters = live(tmp_path, kept=2)
    adapters.refresh()
    for n in (0, 1, 2, 3, 4, 5, 0):
        assert adapters.find(f"t{n}").name == delta(n).digest()[:12]
        assert len(adapters._numbers) <= 2
    put(tmp_path, t1=delta(1))
    adapters.refresh()
    assert len(adapters._numbers) == 0  # whose owners are gone are kept by nobody


def test_each_row_gets_its_own_adapter_whoever_is_in_the_batch() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, H)).astype(np.float32)
    shared = HEAD.logits(features)
    shared = shared - np.log(np.exp(shared).sum(-1, keepdims=True))
    one, two = delta(1), delta(2)
    owners = [one, None, two, one, None, two, one]
    found = personal_log_p(shared, features, owners)
    for row, own in enumerate(owners):
        weight, bias = HEAD.weight.astype(float), HEAD.bias.astype(float)
        if own is not None:
            weight, bias = weight + own.weight, bias + own.bias
        logits = [float((weight[c] * features[row]).sum()) + bias[c] for c in range(C)]
        total = np.log(sum(np.exp(value) for value in logits))
        assert found[row] == pytest.approx([value - total for value in logits], abs=1e-5)
        alone = personal_log_p(shared[row : row + 1], features[row : row + 1], [own])
        assert found[row] == pytest.approx(alone[0], abs=1e-6)
        if own is None:
            assert found[row].astype(np.float32).tobytes() == shared[row].tobytes()
