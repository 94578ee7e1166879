"""A study that is stopped at any call and opened again tries what it would have tried."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="the tune extra is not installed")

from stillhouse.core.recipe_tune import SearchSection  # noqa: E402
from stillhouse.train.search_space import Parameter  # noqa: E402
from stillhouse.train.search_study import Search  # noqa: E402

SPACE = (
    Parameter("rate", 1e-3, low=1e-5, high=1e-1, log=True),
    Parameter("kind", "a", choices=("a", "b", None)),
    Parameter("idle", 0.5, low=0.0, high=1.0),
)
SECTION = SearchSection(startup=4)
TRIALS = 8


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it is done."""


def worth(values: Any, look: int) -> float:
    """Falls over the looks to a level that depends on the values alone."""
    rate, kind = values.get("rate", 1e-3), values.get("kind", "a")
    level = abs(math.log10(rate) + 2.2) + (0.3 if kind == "a" else 0.0)
    return level + 1.0 / look


def search_in(file: Path, trials: int, kill: Callable[[], None], name: str = "s") -> Search:
    search = Search(file, name, SPACE, SECTION, seed=11)
    while True:
        begun = search.begun()
        if len(begun) >= trials and begun[-1].state != "unfinished":
            return search
        kill()
        trial = search.next()
        kill()
        for look in range(1, 5):
            stop = trial.look(look, worth(trial.tried.values, look))
            kill()
            if stop:
                trial.pruned("bad")
                break
        else:
            trial.complete(worth(trial.tried.values, 4), {"steps": 4})
        kill()


def never() -> None:
    """No kill."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    search = search_in(tmp_path_factory.mktemp("whole") / "s.db", TRIALS, never)
    found = search.begun()
    search.close()
    return found


def test_a_search_prunes_and_finds(whole: list[Any]) -> None:
    assert whole[0].own
    assert whole[0].values == {}
    assert {one.state for one in whole} == {"complete", "pruned"}
    best = min((one for one in whole if one.value is not None), key=lambda one: one.value)
    assert best.value < whole[0].value


@pytest.mark.parametrize("draw", [1, pytest.param(2, marks=pytest.mark.full)])
def test_killed_after_a_few_calls_again_and_again_the_search_is_the_same(
    draw: int, whole: list[Any], tmp_path: Path
) -> None:
    lengths = random.Random(draw)
    kills = 0
    while True:
        calls = lengths.randint(1, 20)

        def kill() -> None:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Killed

        try:
            search = search_in(tmp_path / "s.db", TRIALS, kill)
        except Killed:
            kills += 1
            continue
        assert kills > 3
        assert search.begun() == whole
        search.close()
        return


def test_killed_between_a_trial_and_its_values(whole: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    first = search_in(file, 5, never)
    raw = first._study.ask()
    raw.suggest_float("rate", 1e-5, 1e-1, log=True)
    first.close()
    search = search_in(file, TRIALS, never)
    assert search.begun() == whole
    search.close()


@pytest.mark.full
def test_killed_before_the_first_values(whole: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    first = Search(file, "s", SPACE, SECTION, seed=11)
    first._study.ask()
    first.close()
    search = search_in(file, TRIALS, never)
    assert search.begun() == whole
    search.close()


@pytest.mark.full
def test_more_trials_go_on(whole: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    search_in(file, 6, never).close()
    search = search_in(file, TRIALS, never)
    assert search.begun() == whole
    search.close()


@pytest.mark.full
def test_studies_share_a_file_and_nothing_else(whole: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    search_in(file, 3, never, name="other").close()
    search = search_in(file, TRIALS, never)
    assert search.begun() == whole
    search.close()


def test_importance_is_of_what_matters(tmp_path: Path) -> None:
    section = SearchSection(startup=40, pruning="none")
    search = Search(tmp_path / "s.db", "s", SPACE, section, seed=2)
    for number in range(40):
        trial = search.next()
        trial.complete(worth(trial.tried.values, 1), {})
        if number == 8:
            assert search.importance() is None
    found = search.importance(resamples=3)
    search.close()
    assert found is not None
    assert found["rate"].estimate > 0.6
    assert found["idle"].estimate < 0.15
    assert all(one.low <= one.estimate <= one.high for one in found.values())
    assert sum(one.estimate for one in found.values()) <= 1.001


def test_failed_trials_are_kept_with_their_reason(tmp_path: Path) -> None:
    search = Search(tmp_path / "s.db", "s", SPACE, SECTION, seed=2)
    trial = search.next()
    trial.spent(1.5)
    trial.failed("no such layer")
    (found,) = search.begun()
    search.close()
    assert (found.state, found.why, found.seconds) == ("failed", "no such layer", 1.5)
