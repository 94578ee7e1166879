"""Stage 8: a student that got worse is found in a gateway's log, and the alert says where."""

import random
import tempfile
from pathlib import Path

import yaml

from stillhouse.core.gateway_log import GatewayCall
from stillhouse.monitoring import check_tasks
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.records import Served
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

BEGIN = 1_790_000_000.0


def write_files(folder: Path) -> Path:
    """gateway.yaml, recipe.yaml and loop.yaml."""
    server = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    files = {
        "gateway": {
            "log": {"url": f"sqlite:///{folder}/gateway.db"},
            "upstreams": {"big": server, "small": server},
            "tasks": {"reviews": {"teacher": "big", "student": "small"}},
        },
        "recipe": {
            "name": "reviews",
            "task": {"kind": "classification", "labels": ["fresh", "rotten"]},
            "traffic": {"path": "traffic.jsonl"},
            "teacher": {"model": "embedded"},
            "student": {"head": "label", "from": "embedded-encoder"},
        },
        "loop": {
            "gateway": "gateway.yaml",
            "tasks": {
                "reviews": {
                    "recipe": "recipe.yaml",
                    "monitor": {"window": {"requests": 200}, "drift": None, "canaries": None},
                }
            },
        },
    }
    for name, value in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    return folder / "loop.yaml"


def fill_log(folder: Path, requests: int) -> None:
    """Requests that both answered; from the 1,000th on the student fails one tenant."""
    engine = open_database(f"sqlite:///{folder}/gateway.db")
    log = TrafficLog(engine, Pseudonyms(b"0123456789abcdef"), redact=None)
    draw = random.Random(0)
    for number in range(requests):
        tenant, label = draw.choice(["films", "books"]), draw.choice(["fresh", "rotten"])
        right = draw.random() < (0.5 if tenant == "books" and number >= 1000 else 0.94)
        other = "rotten" if label == "fresh" else "fresh"
        at, unit = BEGIN + 60 * number, f"u{draw.randrange(300)}"
        for name, said, more in (
            (f"r{number}", label, {"arm": "teacher_only", "variant": "teacher"}),
            (
                f"s{number}",
                label if right else other,
                {"arm": "shadow", "variant": "student", "shadow_of": f"r{number}"},
            ),
        ):
            request = {"model": "reviews", "messages": [{"role": "user", "content": f"#{number}"}]}
            answer = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            told = {"id": name, "at": at, "task": "reviews", "tenant": tenant, "unit": unit}
            more |= {"stage": 0, "version": 0, "upstream": more["variant"]}
            log.offer(
                GatewayCall(id=name, at="", model="m", request=request, response=answer),
                Served.model_validate({**told, **more, "latency_ms": 20.0, "status": 200}),
            )
    log.close()
    engine.dispose()


with tempfile.TemporaryDirectory() as name:
    loop = write_files(Path(name))
    fill_log(Path(name), 2000)
    (found,) = check_tasks(loop, now=BEGIN + 60 * 2000 + 3600)
    for report in found.reports:
        agreement = report.figure("agreement", "random")
        if agreement is not None and agreement.interval is not None:
            low, high = agreement.interval.low, agreement.interval.high
            print(
                f"window {report.number}: agreement {agreement.interval.estimate:.3f} "
                f"[{low:.3f}, {high:.3f}] of {agreement.n} pairs"
            )
    for alert in found.alerts:
        print(f"{alert.severity}: {alert.summary}")
