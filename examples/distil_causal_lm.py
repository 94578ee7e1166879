"""Stage 4 as a library: a causal language model, with the reverse KL as its divergence."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse import Distiller
from stillhouse.models.divergence_kind import Divergence


def llama(hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama that knows 16 tokens."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
        )
    )


rows = [{"input_ids": [(start + step * n) % 16 for n in range(8)]}
        for start in range(16) for step in (1, 3, 5)]  # fmt: skip
torch.manual_seed(0)
teacher, student = llama(64, 2), llama(16, 1)
Distiller(teacher, alpha=0, epochs=12, learning_rate=5e-3).fit(rows * 2)

distiller = Distiller(
    student, teacher, alpha=0.9, divergence=Divergence("reverse_kl"), epochs=12, learning_rate=1e-2
)
done = distiller.fit(rows * 2, held_out=rows)
print([round(row.held_out_divergence, 3) for row in done.curve if row.held_out_divergence])
