"""Killed at every step of a batch's life, the next start goes on and pays for nothing twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import killed_batches
from batch_servers import BatchServer, Faults, serve_batches
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.store import AnswerStore, answer_key
from teacher_servers import KEY

COUNT = 40


def start(server: BatchServer, folder: Path, provider: str, *points: str) -> dict[str, int]:
    """Start once for each point; how each process ended."""
    done = subprocess.run(
        [
            sys.executable, killed_batches.__file__, server.url, str(folder), provider, str(COUNT),
            "{}", *points,
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert not done.stderr
    ended = (line.rsplit(": ", 1) for line in done.stdout.splitlines())
    return {point: int(status) for point, status in ended}


def check(server: BatchServer, folder: Path, provider: str) -> None:
    """Every query is in the store once, and was billed once, by batch or live."""
    info = open_teacher(killed_batches.section_of(server.url, provider), killed_batches.PRICES).info
    with AnswerStore(folder / "answers.jsonl") as store:
        for query in killed_batches.queries(COUNT):
            found = store.get(answer_key(info, query, killed_batches.SAMPLING))
            assert [c.text for c in found] == [f"answer to {query.last_user_text}"]
    lines = (folder / "answers.jsonl").read_bytes().splitlines()
    assert sum(b'"completions":[' in line for line in lines) == COUNT  # the others are the ledger
    assert set((server.billed + server.live).values()) == {1}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_killed_at_every_step_of_one_life(tmp_path: Path, provider: str) -> None:
    with serve_batches(looks=2) as server:
        ended = start(server, tmp_path, provider, *killed_batches.POINTS, "none")
        check(server, tmp_path, provider)
    killed = {point for point, status in ended.items() if status == -signal.SIGKILL}
    assert killed == set(killed_batches.POINTS)
    assert ended["none"] == 0
    # Starts that died before they sent asked one query live each; the batch was made once.
    assert len(server.batches) == 1
    assert [path.name for path in (tmp_path / "batches").iterdir()] == ["journal.jsonl"]


@pytest.mark.full
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_killed_with_partial_batches_and_a_server_that_stumbles(
    tmp_path: Path, provider: str
) -> None:
    faults = Faults(
        batch=lambda number: "expired" if number < 2 else "completed",
        hidden_s=0.05,
        cut_downloads=2,
    )
    points = ("before submitted", "joining", "before joined", "before submitted", "joining", "none")
    with serve_batches(faults, looks=2) as server:
        assert start(server, tmp_path, provider, *points)["none"] == 0
        check(server, tmp_path, provider)
