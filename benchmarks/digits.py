"""Hinton's digits: a small net taught by a large one against the same net on labels alone.

    python benchmarks/digits.py [--fashion] [--small] [--table]

After Hinton, Vinyals and Dean 2015 (arXiv:1503.02531, section 3), on the images of digits_data.py:

1. sweep: T from 1 to 20, alpha 0.9, for nets of two layers of 30 and of 100, and each alone; the
   same first weights, order of data and number of steps.
2. gain: two layers of 100 over 5 seeds, taught and alone, at the T that the sweep finds best on
   images that nobody trained on. Errors on the test images, paired.
3. omitted: one class is left out of what the student sees, and only two classes are shown to it,
   with soft targets alone. Then the omitted classes' output biases are raised by one number, found
   on the same images; beside it, as in the paper, the best for the test set.

Nothing is selected on the test set but what is said to be. Saves results/digits.json and
results/digits.svg, and brings the table in docs/distiller.md up to date; --table does that alone,
from the saved result. --fashion takes Fashion-MNIST instead, and saves results/digits_fashion.json.
--small is for trying: fewer seeds (and images), and nothing is saved.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from digits_data import Images, load
from digits_report import write_plot, write_table
from machine_line import RESULTS, save
from scipy import stats
from torch import Tensor, nn

from stillhouse import Distiller
from stillhouse.core.statistics import paired_difference

SMALL, MIDDLE = 30, 100
ALPHA = 0.9
SWEEP = (1.0, 2.0, 3.0, 4.0, 8.0, 20.0)
OMITTED, SHOWN = (3,), (7, 8)  # the paper's
OMITTED_TEMPERATURE = 4.0  # the paper does not say
VALIDATION = 5000


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int | None
    teacher_epochs: int
    epochs: int
    seeds: int
    sweep_seeds: int
    sweep: Sequence[float]
    batch: int = 64
    rate: float = 1e-3


FULL = Size(None, 20, 30, 5, 2, SWEEP)
TRY = Size(None, 20, 30, 2, 1, (1.0, 4.0, 20.0))
FASHION = Size(None, 8, 12, 5, 2, SWEEP, 256, 2e-3)
TRY_FASHION = Size(16_000, 8, 12, 2, 1, (1.0, 4.0, 20.0), 128)


@dataclass(frozen=True)
class Known:
    """The images, and what the teacher believes of those trained on."""

    train: Tensor  # [N, 1, 28, 28]
    labels: Tensor  # [N]
    beliefs: Tensor  # [N, 10], log-probabilities
    watch: Tensor  # nobody trains on these
    watch_labels: Tensor
    test: Tensor
    test_labels: Tensor


def large() -> nn.Module:
    """A convolutional net of 0.8M weights, with dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(64 * 49, 256), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(256, 10),
    )  # fmt: skip


def small(width: int, seed: int) -> nn.Sequential:
    """Two hidden layers of `width`, no regularisation; first weights by seed."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, width), nn.ReLU(),
        nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


def trained(
    net: nn.Module,
    data: Any,
    size: Size,
    *,
    alpha: float,
    temperature: float,
    epochs: int,
    seed: int,
) -> nn.Module:
    """The last weights of a run of fixed length."""
    Distiller(
        net,
        alpha=alpha,
        distillation_temperature=temperature,
        epochs=epochs,
        batch_size=size.batch,
        learning_rate=size.rate,
        weight_decay=0.0,
        seed=seed,
    ).fit(data)
    return net.eval()


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    """[N, 10]."""
    return torch.cat([net(part) for part in images.split(1000)])


def know(images: Images, size: Size) -> tuple[Known, dict[str, Any]]:
    """Train the teacher, and read the training images with it, once."""
    train, labels = images.train[: size.images], images.train_labels[: size.images]
    cut = len(train) - min(VALIDATION, len(train) // 7)
    torch.manual_seed(0)
    data = train[:cut], labels[:cut]
    teacher = trained(
        large(), data, size, alpha=0.0, temperature=1.0, epochs=size.teacher_epochs, seed=0
    )
    known = Known(
        train[:cut], labels[:cut], logits(teacher, train[:cut]).log_softmax(-1),
        train[cut:], labels[cut:], images.test, images.test_labels,
    )  # fmt: skip
    wrong = int((logits(teacher, known.test).argmax(-1) != known.test_labels).sum())
    facts = {
        "weights": sum(p.numel() for p in teacher.parameters()),
        "errors": wrong,
        "train_agreement": float((known.beliefs.argmax(-1) == known.labels).float().mean()),
    }
    return known, facts


class Students:
    """Trains each student once, and remembers which test images it gets right."""

    def __init__(self, known: Known, size: Size) -> None:
        self._known, self._size = known, size
        self._done: dict[tuple[int, int, float | None], list[float]] = {}
        self._watched: dict[tuple[int, int, float | None], int] = {}

    def right(self, width: int, seed: int, temperature: float | None) -> list[float]:
        """1.0 for each test image it gets right; temperature `None` is on labels alone."""
        key = width, seed, temperature
        if key not in self._done:
            known = self._known
            data = {"inputs": known.train, "labels": known.labels, "teacher_logits": known.beliefs}
            alpha = 0.0 if temperature is None else ALPHA
            net = small(width, seed)
            trained(
                net,
                data,
                self._size,
                alpha=alpha,
                temperature=temperature or 1.0,
                epochs=self._size.epochs,
                seed=seed,
            )
            found = logits(net, known.test).argmax(-1) == known.test_labels
            self._done[key] = found.double().tolist()
            watched = logits(net, known.watch).argmax(-1) != known.watch_labels
            self._watched[key] = int(watched.sum())
            print(
                f"width {width} seed {seed} T {temperature}: {self.errors(*key)} errors", flush=True
            )
        return self._done[key]

    def watched(self, width: int, seed: int, temperature: float | None) -> int:
        """Images that nobody trained on, and that are no test images, that it gets wrong."""
        self.right(width, seed, temperature)
        return self._watched[width, seed, temperature]

    def errors(self, width: int, seed: int, temperature: float | None) -> int:
        """Test images it gets wrong."""
        right = self.right(width, seed, temperature)
        return len(right) - round(sum(right))


def gain(students: Students, temperature: float, seeds: int) -> dict[str, Any]:
    """Taught against alone, by seed; the mean gain with intervals over seeds and over images."""
    rows = [
        {
            "seed": seed,
            "taught": students.errors(MIDDLE, seed, temperature),
            "alone": students.errors(MIDDLE, seed, None),
        }
        for seed in range(seeds)
    ]
    fewer = [row["alone"] - row["taught"] for row in rows]
    mean = sum(fewer) / seeds
    spread = math.sqrt(sum((x - mean) ** 2 for x in fewer) / (seeds - 1))
    half = float(stats.t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)

    def by_image(taught_at: float | None) -> list[float]:
        runs = [students.right(MIDDLE, seed, taught_at) for seed in range(seeds)]
        return [sum(image) / seeds for image in zip(*runs, strict=True)]

    return {
        "width": MIDDLE,
        "alpha": ALPHA,
        "distillation_temperature": temperature,
        "per seed": rows,
        "fewer errors": {"mean": mean, "low": mean - half, "high": mean + half, "over": "seeds, t"},
        "accuracy gain": paired_difference(by_image(temperature), by_image(None)).to_json(),
    }


def sweep(students: Students, size: Size) -> list[dict[str, Any]]:
    """Mean errors over the sweep's seeds for each width and T, and alone."""
    rows = []
    for width in (SMALL, MIDDLE):
        for temperature in (None, *size.sweep):
            runs = [(width, seed, temperature) for seed in range(size.sweep_seeds)]
            errors = [students.errors(*run) for run in runs]
            watched = [students.watched(*run) for run in runs]
            row: dict[str, Any] = {"width": width, "T": temperature}
            row["errors"] = sum(errors) / len(errors)
            row |= {"validation": sum(watched) / len(watched), "per seed": errors}
            rows.append(row)
    return rows


def chosen(rows: Sequence[Mapping[str, Any]]) -> float:
    """The T with the fewest errors on the validation images, for the wider net."""
    taught = [row for row in rows if row["width"] == MIDDLE and row["T"] is not None]
    return float(min(taught, key=lambda row: row["validation"])["T"])


def omitted(
    known: Known, size: Size, seen: Tensor, lifted: Sequence[int], temperature: float
) -> dict[str, Any]:
    """Train on the images in `seen` ([N] bool), then raise the biases of the classes `lifted`."""
    data = {"inputs": known.train[seen], "teacher_logits": known.beliefs[seen]}
    data["labels"] = known.labels[seen]
    rows = []
    for seed in range(size.sweep_seeds):
        net = small(MIDDLE, seed)
        epochs = round(size.epochs * len(known.train) / int(seen.sum()))  # as many steps as on all
        trained(net, data, size, alpha=1.0, temperature=temperature, epochs=epochs, seed=seed)
        watch, test = logits(net, known.watch), logits(net, known.test)
        found = _best_bias(watch, known.watch_labels, lifted)
        fitted = _best_bias(test, known.test_labels, lifted)
        rows.append(
            {
                "seed": seed,
                "as trained": _errors(test, known.test_labels, lifted, 0.0),
                "bias from validation": _errors(test, known.test_labels, lifted, found),
                "bias best for test": _errors(test, known.test_labels, lifted, fitted),
            }
        )
        print(rows[-1], flush=True)
    return {"width": MIDDLE, "T": temperature, "images": int(seen.sum()), "per seed": rows}


def _lift(found: Tensor, lifted: Sequence[int], bias: float) -> Tensor:
    found = found.clone()
    found[:, list(lifted)] += bias
    return found.argmax(-1)


def _best_bias(found: Tensor, labels: Tensor, lifted: Sequence[int]) -> float:
    tried = [step / 10 for step in range(-50, 201)]
    return min(tried, key=lambda b: int((_lift(found, lifted, b) != labels).sum()))


def _errors(found: Tensor, labels: Tensor, lifted: Sequence[int], bias: float) -> dict[str, float]:
    wrong = _lift(found, lifted, bias) != labels
    of_these = torch.isin(labels, torch.tensor(lifted))
    return {
        "bias": bias,
        "errors": int(wrong.sum()),
        "errors on them": int(wrong[of_these].sum()),
        "of": int(of_these.sum()),
    }


def measured(size: Size, fashion: bool) -> Mapping[str, Any]:
    """All three claims."""
    started = time.perf_counter()
    images = load(fashion)
    known, teacher = know(images, size)
    print(f"teacher: {teacher}", flush=True)
    students = Students(known, size)
    rows = sweep(students, size)
    temperature = chosen(rows)
    without = ~torch.isin(known.labels, torch.tensor(OMITTED))
    only = torch.isin(known.labels, torch.tensor(SHOWN))
    hidden = [c for c in range(10) if c not in SHOWN]
    return {
        "data": images.name,
        "images": {"train": len(known.train), "test": len(known.test)},
        "teacher": teacher,
        "gain": gain(students, temperature, size.seeds),
        "sweep": rows,
        "class omitted": {
            "omitted": OMITTED,
            **omitted(known, size, without, OMITTED, OMITTED_TEMPERATURE),
        },
        "two classes shown": {
            "shown": SHOWN,
            **omitted(known, size, only, hidden, OMITTED_TEMPERATURE),
        },
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Measure, save, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few images; nothing is saved")
    parser.add_argument("--table", action="store_true", help="redraw from the saved result")
    parser.add_argument("--fashion", action="store_true", help="Fashion-MNIST, not the digits")
    arguments = parser.parse_args()
    if arguments.small:
        size = TRY_FASHION if arguments.fashion else TRY
        print(json.dumps(measured(size, arguments.fashion), indent=2))
        return
    if arguments.fashion:
        command = "python benchmarks/digits.py --fashion"
        save("digits_fashion", command, measured(FASHION, True))
        return
    if not arguments.table:
        save("digits", "python benchmarks/digits.py", measured(FULL, False))
    result = json.loads((RESULTS / "digits.json").read_text(encoding="utf-8"))
    write_plot(result, RESULTS / "digits.svg")
    write_table(result)


if __name__ == "__main__":
    main()
