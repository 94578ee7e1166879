"""Three libraries as oracles: TRL, Liger Kernel and NVIDIA ModelOpt, each by its own convention.

docs/divergences.md has the table of conventions that the calls below spell out. TRL runs here; the
other two in an environment of their own, made once under `.cache/` (two minutes, and an index).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.models.divergence import soft_target_loss
from stillhouse.models.divergence_kind import Divergence
from stillhouse.models.signals import DenseSignal

pytestmark = pytest.mark.full
HERE = Path(__file__).parent
PINS = HERE / "peer_divergences.txt"
N, H, V = 11, 5, 17
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
TEMPERATURES = [1.0, 2.5]


def tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    made = {
        name: torch.randn(rows, H, generator=g, dtype=torch.float64)
        for name, rows in (
            ("student_hidden", N),
            ("student_weight", V),
            ("teacher_hidden", N),
            ("teacher_weight", V),
        )
    }
    made["targets"] = torch.randint(0, V, (N,), generator=g)
    made["targets"][[1, 4, 5]] = -100
    return made


def ours(of: Divergence, t: float, alpha: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss over the valid targets, and the gradients of the student's states and weight."""
    made = tensors()
    states = made["student_hidden"].requires_grad_(True)
    weight = made["student_weight"].requires_grad_(True)
    loss = soft_target_loss(
        states @ weight.T,
        made["targets"],
        DenseSignal(made["teacher_hidden"] @ made["teacher_weight"].T),
        alpha=alpha,
        distillation_temperature=t,
        num_items=int((made["targets"] != -100).sum()),
        of=of,
    ).loss
    loss.backward()
    assert states.grad is not None
    assert weight.grad is not None
    return loss.detach(), states.grad, weight.grad


def assert_equal(
    found: tuple[Any, Any, Any],
    wanted: tuple[Any, Any, Any],
    scale: float,
    rtol: float = 1e-9,
) -> None:
    """`wanted` times `scale` is `found`."""
    for got, right in zip(found, wanted, strict=True):
        got, right = (torch.as_tensor(x, dtype=torch.float64) for x in (got, right))
        torch.testing.assert_close(got, right * scale, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", TEMPERATURES)
def test_trl(beta: float, t: float) -> None:
    """Student first, one beta direction, no T^2; `batchmean` with labels is our mean."""
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    made = tensors()
    states = made["student_hidden"].requires_grad_(True)
    weight = made["student_weight"].requires_grad_(True)
    loss = gkd.GKDTrainer.generalized_jsd_loss(
        (states @ weight.T)[None],
        (made["teacher_hidden"] @ made["teacher_weight"].T)[None],
        labels=made["targets"][None],
        beta=beta,
        temperature=t,
    )
    loss.backward()
    assert_equal(
        (loss.detach(), states.grad, weight.grad), ours(Divergence("jsd", beta), t), 1 / t**2
    )


@pytest.fixture(scope="module")
def peer_python() -> Path:
    """An interpreter with the pinned peers."""
    folder = Path(os.environ.get("STILLHOUSE_PEERS", HERE.parents[1] / ".cache")) / "peer-losses"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists() or ready.read_text() != PINS.read_text():
        venv.create(folder, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        lines = [line for line in PINS.read_text().split("\n") if line and line[0] != "#"]
        bare = [line for line in lines if line.startswith(("liger-kernel", "nvidia-modelopt"))]
        for packages in (
            ["torch==2.13.0"],
            [x for x in lines if x not in bare],
            ["--no-deps", *bare],
        ):
            done = subprocess.run(
                [*install, *packages], check=False, capture_output=True, text=True, timeout=1200
            )
            if done.returncode:
                tail = done.stderr.strip().split("\n")[-1]
                pytest.skip(f"no environment with Liger Kernel and ModelOpt can be made: {tail}")
        ready.write_text(PINS.read_text())
    return python


@pytest.fixture(scope="module")
def answers(
    peer_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[Any, ...], tuple[Any, Any, Any]]:
    """What the peers say, by library, beta or reduction, temperature, weight of hard targets."""
    cases = [
        {"library": "liger", "beta": beta, "temperature": t, "hard": hard, "soft": 1.0 - hard}
        for beta in BETAS
        for t in TEMPERATURES
        for hard in (0.0, 0.25)
    ] + [
        {"library": "modelopt", "temperature": t, "reduction": reduction}
        for t in TEMPERATURES
        for reduction in ("none", "batchmean", "mean")
    ]
    folder = tmp_path_factory.mktemp("peers")
    request, answer = folder / "request.json", folder / "answer.json"
    asked = {"tensors": {k: x.tolist() for k, x in tensors().items()}, "cases": cases}
    request.write_text(json.dumps(asked))
    script = [str(peer_python), str(HERE / "peer_divergences.py"), str(request), str(answer)]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(script, check=True, timeout=600, env=clean, stdout=sys.stderr)
    return {
        (
            case["library"],
            case.get("beta", case.get("reduction")),
            case["temperature"],
            case.get("hard"),
        ): (found["loss"], found["hidden_gradient"], found["weight_gradient"])
        for case, found in zip(cases, json.loads(answer.read_text()), strict=True)
    }


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("hard", [0.0, 0.25])
def test_liger(beta: float, t: float, hard: float, answers: Any) -> None:
    """The same beta, mean over valid targets, no T^2: its soft weight is our alpha T^2. It sums,
    and takes the hard term, in float32 whatever it is given."""
    soft, cross = (ours(Divergence("jsd", beta), t, alpha) for alpha in (1.0, 0.0))
    wanted = tuple((1 - hard) * a / t**2 + hard * b for a, b in zip(soft, cross, strict=True))
    assert_equal(answers["liger", beta, t, hard], wanted, 1.0, rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["none", "batchmean", "mean"])
def test_modelopt(t: float, reduction: str, answers: Any) -> None:
    """Student first, T^2 inside. `none` gives one value a position; `batchmean` divides by rows,
    masked or not; `mean`, the default, by rows times vocabulary too."""
    found = answers["modelopt", reduction, t, None]
    if reduction == "none":
        valid = int((tensors()["targets"] != -100).sum())
        assert_equal(found, ours(Divergence(), t), valid)
        return
    made = tensors()
    states = made["student_hidden"].requires_grad_(True)
    weight = made["student_weight"].requires_grad_(True)
    loss = soft_target_loss(
        states @ weight.T,
        made["targets"].clamp_min(0),
        DenseSignal(made["teacher_hidden"] @ made["teacher_weight"].T),
        alpha=1.0,
        distillation_temperature=t,
        num_items=N,
    ).loss
    loss.backward()
    scale = 1.0 if reduction == "batchmean" else 1.0 / V
    assert_equal(found, (loss.detach(), states.grad, weight.grad), scale)
