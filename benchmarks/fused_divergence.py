"""The fused loss against TRL's chunked loss and dense code, forward and backward.

    python benchmarks/fused_divergence.py [--small] [--rounds 7] [--threads 2] [--clock cpu_seconds]

Forward KL at T = 1, float32, half of the positions masked; gradients of the student's hidden states
and of its head. Each contender has a process of its own, which holds the same inputs; their rounds
are interleaved, and memory is the peak of the whole process over what the inputs took. Contenders:

- ours: `fused_soft_target_loss` from the teacher's hidden states
- sparse, sampled: the same from a stored signal (top 64 and tail; 12 draws)
- trl: `_chunked_divergence_loss` of TRL, as its DistillationTrainer calls it
- dense: both heads' logits of all positions, then `GKDTrainer.generalized_jsd_loss`
- valid: dense code as well, over the unmasked positions alone

Losses and gradients are compared with those of `ours` (dense, trl, valid).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from contenders import interleaved, serve, speedup, summary
from machine_line import save
from torch import Tensor
from torch.nn.functional import linear

from stillhouse.core.machine import package_versions
from stillhouse.models.divergence import IGNORE_INDEX, forward_kl
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.fused_divergence import fused_soft_target_loss
from stillhouse.models.head import Head
from stillhouse.models.signals import DenseSignal, HiddenSignal, SampledSignal, sparsify

SIZES = {"1,024 x 49,152": (1024, 576, 49_152), "4,096 x 128,256": (4096, 576, 128_256)}
SMALL = {"256 x 8,192": (256, 128, 8_192)}
CONTENDERS = ("ours", "sparse", "sampled", "trl", "dense", "valid")
DENSE_BUFFERS = 11  # of positions x vocabulary, that dense code holds at its peak


class Inputs(NamedTuple):
    """N positions, H hidden, V vocabulary."""

    hidden: Tensor  # [N, H]
    weight: Tensor  # [V, H]
    teacher_hidden: Tensor  # [N, H]
    teacher_weight: Tensor  # [V, H]
    targets: Tensor  # [N], half of them masked


def inputs(positions: int, hidden: int, vocabulary: int) -> Inputs:
    """Logits spread like a language model's: a few hundred tokens share most of the mass."""
    torch.manual_seed(0)
    spread = 3.0 / math.sqrt(hidden)
    targets = torch.randint(0, vocabulary, (positions,))
    targets[torch.randperm(positions)[: positions // 2]] = IGNORE_INDEX
    return Inputs(
        torch.randn(positions, hidden).requires_grad_(),
        (torch.randn(vocabulary, hidden) * spread).requires_grad_(),
        torch.randn(positions, hidden),
        torch.randn(vocabulary, hidden) * spread,
        targets,
    )


@torch.no_grad()
def stored(given: Inputs, kind: str) -> Any:
    """The teacher's belief at every position as a cache would give it."""
    parts = []
    for rows in given.teacher_hidden.split(64):
        dense = DenseSignal(linear(rows, given.teacher_weight))
        if kind == "sparse":
            parts.append(tuple(vars_of(sparsify(dense, 64))))
        else:
            ids = torch.multinomial(dense.logits.softmax(-1), 12, replacement=True)
            parts.append((ids, torch.full(ids.shape, 1 / 12)))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def vars_of(signal: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a sparse signal."""
    return signal.token_ids, signal.log_probs, signal.tail_log_mass


def contender(name: str, given: Inputs) -> Callable[[], Tensor]:
    """A function that gives the summed loss, with its graph."""
    head = Head(given.weight)
    valid = given.targets != IGNORE_INDEX
    of, soft = Divergence("forward_kl"), {"alpha": 1.0, "distillation_temperature": 1.0}
    if name == "ours":
        signal: Any = HiddenSignal(given.teacher_hidden, Head(given.teacher_weight))
    elif name in ("sparse", "sampled"):
        from stillhouse.models.signals import SparseSignal

        kind = SparseSignal if name == "sparse" else SampledSignal
        signal = kind(*stored(given, name))
        of = of if name == "sparse" else Divergence("cross_entropy")
    elif name == "trl":
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        def trl() -> Tensor:
            loss: Tensor = _chunked_divergence_loss(
                given.hidden[None],
                given.teacher_hidden[None],
                given.weight,
                given.teacher_weight,
                valid[None],
                0.0,
                num_items_in_batch=1,
            )[0]
            return loss

        return trl
    elif name == "dense":
        from trl.experimental.gkd import GKDTrainer

        def dense() -> Tensor:
            with torch.no_grad():
                teacher = linear(given.teacher_hidden, given.teacher_weight)
            loss: Tensor = GKDTrainer.generalized_jsd_loss(
                linear(given.hidden, given.weight)[None],
                teacher[None],
                labels=given.targets[None],
                beta=0,
                num_items_in_batch=1,
            )
            return loss

        return dense
    else:

        def over_valid() -> Tensor:
            with torch.no_grad():
                teacher = linear(given.teacher_hidden[valid], given.teacher_weight)
            return forward_kl(teacher, linear(given.hidden[valid], given.weight)).total

        return over_valid

    def ours() -> Tensor:
        return fused_soft_target_loss(
            given.hidden, head, given.targets, signal, num_items=1, of=of, **soft
        ).loss

    return ours


def work(name: str, size: tuple[int, int, int], threads: int, kept: Path) -> None:
    """A contender's process; its first loss and gradients are left in `kept`."""
    torch.set_num_threads(threads)
    given = inputs(*size)
    loss_of = contender(name, given)

    def run() -> Mapping[str, Any]:
        given.hidden.grad = given.weight.grad = None
        loss = loss_of()
        loss.backward()
        return {"loss": float(loss.detach())}

    def first_then_run() -> Mapping[str, Any]:
        found = run()
        if not kept.exists():
            torch.save((given.hidden.grad, given.weight.grad), kept)
        return found

    serve(first_then_run)


def compare(folder: Path, other: str) -> dict[str, float]:
    """Largest difference of gradients, over the largest gradient."""
    ours = torch.load(folder / "ours.pt", weights_only=True)
    theirs = torch.load(folder / f"{other}.pt", weights_only=True)
    worst = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, theirs, strict=True)]
    return {"hidden": worst[0], "weight": worst[1]}


def measure(size: tuple[int, int, int], arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders at one size."""
    # twice: the others' inputs are in memory too, and one that swaps is not measured
    needed = 2 * size[0] * size[2] * 4 * DENSE_BUFFERS
    left_out = [] if needed < psutil.virtual_memory().available else ["dense"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands = {
            who: [
                sys.executable,
                __file__,
                "--worker",
                json.dumps([who, size, arguments.threads, str(folder / f"{who}.pt")]),
            ]
            for who in arguments.only
            if who not in left_out
        }
        found = interleaved(commands, arguments.rounds)
        apart = {who: compare(folder, who) for who in ("trl", "dense", "valid") if who in commands}
    ours = found["ours"]
    losses = {who: answers[0]["loss"] for who, answers in found.items()}
    for who, error in apart.items():
        assert math.isclose(losses[who], losses["ours"], rel_tol=1e-4), (who, losses)
        assert max(error.values()) < 1e-4, (who, error)
    return {
        "positions, hidden, vocabulary": list(size),
        "contenders": {who: summary(answers, arguments.clock) for who, answers in found.items()},
        "times faster": {
            f"ours than {who}": speedup(found[who], ours, arguments.clock)
            for who in ("trl", "dense", "valid")
            if who in found
        }
        | {
            f"{who} than {peer}": speedup(found[peer], found[who], arguments.clock)
            for who in ("sparse", "sampled")
            for peer in ("ours", "trl")
            if who in found and peer in found
        },
        "share of the memory": {
            f"ours of {who}": summary(ours)["added_mib"] / summary(found[who])["added_mib"]
            for who in ("trl", "dense", "valid")
            if who in found
        },
        "relative difference of gradients": apart,
        "losses": losses,
        "left out for want of memory": left_out,
    }


def main() -> None:
    """Measure each size, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("seconds", "cpu_seconds"), default="seconds")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--size", choices=list(SIZES), nargs="+", default=list(SIZES))
    parser.add_argument("--worker")
    arguments = parser.parse_args()
    if arguments.worker:
        name, size, threads, kept = json.loads(arguments.worker)
        work(name, tuple(size), threads, Path(kept))
        return
    sizes = SMALL if arguments.small else {name: SIZES[name] for name in arguments.size}
    result = {name: measure(size, arguments) for name, size in sizes.items()}
    if arguments.small or arguments.only != list(CONTENDERS) or arguments.size != list(SIZES):
        print(json.dumps(result, indent=2))
        return
    save(
        "fused_divergence",
        f"python benchmarks/fused_divergence.py --rounds {arguments.rounds} "
        f"--threads {arguments.threads} --clock {arguments.clock}",
        {**package_versions("trl"), "threads": arguments.threads, **result},
    )


if __name__ == "__main__":
    main()
