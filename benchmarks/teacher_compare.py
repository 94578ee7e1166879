"""`stillhouse teacher compare` on the review snippets: which teacher, which ensemble, at what cost?

Four real teachers: SmolLM2-135M as it comes, and three linear models (TF-IDF, logistic regression),
each trained on 1,500 true labels of its own and asked over HTTP on loopback, at three prices. The
labelled sample (400 reviews) judges them; probe students learn from 600 queries each. What the
sample says of the linear teachers and their ensembles is then checked on 5,000 further reviews that
the comparison never saw: does the truth lie in the interval, and is the choice right?
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from machine_line import save

from stillhouse.core.ensembles import mean_logits, mean_probabilities
from stillhouse.core.progress import Terminal
from stillhouse.core.recipe_file import parse_recipe
from stillhouse.evaluate.teachers import TeacherComparison
from stillhouse.models.tfidf import TfidfBaseline
from stillhouse.teacher_compare import compare_teachers

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from quickstart_data import order_of, read_reviews

LABELS = ("positive", "negative")
TAIL = "\nSentiment:"
PRICES = {"linear-a": 1.0, "linear-b": 2.0, "linear-c": 3.0}
PART, CHECK = 1500, 5000
Review = Mapping[str, str]


def answer(model: TfidfBaseline, body: Mapping[str, object]) -> web.Response:
    """A chat completion with the model's probabilities as top log-probabilities."""
    messages = body["messages"]
    assert isinstance(messages, list)
    text = str(messages[-1]["content"]).removesuffix(TAIL)
    row = model.predict_probabilities([text])[0]
    top: list[dict[str, Any]] = [
        {"token": label, "logprob": math.log(p), "bytes": None}
        for label, p in zip(LABELS, row, strict=True)
    ]
    said = max(top, key=lambda one: one["logprob"])
    return web.json_response(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": str(body["model"]),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": said["token"]},
                    "finish_reason": "stop",
                    "logprobs": {"content": [{**said, "top_logprobs": top}]},
                }
            ],
            "usage": {
                "prompt_tokens": len(text.split()),
                "completion_tokens": 1,
                "total_tokens": 1,
            },
        }
    )


@contextmanager
def served(models: Mapping[str, TfidfBaseline], asked: Counter[str]) -> Iterator[str]:
    """A chat server on loopback for all linear teachers; counts requests by model."""
    loop = asyncio.new_event_loop()

    async def handle(request: web.Request) -> web.Response:
        body = await request.json()
        asked[body["model"]] += 1
        return answer(models[body["model"]], body)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, access_log=None)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def write(path: Path, rows: Sequence[Review], *, labels: bool) -> str:
    """JSONL of texts, with or without their labels."""
    keys = ("text", "label") if labels else ("text",)
    path.write_text("".join(json.dumps({k: row[k] for k in keys}) + "\n" for row in rows))
    return str(path)


def truth_of(models: Mapping[str, TfidfBaseline], rows: Sequence[Review]) -> dict[str, float]:
    """Accuracy of the linear teachers and their ensembles on reviews the comparison never saw."""
    texts, right = [row["text"] for row in rows], [LABELS.index(row["label"]) for row in rows]
    beliefs = {name: model.predict_probabilities(texts) for name, model in models.items()}
    ways: dict[str, Callable[..., Sequence[float] | None]] = {
        "mixture": mean_probabilities,
        "geometric": mean_logits,
    }
    singles = list(beliefs.values())
    for name, combine in ways.items():
        made = [combine(views, (1.0,) * len(singles)) for views in zip(*singles, strict=True)]
        beliefs[name] = np.array(made)
    votes = np.array([belief.argmax(axis=1) for belief in singles])
    found = {name: float((b.argmax(axis=1) == right).mean()) for name, b in beliefs.items()}
    return found | {"vote": float(((votes.sum(axis=0) > 1) == np.array(right)).mean())}


def figures(found: TeacherComparison) -> dict[str, object]:
    """What the comparison says, in short."""
    return {
        name: {
            "accuracy": t.score.to_json(),
            "probe": t.probes["tfidf"].score.to_json(),
            "ece": t.calibration_error.estimate if t.calibration_error else None,
            "brier": t.brier.estimate if t.brier else None,
            "usd_per_1k": t.speed.usd_per_1k,
        }
        for name, t in found.teachers.items()
    }


def main() -> None:
    """Compare, compare again, and check against further reviews."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelled", type=int, default=400)
    parser.add_argument("--probe", type=int, default=500)
    arguments = parser.parse_args()
    reviews = sorted(read_reviews(), key=lambda row: order_of(row["text"]))
    parts = [reviews[i * PART : (i + 1) * PART] for i in range(3)]
    models = {
        name: TfidfBaseline(LABELS, [r["text"] for r in part], [r["label"] for r in part])
        for name, part in zip(PRICES, parts, strict=True)
    }
    rest = reviews[3 * PART :]
    check, rest = rest[:CHECK], rest[CHECK:]
    labelled, traffic = rest[: arguments.labelled], rest[arguments.labelled :]
    asked: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, served(models, asked) as url:
        folder = Path(name)
        linear = {one: {"model": f"openai-compatible:{one}", "base_url": url} for one in PRICES}
        recipe = parse_recipe(
            {
                "name": "which-teacher",
                "task": {
                    "kind": "classification",
                    "prompt": "{text}" + TAIL,
                    "labels": list(LABELS),
                },
                "traffic": {
                    "path": write(folder / "t.jsonl", traffic, labels=False),
                    "labelled": write(folder / "l.jsonl", labelled, labels=True),
                    "use_labelled": False,
                },
                "teacher": {"model": "embedded", "chat_template": False},
                "student": {"head": "label", "from": "embedded-encoder"},
                "prices": {
                    "models": {
                        one: {"input_usd_per_mtok": usd, "output_usd_per_mtok": usd}
                        for one, usd in PRICES.items()
                    }
                },
                "compare": {
                    "teachers": linear,
                    "ensembles": {
                        "mixture": {"of": list(PRICES)},
                        "geometric": {"of": list(PRICES), "combine": "mean_logits"},
                        "vote": {"of": list(PRICES), "combine": "majority"},
                        "all": {"of": ["teacher", *PRICES]},
                    },
                    "sample": None,
                    "probe": {"queries": arguments.probe},
                },
            }
        )
        started = time.perf_counter()
        found = compare_teachers(recipe, folder / "run", Terminal())
        seconds = time.perf_counter() - started
        paid = dict(asked)
        started = time.perf_counter()
        compare_teachers(recipe, folder / "run", Terminal())
        again = time.perf_counter() - started
    truth = truth_of(models, check)
    inside = {
        name: found.teachers[name].score.low <= value <= found.teachers[name].score.high
        for name, value in truth.items()
    }
    save(
        "teacher_compare",
        f"python benchmarks/teacher_compare.py --labelled {arguments.labelled} "
        f"--probe {arguments.probe}",
        {
            "seconds": round(seconds, 1),
            "seconds_second_time": round(again, 1),
            "requests": paid,
            "requests_second_time": {k: asked[k] - v for k, v in paid.items()},
            "teachers": figures(found),
            "truth_on_further_reviews": truth,
            "further_reviews": CHECK,
            "truth_inside_the_interval": inside,
            "complementarity": [
                {"of": one.of, "oracle": one.oracle.to_json(), "gain": one.gain.to_json()}
                for one in found.complementarity
            ],
            "kappa": found.agreement.kappa,
            "linear_model_on_the_labels": found.baseline.to_json() if found.baseline else None,
            "recommendation": found.recommendation.model_dump(mode="json"),
        },
    )


if __name__ == "__main__":
    main()
