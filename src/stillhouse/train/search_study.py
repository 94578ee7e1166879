"""The memory of a search: an Optuna study in one SQLite file, made to be killed.

Sampler and pruner have no memory but the file: each trial's sampler is seeded by the search's seed
and the trial's number. A search that was killed therefore tries what it would have tried, and a
trial that was killed goes on under its own number. Knows Optuna, keys and numbers; trains nothing.

Bergstra et al. 2011 (TPE), Akiba et al. 2019 (Optuna), Golovin et al. 2017 (median rule).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from pydantic import JsonValue

from stillhouse.core.recipe_tune import SearchSection
from stillhouse.core.split import unit_hash
from stillhouse.train.search_space import Parameter

State = Literal["complete", "pruned", "failed", "unfinished"]
STATES: Final = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
}
OWN, SECONDS, WHY, FACTS = "own", "seconds", "why", "facts"
TORN: Final = "killed before it had its values"
PRUNER_STARTUP: Final = 4  # finished trials before a median means anything
PRUNER_WARMUP: Final = 1  # looks that no trial is stopped at
FEWEST_FOR_IMPORTANCE: Final = 10
IMPORTANCE_RESAMPLES: Final = 20


class Tried(NamedTuple):
    """One trial. `value` is lower for better; `looks` are (step, value) pairs; `values` are the
    recipe's, empty for the recipe as it is (`own`)."""

    number: int
    state: State
    own: bool
    values: Mapping[str, JsonValue]
    value: float | None
    looks: tuple[tuple[int, float], ...]
    seconds: float
    why: str | None
    facts: Mapping[str, Any]


class Importance(NamedTuple):
    """Share of the variance of the finished trials' values that one key explains; bounds are the
    5th and 95th percentile over resampled trials."""

    estimate: float
    low: float
    high: float


class Search:
    """An open study.

    Args:
        file: the SQLite file; made where it is missing. It may hold other studies.
        name: of this study: equal names are equal searches.
        space: what is searched.
        section: pruning and start-up.
        seed: of all draws.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Sequence[Parameter],
        section: SearchSection,
        seed: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._section, self._seed = tuple(space), section, seed
        self._distributions = {one.key: _distribution(one) for one in self._space}
        pruner: Any = optuna.pruners.NopPruner()
        if section.pruning == "median":
            pruner = optuna.pruners.MedianPruner(PRUNER_STARTUP, PRUNER_WARMUP)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _as_we_mean_it():
            self._study = optuna.create_study(
                study_name=name,
                storage=f"sqlite:///{file}",
                direction="minimize",
                pruner=pruner,
                load_if_exists=True,
            )
        if not self._study.get_trials(deepcopy=False):
            own = {one.key: one.encoded(one.own) for one in self._space}
            self._study.enqueue_trial(own, user_attrs={OWN: True})
        self._numbers: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the file."""
        self._study._storage.remove_session()

    def begun(self) -> list[Tried]:
        """All trials that have their values, in order; numbers count these alone."""
        return [self._tried(number, one) for number, one in enumerate(self._frozen())]

    def next(self) -> Trial:
        """The trial that was killed, if one was, else a new one."""
        frozen = self._frozen()
        with _as_we_mean_it():
            if frozen and frozen[-1].state == TrialState.RUNNING:
                number, own = len(frozen) - 1, frozen[-1]
                raw = optuna.trial.Trial(self._study, own._trial_id)
            else:
                number = len(frozen)
                self._study.sampler = _sampler(self._section, self._seed, number)
                raw = self._study.ask(fixed_distributions=self._distributions)
        return Trial(raw, self._tried(number, self._study.trials[raw.number]), self._study)

    def importance(
        self, resamples: int = IMPORTANCE_RESAMPLES, seed: int = 0
    ) -> dict[str, Importance] | None:
        """What each key mattered (fANOVA, Hutter et al. 2014), over finished trials.

        `None` where there are too few of them. Pruned trials have no final value and are not in it.
        """
        done = [one for one in self._frozen() if one.state == TrialState.COMPLETE]
        if len(done) < FEWEST_FOR_IMPORTANCE or len({one.value for one in done}) == 1:
            return None
        draw = np.random.default_rng(seed)
        found = [self._fanova(done, seed)]
        for number in range(resamples):
            drawn = [done[at] for at in draw.integers(0, len(done), len(done))]
            found.append(self._fanova(drawn, seed + number + 1))
        return {one.key: _importance([each[one.key] for each in found]) for one in self._space}

    def _fanova(self, trials: Sequence[FrozenTrial], seed: int) -> dict[str, float]:
        if len({one.value for one in trials}) == 1:
            return dict.fromkeys(self._distributions, 0.0)
        with _as_we_mean_it():
            study = optuna.create_study(direction="minimize")
            study.add_trials(trials)
            evaluator = FanovaImportanceEvaluator(n_trees=32, seed=seed)
            found = evaluator.evaluate(study)
        return {key: float(found.get(key, 0.0)) for key in self._distributions}

    def _frozen(self) -> list[FrozenTrial]:
        """Trials that have all their values; one that was killed while it got them is closed."""
        found: list[FrozenTrial] = []
        for one in self._study.get_trials(deepcopy=False):
            if one.state == TrialState.WAITING:
                continue
            if self._distributions.keys() <= one.params.keys():
                found.append(one)
            elif one.state == TrialState.RUNNING:
                if one.user_attrs.get(OWN):
                    self._study.enqueue_trial(
                        one.system_attrs["fixed_params"], user_attrs={OWN: True}
                    )
                self._study.tell(one.number, state=TrialState.FAIL)
        return found

    def _tried(self, number: int, one: FrozenTrial) -> Tried:
        own = bool(one.user_attrs.get(OWN))
        values = {p.key: p.decoded(one.params[p.key]) for p in self._space}
        return Tried(
            number=number,
            state=STATES[one.state],  # type: ignore[arg-type]
            own=own,
            values={} if own else values,
            value=one.value if one.state == TrialState.COMPLETE else None,
            looks=tuple(sorted(one.intermediate_values.items())),
            seconds=float(one.user_attrs.get(SECONDS, 0.0)),
            why=one.user_attrs.get(WHY),
            facts=one.user_attrs.get(FACTS, {}),
        )


class Trial:
    """A trial at work; what it is told is on disk when the call returns."""

    def __init__(self, raw: Any, tried: Tried, study: Any) -> None:
        self._raw, self.tried, self._study = raw, tried, study
        self._looks = dict(tried.looks)
        self._count = 0

    def spent(self, seconds: float) -> None:
        """Training time so far, those before a kill among them."""
        self._raw.set_user_attr(SECONDS, round(seconds, 3))

    def look(self, number: int, value: float) -> bool:
        """Report the `number`-th look (from 1); whether the trial is to stop."""
        if number not in self._looks:
            self._raw.report(value, number)
            self._looks[number] = value
        return bool(self._raw.should_prune())

    def complete(self, value: float, facts: Mapping[str, Any]) -> None:
        """It ran to its end."""
        self._raw.set_user_attr(FACTS, dict(facts))
        self._study.tell(self._raw.number, value)

    def pruned(self, why: str) -> None:
        """It was stopped, or went off: a bad place all the same."""
        self._raw.set_user_attr(WHY, why)
        self._study.tell(self._raw.number, state=TrialState.PRUNED)

    def failed(self, why: str) -> None:
        """It could not be run: says nothing of its values."""
        self._raw.set_user_attr(WHY, why)
        self._study.tell(self._raw.number, state=TrialState.FAIL)


def _distribution(one: Parameter) -> BaseDistribution:
    if one.choices:
        return CategoricalDistribution(tuple(one.encoded(value) for value in one.choices))
    return FloatDistribution(one.low, one.high, log=one.log)


def _sampler(section: SearchSection, seed: int, number: int) -> Any:
    """The sampler of one trial: alike wherever the search was stopped before it."""
    drawn = int(unit_hash(f"trial {number}", seed) * 2**32)
    return optuna.samplers.TPESampler(
        n_startup_trials=section.startup, multivariate=True, seed=drawn
    )


def _importance(found: Sequence[float]) -> Importance:
    low, high = np.quantile(found, [0.05, 0.95])
    estimate = found[0]
    return Importance(
        round(estimate, 4),
        round(min(float(low), estimate), 4),
        round(max(float(high), estimate), 4),
    )


@contextmanager
def _as_we_mean_it() -> Iterator[None]:
    """Optuna warns of what is experimental in it; what is used here is pinned by tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
