"""Configurations for servers: the same target and draft at their real size. Writes text only."""

from __future__ import annotations

import json
import shlex
from typing import NamedTuple


class Served(NamedTuple):
    """Names of target and draft as a server takes them, and how many tokens a draft has."""

    target: str
    draft: str
    length: int
    max_model_len: int


def speculative_config(served: Served) -> dict[str, object]:
    """vLLM's `speculative_config`. Its drafts are verified by rejection sampling over the whole
    vocabulary, so draft and target must have one vocabulary."""
    return {
        "method": "draft_model",
        "model": served.draft,
        "num_speculative_tokens": served.length,
    }


def vllm_command(served: Served) -> str:
    """`vllm serve` with the draft."""
    config = json.dumps(speculative_config(served))
    return (
        f"vllm serve {shlex.quote(served.target)} --max-model-len {served.max_model_len} "
        f"--speculative-config {shlex.quote(config)}"
    )


def llama_server_command(served: Served, target_gguf: str, draft_gguf: str) -> str:
    """`llama-server` with the draft (builds of May 2026 and later; before, `--draft-max`)."""
    return (
        f"llama-server -m {shlex.quote(target_gguf)} -md {shlex.quote(draft_gguf)} "
        f"--spec-type draft-simple --spec-draft-n-max {served.length} -c {served.max_model_len}"
    )


def transformers_lines(served: Served) -> str:
    """Plain transformers, for a draft with the target's ids."""
    return "\n".join(
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({served.target!r})",
            f"target = AutoModelForCausalLM.from_pretrained({served.target!r})",
            f"draft = AutoModelForCausalLM.from_pretrained({served.draft!r})",
            f"draft.generation_config.num_assistant_tokens = {served.length}",
            "draft.generation_config.num_assistant_tokens_schedule = 'constant'",
            "draft.generation_config.assistant_confidence_threshold = 0.0",
            "inputs = tokenizer('...', return_tensors='pt')",
            "target.generate(**inputs, assistant_model=draft, do_sample=False)",
            "",
        )
    )
