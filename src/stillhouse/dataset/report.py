"""What dataset.json says: counts, rejections by reason, class balance, lengths, contamination.

Knows the finished dataset; makes no decisions. Keys, all stable:
- `queries`, `completions`, `examples`, `train`, `held_out`, `groups`; `with_truth`, how many of the
  training examples hold a true answer of the labelled set
- `acceptance`: `estimate` is accepted answers over all answers (`n`), with the Wilson 95% interval
  `low`, `high`
- `rejections`: reason -> count, of all that rejections.jsonl holds
- `duplicates`: `exact`, `near`
- `contamination`: see `contamination.Decontaminated`
- `classes` (classification): label -> count, for `train` and `held_out`; `label_entropy_nats`, the
  entropy of the training labels' distribution; `belief_entropy_nats`, the mean entropy of the
  teacher's class probabilities in training (null without them); `with_beliefs`, how many examples
  have them; `label_is_not_top_belief`, in how many another label is more probable
- `lengths`: p50 and p95 of characters and words, for `prompt` and `completion`
The stage adds where the examples come from: `teacher_revisions` (revision -> examples), `filters`
(what each of them passed, in order) and `users` (how many different ones, by pseudonym).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from stillhouse.core.records import Example
from stillhouse.core.split import Split
from stillhouse.core.statistics import wilson
from stillhouse.core.tasks import ClassificationTask, Task
from stillhouse.dataset.build import Dataset


def dataset_report(
    task: Task, queries: int, dataset: Dataset, split: Split[Example]
) -> dict[str, object]:
    """The object that dataset.json holds; see the module."""
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
        "acceptance": wilson(judged.accepted_completions, judged.completions).model_dump(),
        "rejections": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "duplicates": {"exact": reasons["duplicate"], "near": reasons["near_duplicate"]},
        "contamination": dataset.contamination.as_json(),
        "lengths": {
            "prompt": lengths([_prompt_text(example) for example in dataset.examples]),
            "completion": lengths([example.completion for example in dataset.examples]),
        },
    }
    if isinstance(task, ClassificationTask):
        report["classes"] = class_balance(task, split)
    return report


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


def entropy(probabilities: Sequence[float]) -> float:
    """-sum p ln p, in nats; 0 ln 0 is 0."""
    return abs(math.fsum(-p * math.log(p) for p in probabilities if p > 0))


def lengths(texts: Sequence[str]) -> dict[str, object]:
    """p50 and p95 (linear interpolation) of characters and words.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("lengths of nothing have no percentiles")
    characters = [len(text) for text in texts]
    words = [len(text.split()) for text in texts]
    return {
        name: {"p50": float(np.percentile(of, 50)), "p95": float(np.percentile(of, 95))}
        for name, of in (("characters", characters), ("words", words))
    }
