"""What dataset.json says: counts, rejections by reason, class balance, lengths, contamination.

Knows the finished dataset; makes no decisions. Keys, all stable:
- `queries`, `completions`, `examples`, `train`, `held_out`, `groups`; `with_truth`, how many of the
  training examples hold a true answer of the labelled set
- `acceptance`: `estimate` is accepted answers over all answers (`n`), with the 95% interval `low`,
  `high`, which takes the samples of one query as alike (`statistics.clustered_wilson`)
- `rejections`: reason -> count, of all that rejections.jsonl holds
- `duplicates`: `exact`, `near`
- `contamination`: see `contamination.Decontaminated`
- `classes` (classification): label -> count, for `train` and `held_out`; `label_entropy_nats`, the
  entropy of the training labels' distribution; `belief_entropy_nats`, the mean entropy of the
  teacher's class probabilities in training (null without them); `with_beliefs`, how many examples
  have them; `label_is_not_top_belief`, in how many another label is more probable
- `teacher_revisions`: revision -> examples, the most first
- `lengths`: p50 and p95 of characters and words, for `prompt` and `completion`
- `by_cluster`: `source` (`metadata`, or the embedder), `floor`, and `clusters`, the lowest first:
  `cluster`, `queries`, `accepted` by the filters, `acceptance` with its interval, `readmitted`,
  `top_reason`; `low` names those below the floor (or far below the whole)
- `by_difficulty`: `measure`, and `parts`, the easiest first, with the same counts; `unmeasured`,
  those of the queries that the measure says nothing of (null where there is none)
- `readmitted`: filter -> how many answers that it had rejected came back
- `selection`: `consistency`, `agreement`, `best_of` as in the recipe, `measure` of agreement, and
  `agreement_seen`: p5, p50 of the agreement of each query's best answer (null where not looked at)
- `judge`: the figures of judge.json, null without a judge

The stage adds `watch` (how many labelled examples training only looks at), `filters` (what each
example passed, in order) and `users` (how many different ones, by pseudonym).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example
from stillhouse.core.split import Split
from stillhouse.core.statistics import clustered_wilson
from stillhouse.core.tasks import ClassificationTask
from stillhouse.dataset.agreement import MEASURES
from stillhouse.dataset.build import Dataset
from stillhouse.dataset.floors import low_clusters
from stillhouse.dataset.report_numbers import entropy, lengths


def dataset_report(
    recipe: Recipe,
    queries: int,
    dataset: Dataset,
    split: Split[Example],
    judge: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The object that dataset.json holds; see the module. `judge` is what judge.json holds."""
    task = recipe.task
    reasons = Counter(rejection.reason for rejection in dataset.rejections)
    judged = dataset.judged
    report: dict[str, object] = {
        "queries": queries,
        "completions": judged.completions,
        "examples": len(dataset.examples),
        "train": len(split.first),
        "held_out": len(split.second),
        "with_truth": sum(example.reference is not None for example in split.first),
        "groups": len({example.group for example in dataset.examples}),
        "acceptance": clustered_wilson(
            [accepted for accepted, _ in judged.by_query], [drawn for _, drawn in judged.by_query]
        ).model_dump(),
        "rejections": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "duplicates": {"exact": reasons["duplicate"], "near": reasons["near_duplicate"]},
        "contamination": dataset.contamination.as_json(),
        "teacher_revisions": dict(
            Counter(example.teacher_revision for example in dataset.examples).most_common()
        ),
        "lengths": {
            "prompt": lengths([_prompt_text(example) for example in dataset.examples]),
            "completion": lengths([example.completion for example in dataset.examples]),
        },
    }
    if isinstance(task, ClassificationTask):
        report["classes"] = class_balance(task, split)
    return report | _coverage(recipe, dataset) | {"judge": dict(judge) if judge else None}


def _coverage(recipe: Recipe, dataset: Dataset) -> dict[str, object]:
    section, coverage = recipe.dataset, dataset.coverage
    shares = list(dataset.judged.shares.values())
    back = Counter(e.readmitted for e in dataset.judged.examples if e.readmitted is not None)
    return {
        "by_cluster": {
            "source": coverage.clusters_from,
            "floor": section.floor,
            "clusters": [row.as_json() for row in coverage.clusters],
            "low": [row.name for row in low_clusters(coverage.clusters, section.floor)],
        },
        "by_difficulty": {
            "measure": coverage.difficulty,
            "parts": coverage.by_difficulty,
            "unmeasured": coverage.unmeasured,
        },
        "readmitted": dict(sorted(back.items())),
        "selection": {
            "consistency": section.consistency,
            "agreement": section.agreement,
            "best_of": section.best_of,
            "measure": MEASURES[recipe.task.kind],
            "agreement_seen": {
                "p5": float(np.percentile(shares, 5)),
                "p50": float(np.percentile(shares, 50)),
            }
            if shares
            else None,
        },
    }


def _prompt_text(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt)


def class_balance(task: ClassificationTask, split: Split[Example]) -> dict[str, object]:
    """Labels of both parts, and the entropies of the training part, in nats."""
    train = split.first
    counts = Counter(example.label for example in train)
    beliefs = [e.label_probabilities for e in train if e.label_probabilities is not None]
    other = sum(
        e.label_probabilities[task.labels.index(e.label)] < max(e.label_probabilities)
        for e in train
        if e.label_probabilities is not None and e.label is not None
    )
    return {
        "train": {label: counts[label] for label in task.labels},
        "held_out": {
            label: sum(example.label == label for example in split.second) for label in task.labels
        },
        "label_entropy_nats": entropy([counts[label] / len(train) for label in task.labels]),
        "belief_entropy_nats": math.fsum(map(entropy, beliefs)) / len(beliefs) if beliefs else None,
        "with_beliefs": len(beliefs),
        "label_is_not_top_belief": other,
    }
