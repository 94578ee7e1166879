"""Stage 4 as a library: a masked language model. Student and teacher miss the same tokens."""

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from stillhouse import Distiller

TEXT = "the cat dog sat ran on to mat park and then slept"
tokenizer = BertTokenizer(
    vocab={
        w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()])
    }
)


def bert(hidden: int, layers: int) -> BertForMaskedLM:
    """A small BERT."""
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
        )
    )


texts = [
    f"the {who} {what} and then slept"
    for who in ("cat", "dog")
    for what in ("sat on the mat", "ran to the park")
]
torch.manual_seed(0)
teacher, student = bert(32, 2), bert(16, 1)
Distiller(teacher, alpha=0, tokenizer=tokenizer, epochs=3, learning_rate=3e-3).fit(texts * 100)

distiller = Distiller(
    student, teacher, tokenizer=tokenizer, alpha=0.5, epochs=3, learning_rate=5e-3
)
done = distiller.fit(texts * 100, held_out=texts * 5)
print([round(row.held_out_divergence, 3) for row in done.curve if row.held_out_divergence])
