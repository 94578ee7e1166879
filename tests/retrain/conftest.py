"""Cycles in tests neither wait for the disk nor fit a large embedder."""

from __future__ import annotations

import os

import pytest

from retrain_doubles import WordEmbedder
from stillhouse.retrain import cycle_choose


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(cycle_choose, "open_embedder", lambda *_: WordEmbedder())
