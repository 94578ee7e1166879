"""Label likelihoods from llama.cpp: the model's choice at each branch of the labels' trie.

Knows the engine and token ids; does not know tasks or records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.label_trie import Branch

LABEL_BIAS: Final = 100.0  # lifts the allowed tokens over all others: softmax over them alone
LEAST_PROBABILITY: Final = 1e-38  # smallest normal float32
LEAST_LOG_P: Final = -104.0  # of the smallest number that float32 holds
WHOLE_VOCABULARY: Final = 2**24  # more than any has


class LabelBelief(NamedTuple):
    """Log-probabilities of labels in nats, and the most tokens that were read for one branch."""

    log_p: dict[str, float]
    prompt_tokens: int


def read_labels(
    engine: GgufEngine,
    query_id: str,
    prompt: str | Sequence[int],
    labels: Sequence[str],
    nodes: Sequence[Branch],
) -> LabelBelief:
    """Sum each label's choices along its path.

    Raises:
        TeacherError: llama.cpp did not answer.
    """
    belief = dict.fromkeys(labels, 0.0)
    tokens = 0
    for node in nodes:
        answer = engine.complete(query_id, _choice_request(prompt, node))
        tokens = max(tokens, answer["usage"]["prompt_tokens"])
        if answer["choices"][0]["logprobs"] is None:  # the way drawn is a part of a character
            log_p = _all_ways(engine, query_id, prompt, node)
        else:
            log_p = _ways(answer, node.ways)
        for label, way in zip(labels, node.taken, strict=True):
            if way >= 0:
                belief[label] += log_p[way]
    return LabelBelief(belief, tokens)


def next_log_p(
    engine: GgufEngine, query_id: str, prompt: str | Sequence[int], path: Sequence[int] = ()
) -> dict[int, float]:
    """Log-probabilities in nats of every token after prompt and path, before any sampling.

    Raises:
        TeacherError: llama.cpp did not answer.
    """
    answer = engine.complete(
        query_id,
        {
            "prompt": _asked(prompt, path),
            "n_predict": 1,
            "n_probs": WHOLE_VOCABULARY,
            "temperature": 0.0,
            # The figures are of the model alone. llama.cpp gives none with a token that is part of
            # a character, or ends the answer: what it writes is therefore a letter.
            "logit_bias": [[engine.letter, LABEL_BIAS]],
        },
    )
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {int(entry["id"]): max(float(entry["logprob"]), LEAST_LOG_P) for entry in top}


def _all_ways(
    engine: GgufEngine, query_id: str, prompt: str | Sequence[int], node: Branch
) -> list[float]:
    log_p = next_log_p(engine, query_id, prompt, node.path)
    ways = [log_p[token] for token in node.ways]
    highest = max(ways)
    total = highest + math.log(math.fsum(math.exp(value - highest) for value in ways))
    return [value - total for value in ways]


def _asked(prompt: str | Sequence[int], path: Sequence[int]) -> object:
    if isinstance(prompt, str):
        return [prompt, *path] if path else prompt
    return [*prompt, *path]


def _choice_request(prompt: str | Sequence[int], node: Branch) -> dict[str, object]:
    """Ask for one token after prompt and path, out of the node's ways only."""
    return {
        "prompt": _asked(prompt, node.path),
        "n_predict": 1,
        "temperature": 1.0,
        "samplers": ["temperature"],
        "n_probs": len(node.ways),
        "post_sampling_probs": True,  # the probabilities after the bias
        "logit_bias": [[token, LABEL_BIAS] for token in node.ways],
    }


def _ways(answer: Mapping[str, Any], ways: Sequence[int]) -> list[float]:
    """Log-probabilities of the ways, normalised over them, in nats."""
    top = answer["choices"][0]["logprobs"]["content"][0]["top_probs"]
    by_token = {int(entry["id"]): float(entry["prob"]) for entry in top}
    p = [max(by_token.get(token, 0.0), LEAST_PROBABILITY) for token in ways]
    total = math.fsum(p)
    return [math.log(value / total) for value in p]
