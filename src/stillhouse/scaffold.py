"""`stillhouse init`: a commented recipe for a task kind. Text only; checks and runs nothing."""

from __future__ import annotations

from typing import Final, Literal

TaskKind = Literal["classification", "extraction", "generation"]

_TASK: Final[dict[TaskKind, str]] = {
    "classification": """\
task:
  kind: classification
  name: ticket-routing
  # What the teacher is asked. {text} is where each query's text goes.
  prompt: "Which team handles this ticket: billing, bug or other?\\n\\n{text}\\n\\nOne word:"
  labels: [billing, bug, other]
""",
    "extraction": """\
task:
  kind: extraction
  name: order-fields
  # What the teacher is asked. {text} is where each query's text goes.
  prompt: "Extract the order number and the product as JSON.\\n\\n{text}"
  json_schema:
    type: object
    properties:
      order_number: {type: string}
      product: {type: string}
    required: [order_number, product]
    additionalProperties: false
""",
    "generation": """\
task:
  kind: generation
  name: summaries
  # What the teacher is asked. {text} is where each query's text goes.
  prompt: "Summarise in one sentence.\\n\\n{text}"
""",
}

_TEXT_STUDENT: Final = """\
student:
  head: text
  from: hf:meta-llama/Llama-3.2-3B-Instruct

train:
  alpha: 0                       # an API gives no token logits: train on its answers
  epochs: 3
  lora: {r: 16, alpha: 32, target_modules: [q_proj, v_proj]}
"""

_STUDENT: Final[dict[TaskKind, str]] = {
    "classification": """\
student:
  head: label                    # a classifier; text: a language model
  from: embedded-encoder         # MiniLM, 22.7M, from a package; or hf:ID, or teacher (cut from it)
  layers: 6                      # keep so many, evenly spaced
  vocabulary: 6000               # keep so many tokens, the task's most frequent

train:
  alpha: 0.9                     # weight of the soft targets: alpha*T^2*KL + (1-alpha)*CE
  distillation_temperature: 2
  epochs: 3
  learning_rate: 2.0e-4
""",
    "extraction": _TEXT_STUDENT,
    "generation": _TEXT_STUDENT,
}


def scaffold(kind: TaskKind) -> str:
    """A whole recipe as YAML text, with comments."""
    return f"""\
# yaml-language-server: $schema=recipe.schema.json   (write it with: stillhouse schema)
name: my-{kind}
seed: 0

{_TASK[kind]}
traffic:
  path: traffic.jsonl            # one {{"text": ...}} or {{"messages": [...]}} on each line
  labelled: labelled.jsonl       # some hundred with a true "label": checks the teacher first
  golden: golden.jsonl           # your test set, never trained on: what the verdict rests on

teacher:
  # openai:MODEL, anthropic:MODEL, openai-compatible:MODEL with base_url (vLLM, Ollama, llama.cpp),
  # hf:ID_OR_PATH, gguf:PATH, or embedded (SmolLM2-135M from a package).
  model: openai:gpt-4.1-mini
  sampling_temperature: 0
  max_tokens: {16 if kind == "classification" else 512}
  concurrency: 16
  budget_usd: 20                 # asking stops before this is crossed; first: stillhouse plan
  # May its outputs train a model? Read its terms (docs/rights.md says where), then write
  # {{may_train: true, says: WHO_OR_CLAUSE, on: YYYY-MM-DD, url: WHERE}}, or waive it by name:
  # terms: {{waived_by: YOUR_NAME, reason: WHY}}

dataset:
  held_out: 0.1                  # share held out, near-duplicates kept together

{_STUDENT[kind]}
evaluate:
  margin: 0.05                   # the student may be at most 5 points worse
"""
