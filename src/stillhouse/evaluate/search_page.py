"""tune.html, and the same result in a few lines for a terminal.

Chooses what is shown and in which words; the figures come from the result. Everything is inline:
the page asks no server for anything.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import yaml
from markupsafe import Markup
from pydantic import JsonValue

from stillhouse.evaluate import summary
from stillhouse.evaluate.page import environment
from stillhouse.evaluate.search import HeldOutResult, ParameterResult, TrialResult, TuneResult
from stillhouse.evaluate.search_figures import value_in
from stillhouse.evaluate.search_plots import Dot, scatter


class Setting(NamedTuple):
    """A row and a plot of one key."""

    parameter: ParameterResult
    good: str
    chart: Markup | None


def render_search(result: TuneResult) -> str:
    """The whole page as HTML text."""
    best = result.trial(result.best)
    return (
        environment()
        .get_template("tune.html")
        .render(
            r=result,
            best=best,
            gain=main_set(result),
            sentence=sentence(result),
            measure=measure_name(result),
            history=_history(result),
            settings=[_setting(result, one) for one in by_importance(result)],
            found=yaml.safe_dump(_nested(best), sort_keys=False) if best.values else "",
            shown=_shown,
            measured=lambda trial: measured(result, trial),
            metric=lambda one: summary.METRIC_NAMES.get(one.metric, one.metric),
            versions=sorted(result.versions.items()),
        )
    )


def main_set(result: TuneResult) -> HeldOutResult:
    """The set that the headline is about: golden where there is one."""
    return next((one for one in result.sets if one.name == "golden"), result.sets[0])


def sentence(result: TuneResult) -> str:
    """The result in one sentence."""
    best, one = result.trial(result.best), main_set(result)
    where = f"on the {one.name.replace('_', '-')} set (n = {one.n:,})"
    metric = summary.METRIC_NAMES.get(one.metric, one.metric)
    if best.own:
        return (
            f"The recipe as it is was the best of {len(result.trials)} trials: {metric} "
            f"{summary.share(one.best)} {where}."
        )
    text = (
        f"Trial {best.number + 1} of {len(result.trials)} was the best: {metric} "
        f"{summary.share(one.best)} {where}"
    )
    if one.own is None or one.gain is None:
        return text + "."
    clear = "" if one.gain.low > 0 or one.gain.high < 0 else ", which can be chance"
    return (
        f"{text}, against {summary.share(one.own)} of the recipe as it is: "
        f"{summary.points(one.gain)}{clear}."
    )


def measure_name(result: TuneResult) -> str:
    """The deciding measure in words."""
    return {
        "held_out_agreement": "disagreement",
        "held_out_divergence": "divergence (nats)",
        "held_out_cross_entropy": "cross-entropy (nats)",
    }[result.measure]


def measured(result: TuneResult, trial: TrialResult) -> str:
    """A trial's deciding measure, or what became of it."""
    if trial.value is None:
        return trial.state
    return f"{trial.value:.1%}" if result.measure.endswith("agreement") else f"{trial.value:.4f}"


def by_importance(result: TuneResult) -> list[ParameterResult]:
    """What mattered most first; in the order of the search where that is not known."""
    return sorted(
        result.parameters,
        key=lambda one: 0.0 if one.importance is None else -one.importance.estimate,
    )


def lines(result: TuneResult) -> list[str]:
    """For a terminal, under the table of settings."""
    states = [trial.state for trial in result.trials]
    counted = ", ".join(
        f"{states.count(state)} {state}"
        for state in ("complete", "pruned", "failed", "unfinished")
        if state in states
    )
    found = [
        sentence(result),
        f"{len(states)} trials ({counted}) in {result.seconds:,.0f} s of training, "
        f"{summary.usd(result.usd)}; chosen by {measure_name(result)} on {result.tuning:,} "
        "examples of the training set",
    ]
    return [*found, *(f"note: {note}" for note in result.notes)]


def rows(result: TuneResult) -> list[tuple[str, str, str, str, str]]:
    """(key, own, best, good, importance), what mattered most first."""
    return [
        (one.key, _shown(one.own), _shown(one.best), _good(one), _share(one))
        for one in by_importance(result)
    ]


def _share(one: ParameterResult) -> str:
    spread = one.importance
    if spread is None:
        return "unknown"
    return f"{spread.estimate:.0%} [{spread.low:.0%}, {spread.high:.0%}]"


def _good(one: ParameterResult) -> str:
    if one.low is not None:
        return f"{_shown(one.good[0])} to {_shown(one.good[-1])}"
    return ", ".join(_shown(value) for value in one.good)


def _shown(value: JsonValue) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _setting(result: TuneResult, one: ParameterResult) -> Setting:
    dots: list[Dot] = []
    names = [_shown(choice) for choice in one.choices]
    for trial in result.trials:
        if trial.value is None:
            continue
        value = value_in(trial, one.key, one.own)
        at = one.choices.index(value) if one.choices else float(str(value))
        style = "student" if trial.number == result.best else "twin" if trial.own else "teacher"
        title = f"trial {trial.number + 1}: {_shown(value)}, {measured(result, trial)}"
        dots.append(Dot(float(at), trial.value, style, title))
    chart = scatter(
        f"{one.key} against {measure_name(result)}",
        dots,
        one.key,
        measure_name(result),
        log=one.log,
        names=names,
    )
    return Setting(one, _good(one), chart)


def _history(result: TuneResult) -> Markup:
    dots: list[Dot] = []
    line: list[tuple[float, float]] = []
    lowest = float("inf")
    for trial in result.trials:
        value = trial.value
        if value is None and trial.looks:
            value = min(look for _, look in trial.looks)
        if value is None:
            continue
        style = {"complete": "teacher"}.get(trial.state, "majority")
        style = "student" if trial.number == result.best else "twin" if trial.own else style
        title = f"trial {trial.number + 1}, {trial.state}: {value:.4g}"
        dots.append(Dot(trial.number + 1, value, style, title))
        if trial.value is not None:
            lowest = min(lowest, trial.value)
        if lowest < float("inf"):
            line.append((trial.number + 1, lowest))
    return scatter("Trials", dots, "trial", measure_name(result), line=line)


def _nested(trial: TrialResult) -> dict[str, JsonValue]:
    """The values of a trial as they are written in `tune.search`."""
    return dict(trial.values)
