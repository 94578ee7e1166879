"""The stages of an image recipe: a teacher, students at each T and seed beside ones on labels
alone, and their scores.

T is chosen on images that nobody learns from; the test images choose nothing. Knows the recipe and
its folders, in which a killed stage goes on net by net.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_json, write_json
from stillhouse.core.progress import Progress
from stillhouse.core.recipe_images import ImageRecipe, NetSection
from stillhouse.core.runfolder import Outcome
from stillhouse.core.statistics import paired_difference, paired_ratio, proportion
from stillhouse.models.divergence_kind import divergence_of
from stillhouse.train.distiller import Distiller
from stillhouse.train.image_data import ImageSet, Parts, parts_of, read_images
from stillhouse.train.image_nets import Net, Sizes, build_net, logits_of, save_net
from stillhouse.train.module_weights import load_module
from stillhouse.train.schedule import plan_schedule

BELIEFS: Final = "beliefs.safetensors"
RESULT: Final = "result.json"
SPEED: Final = "speed.json"
FINE_TUNING_RATE: Final = 2e-5
LOOKS: Final = 6  # at the validation images; the weights of the best are kept


def read_parts(recipe: ImageRecipe) -> Parts:
    """The recipe's images, divided.

    Raises:
        DataError: files that cannot be used.
    """
    section = recipe.images
    return parts_of(
        read_images(Path(section.train), "images.train"),
        read_images(Path(section.test), "images.test"),
        share=section.validation,
        limit=section.limit,
        seed=recipe.seed,
    )


def check_image_nets(recipe: ImageRecipe) -> None:
    """Build both nets and have them read two images, before either is trained.

    Raises:
        DataError: files that cannot be used.
        UserError: a net that cannot be built, or that cannot read these images.
    """
    parts = read_parts(recipe)
    for field, section in (("teacher.from", recipe.teacher), ("student.from", recipe.student)):
        net = _net(section, parts, recipe.seed)
        try:
            found = tuple(logits_of(net, parts.train.pixels[:2]).shape)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                field, f"cannot read these images: {error}", value=section.source,
                action="give a net for images of this size and these channels",
            ) from None  # fmt: skip
        if found != (2, parts.classes):
            raise UserError(
                field,
                f"answers two images with {list(found)} numbers, not [2, {parts.classes}]",
                value=section.source,
            )


def planned_images(recipe: ImageRecipe) -> dict[str, Any]:
    """What will be trained, once both nets are seen to read these images.

    Raises:
        UserError: as `check_image_nets`.
    """
    check_image_nets(recipe)
    parts, train = read_parts(recipe), recipe.train

    def net_of(section: NetSection) -> dict[str, Any]:
        steps = 0
        if section.epochs > 0:
            count, batch = len(parts.train.labels), train.batch_size
            looks = _looks(section)
            steps = plan_schedule(count, batch, train.micro_batch_size, section.epochs, looks).steps
        net = _net(section, parts, recipe.seed)
        return {"source": section.source, "parameters": _count(net), "steps": steps}

    return {
        "teacher": net_of(recipe.teacher),
        "student": net_of(recipe.student),
        "students": train.seeds * (len(train.temperatures) + train.alone),
        "train": len(parts.train.labels),
        "validation": len(parts.validation.labels),
        "test": len(parts.test.labels),
        "classes": parts.classes,
    }


def _looks(section: NetSection) -> int:
    return max(1, min(LOOKS, round(section.epochs)))


def run_image_teacher(recipe: ImageRecipe, work: Path, progress: Progress) -> Outcome:
    """Train the teacher on labels, and write down what it believes of every image.

    Leaves `model.safetensors`, and `beliefs.safetensors`: logits [N, classes] of train, validation
    and test.
    """
    parts = read_parts(recipe)
    net = _net(recipe.teacher, parts, recipe.seed)
    if recipe.teacher.epochs > 0:
        progress.say(
            f"      teacher: {_count(net):,} parameters, {len(parts.train.labels):,} images"
        )
        _fit(recipe, recipe.teacher, net, parts, None, 0.0, recipe.seed, work / "run", progress)
    else:
        progress.say(
            f"      teacher: {_count(net):,} parameters, taken as it is: its label k is taken to "
            f"be class k of the images (label 0: {_label(net)})"
        )
    save_net(net.cpu(), work)
    sets = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    beliefs = {name: logits_of(net, part.pixels) for name, part in sets.items()}
    save_file(beliefs, work / BELIEFS)
    shutil.rmtree(work / "run", ignore_errors=True)
    right = (beliefs["test"].argmax(-1) == parts.test.labels).double()
    return Outcome(summary={"parameters": _count(net), "accuracy": float(right.mean())})


def run_image_students(
    recipe: ImageRecipe, teacher: Path, work: Path, progress: Progress
) -> Outcome:
    """Train a student for each T and seed, and without a teacher; keep the best T's on validation.

    Leaves `students/NAME/` (result.json, logits), and `student/`: the kept one's weights.
    """
    parts = read_parts(recipe)
    beliefs = load_file(teacher / BELIEFS)
    train = recipe.train
    ways: list[float | None] = [*train.temperatures, *([None] if train.alone else [])]
    rows: list[dict[str, Any]] = []
    for temperature in ways:
        for seed in range(recipe.seed, recipe.seed + train.seeds):
            folder = work / "students" / _name(temperature, seed)
            if not (folder / RESULT).exists():
                net = _net(recipe.student, parts, seed)
                taught = None if temperature is None else beliefs
                t = temperature or 1.0
                _fit(recipe, recipe.student, net, parts, taught, t, seed, folder / "run", progress)
                _score(net, parts, beliefs, folder)
            rows.append({"T": temperature, "seed": seed, **read_json(folder / RESULT)})
            progress.say(
                f"      {folder.name}: {rows[-1]['errors']:,} errors of {len(parts.test.labels):,}"
            )
    best = chosen([row for row in rows if row["T"] is not None])
    kept = min(
        (row for row in rows if row["T"] == best), key=lambda r: (r["validation_errors"], r["seed"])
    )
    source = work / "students" / _name(best, int(kept["seed"]))
    _keep(source, work / "student", _net(recipe.student, parts, int(kept["seed"])))
    for row in rows:
        shutil.rmtree(work / "students" / _name(row["T"], row["seed"]) / "run", ignore_errors=True)
    write_json(work / "students.json", {"chosen_T": best, "kept_seed": kept["seed"], "rows": rows})
    return Outcome(summary={"chosen_T": best, "students": len(rows)})


def run_image_evaluate(recipe: ImageRecipe, teacher: Path, students: Path, work: Path) -> Outcome:
    """Score teacher, students of the chosen T (all seeds) and students without a teacher.

    Leaves `evaluation.json`, and `speed.json`, which is measured.
    """
    parts = read_parts(recipe)
    known = read_json(students / "students.json")
    rows: Any = known["rows"]
    beliefs = load_file(teacher / BELIEFS)["test"]
    best, labels = known["chosen_T"], parts.test.labels
    guard: dict[str, Any] = {"resamples": recipe.evaluate.resamples, "seed": recipe.seed}
    sure = recipe.evaluate.confidence
    right = {
        "teacher": [float(x) for x in beliefs.argmax(-1) == labels],
        "student": _by_image(students, rows, best, labels),
    }
    if recipe.train.alone:
        right["alone"] = _by_image(students, rows, None, labels)
    agreed = _by_image(students, rows, best, beliefs.argmax(-1))
    found: dict[str, Any] = {
        "test": len(labels),
        "classes": parts.classes,
        "chosen_T": best,
        "accuracy": {
            name: proportion(values, sure, **guard).to_json() for name, values in right.items()
        },
        "agreement": proportion(agreed, sure, **guard).to_json(),
        "retention": paired_ratio(right["student"], right["teacher"], sure, **guard).to_json(),
        "by_T": [
            {
                "T": temperature,
                "errors": fmean(r["errors"] for r in rows if r["T"] == temperature),
                "validation_errors": fmean(
                    r["validation_errors"] for r in rows if r["T"] == temperature
                ),
                "divergence": fmean(r["divergence"] for r in rows if r["T"] == temperature),
            }
            for temperature in dict.fromkeys(row["T"] for row in rows)
        ],
    }
    if "alone" in right:
        gain = paired_difference(right["student"], right["alone"], sure, **guard)
        found["gain_of_teaching"] = gain.to_json()
    nets = {
        "teacher": _loaded(recipe.teacher, parts, recipe.seed, teacher),
        "student": _loaded(
            recipe.student, parts, int(str(known["kept_seed"])), students / "student"
        ),
    }
    found["parameters"] = {name: _count(net) for name, net in nets.items()}
    found["size_bytes"] = {
        name: (folder / "model.safetensors").stat().st_size
        for name, folder in (("teacher", teacher), ("student", students / "student"))
    }
    write_json(work / "evaluation.json", found)
    write_json(work / SPEED, _speed(recipe, nets, parts.test.pixels))
    summary = {name: value["estimate"] for name, value in found["accuracy"].items()}
    return Outcome(summary=summary, measured=frozenset({SPEED}))


def chosen(rows: Sequence[Mapping[str, Any]]) -> float:
    """The T with the fewest errors on validation, by the mean over seeds; of equals the lowest."""
    temperatures = sorted({float(row["T"]) for row in rows})
    return min(
        temperatures, key=lambda t: fmean(r["validation_errors"] for r in rows if r["T"] == t)
    )


def _fit(  # noqa: PLR0917 - one training
    recipe: ImageRecipe,
    section: NetSection,
    net: Net,
    parts: Parts,
    beliefs: Mapping[str, Tensor] | None,
    temperature: float,
    seed: int,
    folder: Path,
    progress: Progress,
) -> None:
    train = recipe.train
    rate = section.learning_rate
    if rate is None and section.source.startswith("hf:"):
        rate = FINE_TUNING_RATE
    distiller = Distiller(
        net,
        alpha=0.0 if beliefs is None else train.alpha,
        distillation_temperature=temperature or 1.0,
        divergence=divergence_of(train.divergence, train.divergence_beta),
        epochs=section.epochs,
        evals=_looks(section),
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        learning_rate=rate,
        schedule=train.schedule,
        weight_decay=train.weight_decay,
        precision=train.precision,
        device=train.device,
        patience=None,
        seed=seed,
        folder=folder,
        progress=progress,
    )
    distiller.fit(
        _data(parts.train, beliefs, "train"), _data(parts.validation, beliefs, "validation")
    )


def _data(part: ImageSet, beliefs: Mapping[str, Tensor] | None, name: str) -> dict[str, Tensor]:
    data = {"inputs": part.pixels, "labels": part.labels}
    return data if beliefs is None else {**data, "teacher_logits": beliefs[name]}


def _score(net: Net, parts: Parts, beliefs: Mapping[str, Tensor], folder: Path) -> None:
    """Weights, test logits and, last, the figures of a student."""
    test, watched = (logits_of(net, part.pixels) for part in (parts.test, parts.validation))
    save_net(net.cpu(), folder)
    save_file({"test": test}, folder / BELIEFS)
    log_p, log_q = beliefs["test"].log_softmax(-1), test.log_softmax(-1)
    write_json(
        folder / RESULT,
        {
            "errors": int((test.argmax(-1) != parts.test.labels).sum()),
            "validation_errors": int((watched.argmax(-1) != parts.validation.labels).sum()),
            "divergence": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        },
    )


def _by_image(
    students: Path, rows: Sequence[Mapping[str, Any]], temperature: Any, wanted: Tensor
) -> list[float]:
    """For each test image the share of the seeds whose student says what is wanted."""
    found = [
        load_file(students / "students" / _name(temperature, int(row["seed"])) / BELIEFS)["test"]
        for row in rows
        if row["T"] == temperature
    ]
    hits = torch.stack([(logits.argmax(-1) == wanted).double() for logits in found])
    return [float(x) for x in hits.mean(0)]


def _keep(source: Path, target: Path, net: Net) -> None:
    """Copy the weights of one student, whole or not at all, in the form that others can load."""
    partial = target.with_name(target.name + ".partial")
    for old in (partial, target):
        shutil.rmtree(old, ignore_errors=True)
    load_module(net, source)
    save_net(net, partial)
    os.replace(partial, target)


def _speed(recipe: ImageRecipe, nets: Mapping[str, Net], pixels: Tensor) -> dict[str, object]:
    """Images a second, each net in turn, so that both see the same machine."""
    some = pixels[: recipe.evaluate.speed_images]
    rates: dict[str, list[float]] = {name: [] for name in nets}
    for repeat in range(recipe.evaluate.speed_repeats + 1):
        for name, net in nets.items():
            started = time.perf_counter()
            logits_of(net, some, batch=64)
            if repeat:  # the first warms up
                rates[name].append(len(some) / (time.perf_counter() - started))
    ratios = sorted(s / t for s, t in zip(rates["student"], rates["teacher"], strict=True))
    return {
        "images_per_second": {
            name: sorted(found)[len(found) // 2] for name, found in rates.items()
        },
        "times_as_fast": {
            "estimate": ratios[len(ratios) // 2],
            "slowest": ratios[0],
            "fastest": ratios[-1],
        },
    }


def _net(section: NetSection, parts: Parts, seed: int) -> Net:
    _, channels, height, width = parts.train.pixels.shape
    sizes = Sizes(channels, height, width, parts.classes)
    return build_net(section, sizes, parts.train.pixels, seed)


def _loaded(section: NetSection, parts: Parts, seed: int, folder: Path) -> Net:
    net = _net(section, parts, seed)
    load_module(net, folder)
    return net


def _label(net: Net) -> str:
    body: Any = net.body
    return str(body.config.id2label[0])


def _count(net: Net) -> int:
    return sum(weight.numel() for weight in net.parameters())


def _name(temperature: float | None, seed: int) -> str:
    return f"alone-{seed}" if temperature is None else f"T{temperature:g}-{seed}"
