"""ONNX forms of a label student: size, batch-1 latency, score and closeness, beside torch.

    python benchmarks/onnx_int8.py RUN_FOLDER [--texts 1200] [--small]

Reads a finished run of a classification recipe (its student, golden set, training texts), makes
every setting of INT8 and times all in turns, one thread each, one text at a time. Speed is told
against the float student in torch, which is what a run serves, and against its float ONNX file.
Reached is, of what `stillhouse compress` writes (a scale each, 7 bits): at most 30% of the float
student's files, twice its speed, at most a point of its score lost. Saves
benchmarks/results/onnx_int8.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine_line import save

from stillhouse.compress.onnx_export import export_onnx
from stillhouse.compress.onnx_int8 import quantize_dynamic_onnx, quantize_static_onnx
from stillhouse.core.artefact import folder_size
from stillhouse.core.jsonl import read_json, read_records
from stillhouse.core.recipe import Recipe
from stillhouse.core.records import Example, LabelledQuery
from stillhouse.core.statistics import paired_difference
from stillhouse.models.classifier_reader import ClassifierReader
from stillhouse.models.loading import load_classifier
from stillhouse.models.onnx_student import OnnxReader

TURNS = 5
WRITTEN = ("dynamic, 7 bits, a scale each", "static minmax, 7 bits")  # what compress writes
MOST_SHARE, LEAST_TIMES, MOST_LOST = 0.30, 2.0, 0.01
BITS = {"8 bits": False, "7 bits": True}
CHANNELS = {"one scale": False, "a scale each": True}


def log_p_of(reader: OnnxReader, texts: Sequence[str]) -> Any:
    """What a form believes."""
    return reader.read(texts).log_p


def main() -> None:
    """Make, compare, time, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--texts", type=int, default=1200)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--small", action="store_true", help="what is written alone, few texts")
    given = parser.parse_args()
    if given.small:
        given.texts, given.calibration = 20, 16
    torch.set_num_threads(1)
    task: Any = Recipe.model_validate(read_json(given.run / "recipe.json")).task
    student = given.run / "train" / "student"
    train = [
        task.input_text(example.to_query())
        for example in read_records(given.run / "dataset" / "train.jsonl", Example)
    ][: given.calibration]
    golden = list(read_records(given.run / "traffic" / "golden.jsonl", LabelledQuery))
    golden = golden[: given.texts]
    texts = [task.input_text(query) for query in golden]
    truth = np.array([task.labels.index(query.reference) for query in golden])

    loaded = load_classifier(str(student), device="cpu")
    torch_reader = ClassifierReader(loaded)
    readers: dict[str, Callable[[list[str]], Any]] = {
        "torch": lambda some: torch_reader.read(some).log_p.numpy()
    }
    sizes = {"torch": folder_size(student)}
    with tempfile.TemporaryDirectory() as scratch:
        makers: dict[str, Callable[[Path], Any]] = {
            "onnx float": lambda out: export_onnx(student, out, task, texts=texts)
        }
        for bits, reduced in BITS.items():
            for channels, each in CHANNELS.items():
                asked: dict[str, Any] = {"reduce_range": reduced, "per_channel": each}
                makers[f"dynamic, {bits}, {channels}"] = partial(
                    quantize_dynamic_onnx, student, task=task, **asked
                )
            makers[f"static minmax, {bits}"] = partial(
                quantize_static_onnx, student, task=task, texts=train, reduce_range=reduced
            )
        for method in ("entropy", "percentile"):
            makers[f"static {method}, 7 bits"] = partial(
                quantize_static_onnx, student, task=task, texts=train, method=method
            )
        kept = [name for name in makers if not given.small or name in ("onnx float", *WRITTEN)]
        for number, (name, make) in enumerate((name, makers[name]) for name in kept):
            out = Path(scratch) / str(number)
            sizes[name] = make(out).size_bytes
            reader = OnnxReader(out, threads=1)
            readers[name] = partial(log_p_of, reader)
        log_p = {
            name: np.concatenate([read([text]) for text in texts]) for name, read in readers.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(TURNS):
            for name, read in readers.items():
                for text in texts[:100]:
                    start = time.perf_counter()
                    read([text])
                    seconds[name].append(time.perf_counter() - start)
    base = log_p["torch"]
    right = {
        name: (found.argmax(-1) == truth).astype(float).tolist() for name, found in log_p.items()
    }
    p50 = {name: float(np.percentile(found, 50)) for name, found in seconds.items()}
    rows: dict[str, Any] = {
        name: {
            "bytes": sizes[name],
            "share_of_float": round(sizes[name] / sizes["torch"], 4),
            "p50_ms": round(1e3 * p50[name], 3),
            "p95_ms": round(1e3 * float(np.percentile(seconds[name], 95)), 3),
            "times_torch": round(p50["torch"] / p50[name], 2),
            "times_onnx_float": round(p50["onnx float"] / p50[name], 2),
            "accuracy": round(float(np.mean(right[name])), 4),
            "less_float": paired_difference(right[name], right["torch"]).to_json(),
            "agreement": round(float((log_p[name].argmax(-1) == base.argmax(-1)).mean()), 4),
            "mean_kl_nats": round(float((np.exp(base) * (base - log_p[name])).sum(-1).mean()), 6),
        }
        for name in readers
    }
    reached = {
        name: {
            "share_of_float": rows[name]["share_of_float"] <= MOST_SHARE,
            "times_torch": rows[name]["times_torch"] >= LEAST_TIMES,
            "accuracy": rows["torch"]["accuracy"] - rows[name]["accuracy"] <= MOST_LOST,
        }
        for name in WRITTEN
    }
    command = f"python benchmarks/onnx_int8.py RUN --texts {given.texts}"
    result = {"n": len(texts), "calibration": len(train), "reached": reached, "rows": rows}
    if given.small:
        print(json.dumps(result, indent=2))
    else:
        save("onnx_int8", command, result)


if __name__ == "__main__":
    main()
