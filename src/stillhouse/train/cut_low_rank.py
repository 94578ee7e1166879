"""Low-rank embeddings for a BERT: an ELECTRA body whose embeddings are narrow and projected.

ELECTRA (Clark et al. 2020, arXiv:2003.10555) is BERT with embeddings of E channels, normalised
there, and a linear map to the hidden size: a table V x H becomes V x E and E x H, and plain
transformers loads it. The narrow tables are the wide ones on the principal directions of what the
embeddings put out for the task's texts; the map back is the least-squares fit of those outputs. A
masked language model's head is fitted too: its dense layer to the vectors whose products with the
narrow table come nearest to the BERT's logits. Knows BERT and ELECTRA in memory.

Legend: V vocabulary, H hidden, E rank, B texts of a batch, T tokens, N tokens read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stillhouse.core.errors import UserError
from stillhouse.models.quiet import quiet_transformers
from stillhouse.train.text_sample import sample_batches

_RIDGE: Final = 1e-4
_LINEAR: Final = 8.0  # above this, GELU gives back what it is given


class _Read(NamedTuple):
    summed: Tensor  # [N, H], word + position + type
    out: Tensor  # [N, H], normalised


def with_low_rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rank: int,
    texts: Sequence[str],
    samples: int,
) -> PreTrainedModel:
    """The ELECTRA that comes nearest to a BERT with embeddings of `rank` channels.

    A classifier on it starts anew, a masked language model's head is fitted; layers are the BERT's.

    Raises:
        UserError: a model that is no BERT.
    """
    if model.config.model_type != "bert":
        raise UserError(
            "student.cut.embedding_rank",
            f"has no counterpart for {model.config.model_type}",
            value=rank,
            action="leave it out, or use a BERT source",
        )
    body: Any = model.base_model
    batches = _batches(body, tokenizer, texts, samples)
    read = _read(body, batches)
    made = electra_like(model, rank)
    to: Any = made.base_model
    with torch.no_grad():
        centre = read.summed.mean(0)  # [H]
        # Its right singular vectors are the directions of most variance.
        directions = (
            torch.linalg.svd(read.summed - centre, full_matrices=False).Vh[:rank].T
        )  # [H, E]
        if directions.shape[1] < rank:  # fewer tokens than channels: any completion will do
            full = torch.linalg.qr(torch.cat((directions, torch.eye(len(centre))), 1)).Q
            directions = full[:, :rank]
        embeddings = body.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            wide = getattr(embeddings, name).weight
            shift = centre if name == "word_embeddings" else torch.zeros_like(centre)
            getattr(to.embeddings, name).weight.copy_((wide - shift) @ directions)
        narrow = (read.summed - centre) @ directions
        narrow = nn.functional.layer_norm(narrow, (rank,), eps=float(made.config.layer_norm_eps))
        weight, bias = _fit(narrow, read.out)
        to.embeddings_project.weight.copy_(weight)
        to.embeddings_project.bias.copy_(bias)
        to.encoder.load_state_dict(body.encoder.state_dict())
        if isinstance(made, ElectraForMaskedLM):
            _fit_head(model, made, batches)
    made.train(model.training)
    return made


def _batches(
    body: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], samples: int
) -> list[dict[str, Tensor]]:
    most = int(body.config.max_position_embeddings)
    return [
        {name: batch[name] for name in ("input_ids", "attention_mask")}
        for batch in sample_batches(tokenizer, texts, samples, most)
    ]


def _read(body: Any, batches: Sequence[Mapping[str, Tensor]]) -> _Read:
    seen: list[tuple[Tensor, Tensor]] = []
    hook = body.embeddings.LayerNorm.register_forward_hook(
        lambda _, given, out: seen.append((given[0], out))
    )
    summed, outs = [], []
    was = body.training
    body.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                body.embeddings(input_ids=batch["input_ids"])
                mask = batch["attention_mask"].bool()
                given, out = seen.pop()
                summed.append(given[mask])
                outs.append(out[mask])
    finally:
        hook.remove()
        body.train(was)
    return _Read(torch.cat(summed).float(), torch.cat(outs).float())


def _fit_head(bert: Any, made: Any, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Fit the narrow head, in place, on what both models make of the texts.

    With t [H] what the BERT multiplies with its table W [V, H], and n [V, E] the narrow table, the
    wanted u [E] is the one whose n u comes nearest to W t, but for a constant of all rows, which no
    softmax sees. A linear map of the narrow body's states is fitted to it. The head has GELU and a
    normalisation behind its map: the bias lifts all inputs to where GELU is linear, and the gain
    gives back the spread that the normalisation takes.
    """
    table = made.get_output_embeddings().weight.float()
    narrow = table - table.mean(0)
    wide = bert.get_output_embeddings().weight.float()
    wide = wide - wide.mean(0)
    gram = narrow.T @ narrow
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    to_wanted = torch.linalg.solve(gram, narrow.T @ wide)  # [E, H]
    states, wanted = [], []
    was = bert.training
    bert.eval()
    made.eval()
    for batch in batches:
        mask = batch["attention_mask"].bool()  # [B, T]
        told = bert.cls.predictions.transform(bert.base_model(**batch).last_hidden_state[mask])
        wanted.append(told.float() @ to_wanted.T)  # [N, E]
        states.append(made.base_model(**batch).last_hidden_state[mask].float())
    bert.train(was)
    x, u = torch.cat(states), torch.cat(wanted)
    weight, bias = _fit(x, u)
    fitted = x @ weight.T + bias
    level = bias.mean()  # what is taken from all channels alike, the normalisation takes anyway
    spread = (fitted - fitted.mean(1, keepdim=True)).square().mean(1).sqrt().mean()
    head = made.generator_predictions
    lift = (fitted - level).abs().max() + _LINEAR
    head.dense.weight.copy_(weight)
    head.dense.bias.copy_(bias - level + lift)
    head.LayerNorm.weight.fill_(float(spread))
    head.LayerNorm.bias.copy_((u - head.LayerNorm.weight * _normal(fitted)).mean(0))
    made.generator_lm_head.bias.copy_(bert.cls.predictions.bias)


def _normal(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)


def _fit(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [H, E] and bias [H] of the least-squares map, slightly ridged."""
    mean_in, mean_out = inputs.mean(0), wanted.mean(0)
    x, y = inputs - mean_in, wanted - mean_out
    gram = x.T @ x / len(x)
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    weight = torch.linalg.solve(gram, x.T @ y / len(x)).T
    return weight, mean_out - weight @ mean_in


def electra_like(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """An ELECTRA of a BERT's depth and width, of random weights."""
    kept = copy.deepcopy(model.config).to_dict()
    for name in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
        kept.pop(name, None)
    config = ElectraConfig(**kept | {"embedding_size": rank})
    masked = type(model).__name__.endswith("MaskedLM")
    kind: Any = ElectraForMaskedLM if masked else ElectraForSequenceClassification
    with quiet_transformers():
        made: PreTrainedModel = kind(config)
    made.to(dtype=model.dtype)  # type: ignore[call-arg]
    return made
