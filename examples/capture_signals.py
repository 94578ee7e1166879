"""Stage 4: write down what a teacher believes, then train on it without the teacher.

A stand-in teacher (random logits over 1,000 tokens) is stored as sampled targets: three bytes an
entry, unbiased; they are then read back from disk, in any order, and give a student its loss.
"""

import tempfile
from pathlib import Path

import torch

from stillhouse.models.divergence import forward_kl
from stillhouse.models.divergence_kind import CROSS_ENTROPY
from stillhouse.models.drawing import uniforms
from stillhouse.models.signal_cache import SignalCache
from stillhouse.models.signal_codec import encode_belief
from stillhouse.models.signal_layout import CacheKey, Layout
from stillhouse.models.signal_rows import signal_rows
from stillhouse.models.signal_writer import Named, SignalWriter, digest

torch.manual_seed(0)
teacher = [torch.randn(rows, 1000) * 3 for rows in (40, 25, 60)]  # logits of three answers
named = [Named(digest(b"q%d" % i), digest(b"its tokens"), len(x)) for i, x in enumerate(teacher)]
layout = Layout(format="sampled", width=1000, dtype="float16", samples=16)
key = CacheKey(teacher="demo", teacher_revision="1", read_from="teacher")

with tempfile.TemporaryDirectory() as folder:
    writer = SignalWriter(Path(folder), key, layout, named, shard_bytes=64e6)
    draws = [uniforms(i, len(x), 16, "systematic") for i, x in enumerate(teacher)]
    writer.write(0, [encode_belief(layout, x, u) for x, u in zip(teacher, draws, strict=True)])
    print(f"{writer.finish().bytes_per_row:.1f} bytes a token, index included")

    cache = SignalCache(Path(folder))  # checksums are compared here
    cache.require(teacher="demo", teacher_revision="1")  # another teacher would be an error
    stored = cache.read([2, 0])  # the third answer's rows, then the first's

student = torch.zeros(100, 1000, requires_grad=True)
cross_entropy = signal_rows(stored.signal, student, 1.0, CROSS_ENTROPY)  # a row each, nats
cross_entropy.sum().backward()
kl = (cross_entropy.detach() + stored.information).mean()
exact = forward_kl(torch.cat([teacher[2], teacher[0]]), student.detach()).total / 100
print(f"KL to a uniform student: {kl:.3f} nats a token from 16 draws, {exact:.3f} from all logits")
