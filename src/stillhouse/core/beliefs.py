"""What a teacher believed about the labels of one query, as probabilities.

From the likelihoods of a white-box model, else from the logprobs of an API at the tokens that tell
the labels apart, else from the votes of several samples. Knows completions and labels; no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from stillhouse.core.records import Completion, TokenLogprob
from stillhouse.core.tasks import ClassificationTask, fold

# A label outside the top list has at most the least listed probability; this is the least it gets.
LEAST: Final = 1e-9
_SKIPPED: Final = " \t\r\n\"'`*.,:;!"


def class_probabilities(
    task: ClassificationTask, completions: Sequence[Completion], signals: str
) -> tuple[float, ...] | None:
    """Probabilities in the order of the task's labels, summing to one, or `None` without basis.

    Args:
        task: whose labels.
        completions: all samples of one query.
        signals: the recipe's `teacher.signals`. `none` gives `None`; `logprobs` reads likelihoods
            and logprobs alone; `samples` counts votes alone; `auto` takes the first that is there.
    """
    if signals in ("auto", "logprobs"):
        for completion in completions:
            if completion.label_logprobs is not None:
                return from_label_logprobs(task.labels, completion.label_logprobs)
        for completion in completions:
            if completion.logprobs:
                found = from_token_logprobs(task.labels, completion.logprobs)
                if found is not None:
                    return found
    if signals in ("auto", "samples"):
        return from_votes(task, completions)
    return None


def from_label_logprobs(
    labels: Sequence[str], logprobs: dict[str, float]
) -> tuple[float, ...] | None:
    """exp(l_c) / sum over labels of exp(l_c); l in nats. A label left out has probability 0."""
    values = [logprobs.get(label, -math.inf) for label in labels]
    top = max(values)
    if not math.isfinite(top) or any(math.isnan(value) for value in values):
        return None
    return _normalised([math.exp(value - top) for value in values])


def from_votes(
    task: ClassificationTask, completions: Sequence[Completion]
) -> tuple[float, ...] | None:
    """(c_k + 1/2) / (N + C/2): c_k of N readable votes for label k of C.

    The Dirichlet(1/2) prior of Jeffreys, for two labels the Krichevsky-Trofimov estimate
    (IEEE Trans. Inf. Theory 27, 1981). `None` with fewer than two readable votes.
    """
    votes = [task.parse(completion.text).value for completion in completions]
    counts = [sum(vote == label for vote in votes) for label in task.labels]
    total = sum(counts)
    if total < 2:
        return None
    return tuple((count + 0.5) / (total + 0.5 * len(counts)) for count in counts)


def from_token_logprobs(
    labels: Sequence[str], tokens: Sequence[TokenLogprob]
) -> tuple[float, ...] | None:
    """Read the labels' probabilities from the top alternatives of generated tokens.

    Walks the generated tokens until one label is settled. At each, every alternative is appended
    to what was generated so far and folded (case, quotes and space do not count); it gives its
    probability to the label that begins so. One that fits several labels is shared out evenly
    among them, unless it is the token that was generated: then the walk goes on and the next
    token's alternatives share out its probability. Labels that no alternative fits get, each,
    min(least listed probability, unlisted probability / number of such labels), at least 1e-9.
    The result is renormalised over the labels.

    `None` where the answer does not begin with a label, or ends before one is settled.
    """
    folded = [fold(label) for label in labels]
    mass = [0.0] * len(labels)
    scale = 1.0  # probability of what was generated so far, given that it tells labels apart
    so_far = ""
    open_labels = list(range(len(labels)))
    for token in tokens:
        reading = _fits(folded, open_labels, so_far, token.token)
        if reading.blank:  # a quote or a space before the label
            so_far += token.token
            continue
        if not reading.labels:
            return None
        alternatives = dict(token.top)
        alternatives[token.token] = token.logprob
        probabilities = {text: math.exp(min(0.0, value)) for text, value in alternatives.items()}
        shares = [0.0] * len(labels)
        going_on = 0.0
        fitting: set[int] = set()
        for text, probability in probabilities.items():
            fit = _fits(folded, open_labels, so_far, text)
            fitting.update(fit.labels)
            if text == token.token and len(fit.labels) > 1:
                going_on = probability
                continue
            for label in fit.labels:
                shares[label] += probability / len(fit.labels)
        missing = [label for label in open_labels if label not in fitting]
        if missing:
            unlisted = max(0.0, 1.0 - sum(probabilities.values())) / len(missing)
            for label in missing:
                shares[label] = max(LEAST, min(*probabilities.values(), unlisted))
        total = sum(shares) + going_on
        if total <= 0.0:
            return None
        mass = [old + scale * share / total for old, share in zip(mass, shares, strict=True)]
        if len(reading.labels) == 1:
            return _normalised(mass)
        scale *= going_on / total
        open_labels = reading.labels
        so_far += token.token
    ended = fold(so_far)
    for label in open_labels:
        if folded[label] == ended:  # "spam" where "spam-like" could have gone on
            mass[label] += scale
            return _normalised(mass)
    return None


class _Fit(NamedTuple):
    blank: bool
    labels: list[int]


def _fits(folded: Sequence[str], candidates: Sequence[int], so_far: str, token: str) -> _Fit:
    """Which labels the answer can still become once `token` is appended."""
    text = (so_far + token).lstrip(_SKIPPED).casefold()
    if not text:
        return _Fit(True, [])
    begun = text.rstrip(_SKIPPED)
    labels = []
    for index in candidates:
        label = folded[index]
        if label.startswith(text) or label == begun:
            labels.append(index)
        elif text.startswith(label):
            after = text[len(label)]
            if not (after.isalnum() or after in "_-"):
                labels.append(index)
    return _Fit(False, labels)


def _normalised(values: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(values)
    return tuple(value / total for value in values)
