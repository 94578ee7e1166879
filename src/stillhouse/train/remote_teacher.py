"""A teacher on another machine: a server that returns prompt logprobs reads the student's rows.

vLLM's OpenAI-compatible server answers a completions request for token ids, with `prompt_logprobs:
K`, with the K likeliest next tokens at every place of the prompt; SGLang and others follow it. One
request carries a micro-batch. Server and student must have one tokenizer: what the server calls the
tokens is compared with what the student calls them, and a difference ends the run.

Imported where there is such a server. Knows HTTP, rows and signals; knows no loss.

Legend: B batch, T tokens, N targets, K kept entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai
import torch
from transformers import PreTrainedTokenizerBase

from stillhouse.core.errors import StillhouseError, UserError
from stillhouse.core.recipe_readers import ReaderSection
from stillhouse.models.signals import SparseSignal
from stillhouse.train.outputs import Batch, Needs, next_tokens
from stillhouse.train.teachers import TeacherView

# Of sums of float32 probabilities: a tail below it is not known, and is not taken for impossible.
ROUNDING = 2.0**-24

Entries = Mapping[str, Any]  # token id as a string -> {"logprob", "rank", "decoded_token"}


@dataclass(slots=True)
class PromptLogprobs:
    """A `TeacherSource` that asks a server. `client` holds address, key, time limit and retries.

    Raises:
        UserError: the server does not return prompt logprobs, or has another tokenizer.
        StillhouseError: the server cannot be reached; the run goes on from its last checkpoint.
    """

    client: openai.OpenAI
    model: str
    k: int
    width: int  # ids of the student's head
    tokenizer: PreTrainedTokenizerBase
    checked: bool = field(default=False)

    def view(self, batch: Batch, needs: Needs) -> TeacherView:
        """See `TeacherSource`; a sparse signal, never insides."""
        lengths = batch["attention_mask"].sum(-1).tolist()
        rows = [row[:n] for row, n in zip(batch["input_ids"].tolist(), lengths, strict=True)]
        found = self._ask(rows)
        positions = next_tokens(batch["labels"]).positions.tolist()
        at = [
            entries[column + 1]  # what the server says of token t + 1 it knew after token t
            for entries, row in zip(found, positions, strict=True)
            for column, wanted in enumerate(row)
            if wanted
        ]
        return TeacherView(_sparse(at, self.k, self.width).to(batch["input_ids"].device), None)

    def _ask(self, rows: list[list[int]]) -> list[list[Entries]]:
        try:
            answer = self.client.completions.create(
                model=self.model,
                prompt=rows,
                max_tokens=1,
                temperature=0.0,
                extra_body={"prompt_logprobs": self.k},
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                "train.teachers",
                f"the server of {self.model} refuses the key ({error.status_code})",
                action="check the variable that api_key_env names",
            ) from None
        except openai.InternalServerError as error:
            raise StillhouseError(
                f"train.teachers: the server of {self.model} fails ({error.status_code}); run "
                "again when it is well: training goes on from its last checkpoint"
            ) from None
        except openai.APIStatusError as error:
            raise UserError(
                "train.teachers",
                f"{self.model} refused to read the examples ({error.status_code})",
                action="serve it with --max-logprobs of at least prompt_logprobs, and a context of "
                "at least student.max_tokens",
            ) from None
        except openai.APIConnectionError as error:
            raise StillhouseError(
                f"train.teachers: the server of {self.model} does not answer ({error}); start it "
                "and run again: training goes on from its last checkpoint"
            ) from None
        choices = sorted(answer.choices, key=lambda choice: choice.index)
        found = [(choice.model_extra or {}).get("prompt_logprobs") for choice in choices]
        if len(found) != len(rows) or any(
            entries is None or len(entries) != len(row)
            for entries, row in zip(found, rows, strict=False)
        ):
            raise UserError(
                "train.teachers",
                f"{self.model} answered without prompt_logprobs for every token",
                action="serve it with vLLM, or another server that has them",
            )
        whole: list[list[Entries]] = [list(entries or ()) for entries in found]
        if not self.checked:
            self._check(rows, whole)
            self.checked = True
        return whole

    def _check(self, rows: list[list[int]], found: list[list[Entries]]) -> None:
        """Names of tokens at the server and here, in the first batch."""
        for row, entries in zip(rows, found, strict=True):
            for token, entry in zip(row[1:], entries[1:], strict=True):
                said = (entry or {}).get(str(token))
                if said is None:
                    raise UserError(
                        "train.teachers",
                        f"{self.model} does not say how likely the student's token {token} is",
                        action="serve a model with the student's tokenizer",
                    )
                named, here = said.get("decoded_token"), str(self.tokenizer.decode([token]))
                if named and named != here and "\ufffd" not in named + here:
                    if named.strip() != here.strip():
                        raise UserError(
                            "train.teachers",
                            f"{self.model} has another tokenizer: token {token} is {named!r} there "
                            f"and {here!r} here",
                            action="serve a model with the student's tokenizer",
                        )


def open_server(
    section: ReaderSection, key: str, width: int, tokenizer: PreTrainedTokenizerBase
) -> PromptLogprobs:
    """The server of a member of `train.teachers`, for a student whose head has `width` ids."""
    client = openai.OpenAI(
        base_url=section.base_url, api_key=key, timeout=section.timeout_s, max_retries=5
    )
    name = section.model.partition(":")[2]
    return PromptLogprobs(client, name, section.prompt_logprobs, width, tokenizer)


def _sparse(at: Sequence[Entries], k: int, width: int) -> SparseSignal:
    """The K likeliest entries of each place; the row's own token may make one more and is left
    out. So are ids that only pad the server's head: the student has none for them."""
    ids = torch.zeros(len(at), k, dtype=torch.int64)
    log_probs = torch.full((len(at), k), -math.inf)
    for number, entries in enumerate(at):
        shared = [entry for entry in entries.items() if int(entry[0]) < width]
        ranked = sorted(shared, key=lambda entry: -float(entry[1]["logprob"]))[:k]
        if len(ranked) < k:
            raise UserError(
                "train.teachers.prompt_logprobs",
                f"the server returns {len(ranked)} entries a token",
                value=k,
                action="ask for fewer, or serve with a higher --max-logprobs",
            )
        ids[number] = torch.tensor([int(token) for token, _ in ranked])
        log_probs[number] = torch.tensor([float(entry["logprob"]) for _, entry in ranked])
    kept = log_probs.double().exp().sum(-1).clamp(max=1.0 - ROUNDING)
    tail = torch.log1p(-kept).float()
    return SparseSignal(ids, log_probs, tail, vocabulary_size=width)
