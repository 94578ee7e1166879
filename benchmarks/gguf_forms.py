"""A text student as GGUF beside its float self: closeness, scores, tokens per second.

    python benchmarks/gguf_forms.py --student runs/quickstart/tune/model \\
        --gold runs/quickstart/traffic/golden.jsonl
    python benchmarks/gguf_forms.py --student embedded

Any text student's folder. Closeness is the mean KL over the whole vocabulary, in nats per position,
over the first tokens of the given texts. With `--gold` (labelled queries of a classification task)
both runtimes also answer them and are scored. Tokens per second are of greedy writing, one request
at a time, the two runtimes in turn, on the same number of threads; and of reading prompts.
Reached is: mean KL below 0.01, scores within one point, twice the float's tokens per second (q8_0).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine_line import save

from stillhouse.compress.gguf_check import likeness
from stillhouse.compress.gguf_export import FILE, export_gguf
from stillhouse.compress.gguf_proof import PROBES
from stillhouse.core.jsonl import read_records
from stillhouse.core.records import LabelledQuery, Message, Query
from stillhouse.core.statistics import paired_difference
from stillhouse.core.tasks import ClassificationTask, GenerationTask
from stillhouse.models.completer import Completer, Sampling
from stillhouse.models.gguf_engine import GgufEngine
from stillhouse.models.loading import load_causal_lm, locate
from stillhouse.models.student import open_student

SHOWN = "python benchmarks/gguf_forms.py"
WRITTEN = 64


def write_speed(completer: Completer, texts: Sequence[str]) -> float:
    """Tokens per second of greedy answers, one at a time."""

    async def one(text: str) -> tuple[int, float]:
        query = Query(id=text[:20] or "empty", messages=(Message(role="user", content=text),))
        start = time.perf_counter()
        (answer,) = await completer.complete(query, Sampling(max_tokens=WRITTEN))
        return answer.completion_tokens or 0, time.perf_counter() - start

    async def go() -> float:
        found = [await one(text) for text in texts]
        return sum(tokens for tokens, _ in found) / sum(seconds for _, seconds in found)

    return asyncio.run(go())


def scored(
    completer: Completer, gold: Sequence[LabelledQuery], labels: tuple[str, ...]
) -> tuple[list[float], list[str], float]:
    """1.0 for each right answer, the answers, and queries per second."""
    sampling = Sampling(labels=labels)

    async def go() -> list[str]:
        found = await asyncio.gather(*(completer.complete(q, sampling) for q in gold))
        return [one[0].text for one in found]

    start = time.perf_counter()
    answers = asyncio.run(go())
    rate = len(gold) / (time.perf_counter() - start)
    right = [float(a == q.reference) for a, q in zip(answers, gold, strict=True)]
    return right, answers, rate


def main() -> None:
    """Export, compare, and save results/gguf_forms.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", default="embedded")
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--labels", nargs="+", default=[])
    parser.add_argument("--limit", type=int, default=400, help="most labelled queries")
    parser.add_argument("--precisions", nargs="+", default=["f16", "q8_0", "q4_k", "q4_1"])
    parser.add_argument("--positions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # llama.cpp's, from its first request
    torch.set_num_threads(options.threads)
    student = locate(options.student).folder
    gold = list(read_records(options.gold, LabelledQuery))[: options.limit] if options.gold else []
    labels = tuple(options.labels) or tuple(sorted({str(query.reference) for query in gold}))
    task: Any = GenerationTask(kind="generation")
    if len(labels) > 1:
        task = ClassificationTask(kind="classification", labels=labels, prompt="{text}")
    texts = [query.messages[-1].content for query in gold] or [text for text in PROBES if text]
    floats = load_causal_lm(str(student), device="cpu")
    lines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for precision in options.precisions:
            lines[precision] = one(
                Path(work) / precision, student, floats, precision, task, gold, texts, options
            )
    save("gguf_forms", " ".join((SHOWN, *sys.argv[1:])), {"threads": options.threads, **lines})


def one(  # noqa: PLR0917 (what one line of the table needs)
    out: Path,
    student: Path,
    floats: Any,
    precision: str,
    task: Any,
    gold: Sequence[LabelledQuery],
    texts: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A precision's figures beside the float student's."""
    artefact = export_gguf(student, out, precision, texts=texts[:200])
    line: dict[str, Any] = {
        "file_bytes": (out / FILE).stat().st_size,
        "float_bytes": floats.size_bytes,
        "weights": dict(artefact.settings)["weights"],
        "texts_cut_alike": dict(artefact.settings)["proof"],
    }
    engine = GgufEngine(out / FILE, 1)
    ids = [floats.tokenizer(text)["input_ids"][:40] for text in texts]
    taken, count = [], 0
    for sequence in (one for one in ids if one):
        taken.append(sequence)
        count += len(sequence)
        if count >= options.positions:
            break
    line["likeness"] = likeness(floats.model, engine, taken)._asdict()
    engine.close()
    pair = [open_student(folder, task, "text", 8, "cpu") for folder in (student, out)]
    asked = texts[:8]
    for completer in pair:
        write_speed(completer, asked[:1])
    rounds = [[write_speed(completer, asked) for completer in pair] for _ in range(options.rounds)]
    line["float_tokens_per_s"] = median(first for first, _ in rounds)
    line["gguf_tokens_per_s"] = median(second for _, second in rounds)
    line["speed_ratio"] = median(second / first for first, second in rounds)
    if gold and isinstance(task, ClassificationTask):
        (mine, said, rate), (other, also, fast) = (scored(c, gold, task.labels) for c in pair)
        line["float_score"] = sum(mine) / len(mine)
        line["gguf_score"] = sum(other) / len(other)
        line["score_gain"] = paired_difference(other, mine).to_json()
        line["same_answers"] = sum(a == b for a, b in zip(said, also, strict=True)) / len(said)
        line["queries_per_s"] = {"float": rate, "gguf": fast}
    for completer in pair:
        asyncio.run(completer.aclose())
    line["reached"] = {
        "mean_kl_below_0.01": line["likeness"]["mean_kl"] < 0.01,
        "twice_the_tokens_per_s": line["speed_ratio"] >= 2,
        **(
            {"score_within_1_point": abs(line["gguf_score"] - line["float_score"]) <= 0.01}
            if "gguf_score" in line
            else {}
        ),
    }
    return line


if __name__ == "__main__":
    main()
