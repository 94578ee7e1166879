"""What training on the grid, and healing, win back: a label student quantized or pruned, with and
without a further distillation.

    python benchmarks/quantization_aware.py --run-dir runs/quickstart [--epochs 1]

The student of a finished run is taken as it is. Quantized: rounded at once, and after
quantization-aware distillation, both by the same export (onnxruntime's dynamic INT8 where it is
installed, and the same integers computed in torch; 4-bit weights in torch alone). Pruned: half of
the weights at once, and after healing, unstructured and 2:4. A float student that is trained
further for as long stands beside them: what only more training brings is not the method's. Scored
on the golden set's true labels; differences are paired, query by query.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine_line import save

from stillhouse.core.jsonl import read_records
from stillhouse.core.optional import available, require
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_prune import PruneSection
from stillhouse.core.records import Example, LabelledQuery
from stillhouse.core.statistics import bootstrap_mean, paired_difference
from stillhouse.core.tasks import ClassificationTask
from stillhouse.models.completer import Sampling
from stillhouse.models.student import open_student
from stillhouse.pipeline import read_run_recipe
from stillhouse.train.fake_quant import ONNX_INT8, QuantScheme, quantized
from stillhouse.train.further import open_trained
from stillhouse.train.heads import classes_of
from stillhouse.train.heal import Place, go_on
from stillhouse.train.prune import Pruning, run_prune
from stillhouse.train.quantize import distil_quantized
from stillhouse.train.students import Student, save_student

SCHEMES = {
    "int8": ONNX_INT8,
    "int8 in 8 bits": QuantScheme(tables="row", head=False),
    "int4, groups of 128": QuantScheme(bits=4, group=128, activations=False, tables="float"),
}
PRUNINGS = {
    "half": PruneSection(kind="unstructured", share=0.5),
    "half, by activation": PruneSection(kind="unstructured", share=0.5, importance="activation"),
    "2:4": PruneSection(kind="2:4"),
    "2:4, by activation": PruneSection(kind="2:4", importance="activation"),
}


class Free:
    """Held to nothing: only trained further."""

    def shape(self, student: Student, texts: Sequence[str]) -> Student:
        """As it is."""
        return student

    def callbacks(self, model: Any) -> Sequence[Any]:
        """None."""
        return ()

    def release(self, model: Any) -> None:
        """Nothing to undo."""

    def as_json(self) -> dict[str, object]:
        """Nothing."""
        return {}


class Golden:
    """The golden set, and how a student does on it: 1.0 for each query it gets right."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self.queries = list(read_records(run_dir / "traffic" / "golden.jsonl", LabelledQuery))
        task = recipe.task
        assert isinstance(task, ClassificationTask), "a label student's"
        self.labels = task.labels

    @torch.no_grad()
    def in_torch(self, folder: Path, scheme: QuantScheme | None = None) -> list[float]:
        """A plain folder, on a grid if there is one, one query at a time: ranges of activations
        are then a query's own, as a server's are."""
        student = open_trained(folder, self.recipe)
        if scheme is not None:
            quantized(student.model, scheme)
        labels = self.labels
        right = []
        for query in self.queries:
            ids = student.tokenizer(
                self.recipe.task.input_text(query),
                return_tensors="pt",
                truncation=True,
                max_length=student.plan.max_tokens,
            )
            best = int(student.model(**ids).logits.argmax(-1))
            right.append(float(labels[best] == query.reference))
        return right

    def in_onnx(self, folder: Path, out: Path) -> list[float]:
        """The folder's INT8 export, run by onnxruntime."""
        exporters = require("stillhouse.compress.exporters", "onnx", "exporting")
        out.mkdir(parents=True)
        task = self.recipe.task
        exporters.EXPORTERS["onnx-int8"](
            exporters.ExportRequest(
                student=folder,
                folder=out,
                task=task,
                head="label",
                name=self.recipe.name,
                texts=(),
                calibration=(),
            )
        )
        student = open_student(out, task, "label", 1)
        sampling = Sampling(labels=self.labels)

        async def ask() -> list[str]:
            found = [(await student.complete(query, sampling))[0].text for query in self.queries]
            await student.aclose()
            return found

        texts = asyncio.run(ask())
        return [float(t == q.reference) for t, q in zip(texts, self.queries, strict=True)]


def compared(
    float_scores: list[float], at_once: list[float], trained: list[float]
) -> dict[str, Any]:
    """Scores, and differences query by query."""
    return {
        "at once": bootstrap_mean(at_once).to_json(),
        "after training": bootstrap_mean(trained).to_json(),
        "gain of training": paired_difference(trained, at_once).to_json(),
        "at once less float": paired_difference(at_once, float_scores).to_json(),
        "after training less float": paired_difference(trained, float_scores).to_json(),
    }


def main() -> None:
    """Quantize, prune, train, and save the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--only", choices=("quantize", "prune"), default=None)
    arguments = parser.parse_args()
    run_dir: Path = arguments.run_dir
    recipe = read_run_recipe(run_dir)
    golden = Golden(recipe, run_dir)
    student, dataset = run_dir / "train" / "student", run_dir / "dataset"
    tuned = run_dir / "tune" / "model" if recipe.teacher.tune else None
    more = {"epochs": arguments.epochs}
    result: dict[str, Any] = {"epochs": arguments.epochs, "queries": len(golden.queries)}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        plain = golden.in_torch(student)
        go_on(
            recipe,
            Place(student, dataset, tuned, work / "longer"),
            Free(),
            Terminal(),
            title="train further, float",
            epochs=arguments.epochs,
            learning_rate=None,
        )
        longer = golden.in_torch(work / "longer" / "student")
        result["float"] = bootstrap_mean(plain).to_json()
        result["float, trained as much longer"] = bootstrap_mean(longer).to_json()
        result["gain of more training alone"] = paired_difference(longer, plain).to_json()
        on_onnx = available("onnxruntime") and available("stillhouse.compress.exporters")
        result["run by onnxruntime"] = on_onnx
        for number, (name, scheme) in enumerate(SCHEMES.items()):
            if arguments.only == "prune":
                break
            place = work / f"q{number}"
            trained = distil_quantized(
                recipe,
                student,
                dataset,
                tuned,
                work=place,
                progress=Terminal(),
                scheme=scheme,
                epochs=arguments.epochs,
            )
            facts = json.loads((place / "quantization_aware.json").read_text())
            result[name] = {
                "scheme": scheme.as_json(),
                "held out": facts["held_out"],
                "in torch": compared(
                    plain, golden.in_torch(student, scheme), golden.in_torch(trained, scheme)
                ),
            }
            if on_onnx and name == "int8":
                result[name]["in onnxruntime"] = compared(
                    plain,
                    golden.in_onnx(student, place / "onnx-plain"),
                    golden.in_onnx(trained, place / "onnx-trained"),
                )
            print(json.dumps({name: result[name]}), flush=True)
        for number, (name, section) in enumerate(PRUNINGS.items()):
            if arguments.only == "quantize":
                break
            result[f"pruned: {name}"] = pruned(
                golden, plain, work / f"p{number}", section.model_copy(update=more), tuned
            )
            print(json.dumps({name: result[f"pruned: {name}"]}), flush=True)
    save(
        "quantization_aware" if arguments.only is None else f"quantization_aware_{arguments.only}",
        "python benchmarks/quantization_aware.py "
        f"--run-dir {run_dir} --epochs {arguments.epochs:g}",
        result,
    )


def pruned(
    golden: Golden, plain: list[float], work: Path, section: PruneSection, tuned: Path | None
) -> dict[str, Any]:
    """One way of pruning, at once and healed."""
    recipe, run_dir = golden.recipe, golden.run_dir
    student = run_dir / "train" / "student"
    examples = read_records(run_dir / "dataset" / "train.jsonl", Example)
    texts = [recipe.task.input_text(example.to_query()) for example in examples]
    shaping = Pruning(section, len(classes_of(recipe.student.head, recipe.task)))
    at_once = work / "at_once"
    at_once.mkdir(parents=True)
    save_student(shaping.shape(open_trained(student, recipe), texts), str(at_once))
    run_prune(
        recipe.model_copy(update={"prune": section}),
        student,
        run_dir / "dataset",
        tuned,
        work=work / "healed",
        progress=Terminal(),
    )
    facts = json.loads((work / "healed" / "prune.json").read_text())
    scores = golden.in_torch(at_once), golden.in_torch(work / "healed" / "student")
    return {**compared(plain, *scores), "files": {k: facts[k] for k in ("before", "after")}}


if __name__ == "__main__":
    main()
