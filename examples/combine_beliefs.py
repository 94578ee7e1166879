"""Stage 4: two teachers' beliefs about the next token, as a mixture and as a geometric mean."""

import torch

from stillhouse.models.mixtures import combined
from stillhouse.models.signals import DenseSignal, sparsify

careful = DenseSignal(torch.tensor([[0.6, 0.3, 0.1]]).log())
certain = DenseSignal(torch.tensor([[0.01, 0.98, 0.01]]).log())
weights = torch.tensor([0.5, 0.5])
for how in ("mean_probabilities", "mean_logits"):
    both = combined([careful, certain], weights, how)
    print(how, [round(p, 3) for p in both.logits.softmax(-1)[0].tolist()])

kept = combined([sparsify(careful, 1), sparsify(certain, 1)], weights, "mean_probabilities", 3)
print("from one entry of each:", kept.token_ids.tolist(), kept.log_probs.exp().tolist())
