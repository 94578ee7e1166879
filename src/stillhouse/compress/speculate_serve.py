"""Configurations for servers: the same target and draft at their real size. Writes text only."""

from __future__ import annotations

import json
import shlex
from typing import Final, NamedTuple

ONE_VOCABULARY: Final = (
    "# The draft's vocabulary is trimmed, and this server wants the target's own: name a draft "
    "that has it with speculate.serve.draft, or train one with student.vocabulary: full."
)


class Served(NamedTuple):
    """Names of target and draft as a server takes them, and how many tokens a draft has; `trimmed`
    where the draft has other ids than the target."""

    target: str
    draft: str
    length: int
    max_model_len: int
    trimmed: bool = False


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
    return _warned(served) + (
        f"vllm serve {shlex.quote(served.target)} --max-model-len {served.max_model_len} "
        f"--speculative-config {shlex.quote(config)}"
    )


def llama_server_command(served: Served, target_gguf: str, draft_gguf: str) -> str:
    """`llama-server` with the draft (builds of May 2026 and later; before, `--draft-max`)."""
    return _warned(served) + (
        f"llama-server -m {shlex.quote(target_gguf)} -md {shlex.quote(draft_gguf)} "
        f"--spec-type draft-simple --spec-draft-n-max {served.length} -c {served.max_model_len}"
    )


def transformers_lines(served: Served) -> str:
    """Plain transformers; a draft of other ids is translated by both tokenizers."""
    own = f"own = AutoTokenizer.from_pretrained({served.draft!r})"
    both = ", tokenizer=tokenizer, assistant_tokenizer=own" if served.trimmed else ""
    return "\n".join(
        (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"tokenizer = AutoTokenizer.from_pretrained({served.target!r})",
            f"target = AutoModelForCausalLM.from_pretrained({served.target!r})",
            f"draft = AutoModelForCausalLM.from_pretrained({served.draft!r})",
            *([own] if served.trimmed else []),
            f"draft.generation_config.num_assistant_tokens = {served.length}",
            "draft.generation_config.num_assistant_tokens_schedule = 'constant'",
            "draft.generation_config.assistant_confidence_threshold = 0.0",
            "inputs = tokenizer('...', return_tensors='pt')",
            f"settings = dict(assistant_model=draft{both})",
            "target.generate(**inputs, **settings, do_sample=False, max_new_tokens=64)",
            "",
        )
    )


def _warned(served: Served) -> str:
    return f"{ONE_VOCABULARY}\n" if served.trimmed else ""
