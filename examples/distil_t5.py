"""Stage 4 as a library: an encoder-decoder. The decoder is led along the given targets."""

import torch
from transformers import T5Config, T5ForConditionalGeneration

from stillhouse import Distiller

END = 1


def t5(width: int, layers: int) -> T5ForConditionalGeneration:
    """A T5 that knows 16 tokens; 0 pads and starts."""
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=16,
            d_model=width,
            d_kv=width // 2,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


rows = [{"input_ids": [a, b, END], "labels": [b, a, END] if a % 2 else [b, END]}
        for a in range(2, 10) for b in range(2, 10)]  # fmt: skip
torch.manual_seed(0)
teacher, student = t5(64, 2), t5(16, 1)
Distiller(teacher, alpha=0, epochs=30, learning_rate=5e-3, batch_size=16).fit(rows)

distiller = Distiller(student, teacher, alpha=0.5, epochs=30, learning_rate=2e-2, batch_size=16)
done = distiller.fit(rows, held_out=rows)
print([round(row.held_out_divergence, 3) for row in done.curve if row.held_out_divergence])
