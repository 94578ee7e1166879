"""Stage 4 as a library: a sequence classifier taught by a larger one, from texts and labels."""

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from stillhouse import Distiller

TEXT = "the film is a bore joy warm dull plot cast moves drags and"
tokenizer = BertTokenizer(
    vocab={
        w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()])
    }
)


def bert(hidden: int, layers: int) -> BertForSequenceClassification:
    """A BERT with two classes."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden,
            id2label={0: "bad", 1: "good"},
            label2id={"bad": 0, "good": 1},
        )
    )


good, bad = ("joy", "warm", "moves"), ("bore", "dull", "drags")
texts = [(f"the film is {w} and the plot is {v}", "good" if w in good else "bad")
         for w in (*good, *bad) for v in (good if w in good else bad)]  # fmt: skip
torch.manual_seed(0)
teacher, student = bert(32, 2), bert(16, 1)
Distiller(teacher, alpha=0, tokenizer=tokenizer, epochs=8, learning_rate=2e-3).fit(texts * 8)

distiller = Distiller(
    student, teacher, tokenizer=tokenizer, alpha=0.8, epochs=8, learning_rate=3e-3
)
done = distiller.fit([text for text, _ in texts] * 8, held_out=texts)  # the teacher answers
print(f"divergence {done.curve[-1].held_out_divergence:.4f} nats after {done.steps} steps")
print(f"agrees with the labels: {done.curve[-1].held_out_agreement:.0%}")
