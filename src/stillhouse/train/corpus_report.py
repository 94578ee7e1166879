"""Figures of a corpus run, with intervals: perplexity, accuracy, retention, by language too.

Pure functions of the sums of each text. Texts of one group are drawn together. Knows numbers;
knows no model and no file.

Shapes: P texts, Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stillhouse.core.bootstrap import Floats, bootstrap_ratio
from stillhouse.core.statistics import Interval, bootstrap_mean, paired_ratio
from stillhouse.train.corpus_scores import REFERENCE, Chosen, Counted


class Asked(NamedTuple):
    """How intervals are made."""

    confidence: float
    resamples: int
    seed: int


def text_figures(
    counted: Counted, groups: Sequence[str], asked: Asked, *, kind: str
) -> dict[str, dict[str, Any]]:
    """What each model does with the texts' own tokens, and how it compares with the teacher.

    `perplexity` is exp of the mean nats a target (of the hidden tokens, for a masked model: a
    pseudo-perplexity), `accuracy` the share of targets that are a model's first choice. Retention
    is student over teacher for accuracy, teacher over student for perplexity: 1 is all.
    """
    used = counted.targets > 0
    targets = counted.targets[used]
    drawn = np.asarray(groups)[used].tolist()
    teacher = counted.models[REFERENCE]
    found: dict[str, dict[str, Any]] = {}
    for name, sums in counted.models.items():
        figures: dict[str, Any] = {
            "texts": int(used.sum()),
            "targets": int(targets.sum()),
            "pseudo_perplexity" if kind == "masked_lm" else "perplexity": _exp(
                sums.nats[used], targets, drawn, asked
            ),
            "accuracy": _ratio(sums.right[used], targets, drawn, asked),
        }
        if name != REFERENCE:
            figures |= {
                "agreement": _ratio(sums.agreed[used], targets, drawn, asked),
                "divergence": _ratio(sums.divergence[used], targets, drawn, asked),
                "retention": {
                    "accuracy": _ratio(sums.right[used], teacher.right[used], drawn, asked)
                    if teacher.right[used].sum() > 0
                    else None,
                    "perplexity": _exp(teacher.nats[used] - sums.nats[used], targets, drawn, asked),
                },
            }
        found[name] = figures
    return found


def by_language(
    counted: Counted,
    groups: Sequence[str],
    languages: Sequence[str | None],
    asked: Asked,
    *,
    kind: str,
) -> dict[str, dict[str, dict[str, Any]]]:
    """The same for each language that texts are named to be of."""
    found = {}
    for language in sorted({one for one in languages if one}):
        chosen = np.asarray([one == language for one in languages])
        if not counted.targets[chosen].sum():
            continue
        part = Counted(
            counted.targets[chosen],
            {
                name: type(sums)(*(values[chosen] for values in sums))
                for name, sums in counted.models.items()
            },
        )
        own = [group for group, here in zip(groups, chosen, strict=True) if here]
        found[language] = text_figures(part, own, asked, kind=kind)
    return found


def choice_figures(
    chosen: Mapping[str, Chosen], right: Sequence[int], groups: Sequence[str], asked: Asked
) -> dict[str, dict[str, Any]]:
    """Zero-shot accuracy of each model, and how much of the teacher's a student keeps.

    Retention is `None` where the teacher has nothing right.
    """
    hits = {
        name: {
            "accuracy": np.asarray(one.by_sum) == np.asarray(right),
            "accuracy_by_bytes": np.asarray(one.by_bytes) == np.asarray(right),
        }
        for name, one in chosen.items()
    }
    drawn = groups if len(set(groups)) > 1 else None
    found: dict[str, dict[str, Any]] = {}
    for name, measures in hits.items():
        found[name] = {"questions": len(right)}
        for measure, values in measures.items():
            scores = values.astype(np.float64)
            found[name][measure] = bootstrap_mean(
                scores, asked.confidence, resamples=asked.resamples, seed=asked.seed, groups=drawn
            ).to_json()
            reference = hits[REFERENCE][measure].astype(np.float64)
            if name != REFERENCE:
                found[name].setdefault("retention", {})[measure] = (
                    paired_ratio(
                        scores,
                        reference,
                        asked.confidence,
                        resamples=asked.resamples,
                        seed=asked.seed,
                        groups=drawn,
                    ).to_json()
                    if reference.sum()
                    else None
                )
    return found


def _ratio(
    top: Floats, bottom: Floats, groups: Sequence[str], asked: Asked
) -> dict[str, float | int] | None:
    """sum(top) / sum(bottom); the interval is `None` where one group cannot say how groups differ:
    then only the estimate is given."""
    if len(set(groups)) < 2:
        estimate = float(top.sum() / bottom.sum())
        return {"estimate": estimate, "n": len(top)}
    estimate, low, high = bootstrap_ratio(
        top, bottom, asked.confidence, resamples=asked.resamples, seed=asked.seed, groups=groups
    )
    return Interval(
        estimate=estimate, low=min(low, estimate), high=max(high, estimate), n=len(top)
    ).to_json()


def _exp(
    top: Floats, bottom: Floats, groups: Sequence[str], asked: Asked
) -> dict[str, float | int] | None:
    """exp of `_ratio`; what is past the largest number is `None`."""
    found = _ratio(top, bottom, groups, asked)
    assert found is not None
    if max(float(v) for name, v in found.items() if name != "n") > 700:
        return None
    return {name: v if name == "n" else math.exp(v) for name, v in found.items()}
