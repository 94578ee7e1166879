"""What is learned or remembered beside a student while it trains: linear maps, weights of terms.

It sits in the student as the module `distillation`, so that optimizer, devices and data-parallel
wrapping see it, and is written into each checkpoint as a file of its own: a student's own weights
never hold it, and the saved student is a plain model. Knows no term and no trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

NAME: Final = "distillation"
FILE: Final = f"{NAME}.safetensors"


class Rate(NamedTuple):
    """Weights with a learning rate of their own."""

    weights: tuple[nn.Parameter, ...]
    learning_rate: float
    decays: bool


class Parts(nn.Module):
    """Linear maps by name, and tensors of the balance of terms (learned ones are parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleDict()
        self.balance = nn.Module()
        self._rates: list[tuple[nn.Module, float, bool]] = []

    def add_map(self, name: str, inputs: int, outputs: int, rate: float, seed: int) -> nn.Linear:
        """A new linear map with bias; its first weights depend on the seed and its place alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + len(self.maps))
            made = nn.Linear(inputs, outputs)
        self.maps[name] = made
        self._rates.append((made, rate, True))
        return made

    def hold(self, name: str, module: nn.Module, rate: float) -> None:
        """Modules of the user's own, to be learned as they are handed over."""
        self.maps[name] = module
        self._rates.append((module, rate, True))

    def add_balance(self, balance: nn.Module, rate: float) -> None:
        """The balance of terms; what it learns by gradient has a rate of its own and no decay."""
        self.balance = balance
        self._rates.append((balance, rate, False))

    def rates(self) -> Sequence[Rate]:
        """All parameters, with their rates."""
        return [Rate(tuple(m.parameters()), rate, decays) for m, rate, decays in self._rates]

    def touch(self) -> torch.Tensor:
        """0, with a gradient of zeros for every parameter: data-parallel training waits for all."""
        found = [(weight * 0).sum() for weight in self.parameters()]
        return torch.stack(found).sum() if found else torch.zeros(())


def attach(model: nn.Module, parts: Parts) -> None:
    """Put the parts into a student."""
    model.add_module(NAME, parts)


@contextmanager
def set_aside(model: Any) -> Iterator[None]:
    """Inside, the student is without the parts: it is saved and loaded as what it is."""
    parts = model._modules.pop(NAME, None)
    try:
        yield
    finally:
        if parts is not None:
            model.add_module(NAME, parts)


def detach(model: Any) -> None:
    """Take the parts out of a student for good."""
    model._modules.pop(NAME, None)


def save_parts(folder: Path, parts: Parts) -> None:
    """Write all tensors into a checkpoint."""
    state = {key: value.detach().cpu().contiguous() for key, value in parts.state_dict().items()}
    save_file(state, folder / FILE)


def load_parts(folder: Path, parts: Parts) -> None:
    """Read what `save_parts` wrote."""
    parts.load_state_dict(load_file(folder / FILE))
