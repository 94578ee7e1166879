"""One rank of two: a model sharded by FSDP2 has the gradients of the whole one. See its test.

python sharded_head.py RANK FILE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.train.objectives import TermsObjective, Weighted
from stillhouse.train.outputs import CausalReader, Counts
from stillhouse.train.teachers import LiveTeacher
from stillhouse.train.terms import Response


def _model(seed: int, tied: bool) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=41,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def _batch(rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(10 + rank)
    ids = torch.randint(0, 41, (2, 5 + 3 * rank))
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "labels": labels}


def main() -> None:
    """Compare, on this rank."""
    rank = int(sys.argv[1])
    init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    for tied in (True, False):
        compare(rank, tied)
    destroy_process_group()


def compare(rank: int, tied: bool) -> None:
    """Sharded in each way against whole."""
    reader = CausalReader()
    teacher = LiveTeacher(_model(2, tied).eval(), reader)
    objective = TermsObjective(reader, (Weighted(Response(0.6, 1.5)),), teacher)
    counts = Counts(20, 1, 1)

    whole = _model(1, tied)
    for other in (0, 1):
        objective.loss(whole, _batch(other), counts).backward()

    for after_forward in (True, False):
        model = _model(1, tied)
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=after_forward)
        fully_shard(model, mesh=mesh, reshard_after_forward=after_forward)
        loss = objective.loss(model, _batch(rank), counts) * 2  # gradients are averaged over ranks
        loss.backward()
        for (name, weight), reference in zip(
            model.named_parameters(), whole.parameters(), strict=True
        ):
            assert isinstance(weight, DTensor)
            assert weight.grad is not None, name
            gathered = weight.grad.full_tensor()
            torch.testing.assert_close(gathered, reference.grad, rtol=1e-5, atol=1e-7, msg=name)


if __name__ == "__main__":
    main()
