"""Losses of Liger Kernel and NVIDIA ModelOpt on given tensors; run by their own environment.

    python peer_divergences.py REQUEST.json ANSWER.json

The request: `tensors` (`student_hidden` [N, H], `student_weight` [V, H], likewise of the teacher,
and `targets` [N] with -100 where a position does not count) and `cases`, a list of {library, beta,
temperature, reduction, hard, soft}. The answer, a list: each case's `loss`, and the student's
`hidden_gradient` [N, H] and `weight_gradient` [V, H]. All float64.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

warnings.simplefilter("ignore")  # about versions of what is not used here

from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: E402
from modelopt.torch.distill.losses import LogitsDistillationLoss  # noqa: E402


def liger(case, tensors):
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=case["hard"],
        weight_soft_loss=case["soft"],
        beta=case["beta"],
        temperature=case["temperature"],
        compiled=False,
        chunk_size=3,  # uneven chunks
    )
    student = (tensors["student_hidden"], tensors["student_weight"])
    return loss(*student, tensors["teacher_hidden"], tensors["teacher_weight"], tensors["targets"])


def modelopt(case, tensors):
    loss = LogitsDistillationLoss(case["temperature"], case["reduction"])
    student = tensors["student_hidden"] @ tensors["student_weight"].T
    teacher = tensors["teacher_hidden"] @ tensors["teacher_weight"].T
    if case["reduction"] == "none":  # one a position, for the caller to mask
        return loss(student, teacher)[tensors["targets"] != -100].sum()
    return loss(student, teacher)


LIBRARIES = {"liger": liger, "modelopt": modelopt}
request = json.loads(Path(sys.argv[1]).read_text())
answers = []
for case in request["cases"]:
    tensors = {
        name: torch.tensor(value, dtype=torch.int64 if name == "targets" else torch.float64)
        for name, value in request["tensors"].items()
    }
    wanted = [tensors["student_hidden"], tensors["student_weight"]]
    for tensor in wanted:
        tensor.requires_grad_(True)
    loss = LIBRARIES[case["library"]](case, tensors)
    loss.backward()
    answers.append(
        {
            "loss": loss.item(),
            "hidden_gradient": wanted[0].grad.tolist(),
            "weight_gradient": wanted[1].grad.tolist(),
        }
    )
Path(sys.argv[2]).write_text(json.dumps(answers))
