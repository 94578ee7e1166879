"""What is measured of the gateway, in Prometheus' words (`telemetry` has OpenTelemetry's).

Labels are names of gateway.yaml and fixed words, so
that their number is bounded; nothing of a request's content is among them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ADDED: Final = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.03, 0.1, 1)
_BREAKER: Final = {"closed": 0, "half_open": 1, "open": 2}


class Metrics:
    """The counters of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stillhouse_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(
                f"stillhouse_{name}", text, labels, buckets=buckets, registry=self.registry
            )

        self.requests = counter(
            "requests", "Requests by who answered.", "task", "variant", "operation", "status"
        )
        self.refused = counter("refused", "Requests refused before anybody was asked.", "status")
        self.tokens = counter(
            "tokens", "Tokens, input and output.", "task", "variant", "operation", "kind"
        )
        self.cost = counter("cost_usd", "What answers cost.", "task", "variant")
        self.saved = counter("saved_usd", "What the teacher would have cost more.", "task")
        self.fallbacks = counter("fallbacks", "The other variant answered.", "task", "reason")
        self.upstream_errors = counter("upstream_errors", "By upstream.", "upstream", "error")
        self.shadows = counter("shadows", "Shadow calls by what became of them.", "task", "result")
        self.adapters = counter(
            "adapter_answers",
            "Students' answers by last layer: own, shared, or shared for a broken adapter.",
            "task",
            "used",
        )
        self.dropped = counter("log_dropped", "Requests that the traffic log dropped.")
        self.batch_lines = counter("batch_lines", "Lines of batches, asked.", "task", "result")
        self.batch_failures = counter("batch_failures", "Batches given back for a failed store.")
        self.otlp_failures = counter("otlp_failures", "Metrics could not be sent by OTLP.")
        self.unreadable = counter(
            "evidence_unreadable", "Stored rows that could not be read as evidence.", "task"
        )
        self.refresh_failures = counter("refresh_failures", "The database could not be read.")
        self.gone = counter("clients_gone", "Clients that left before their answer.")
        self.seconds = histogram(
            "request_seconds",
            "From request to answer; error: the status of one that failed.",
            _SECONDS,
            "task",
            "variant",
            "operation",
            "error",
        )
        self.first_token = histogram(
            "first_token_seconds",
            "To a stream's first byte.",
            _SECONDS,
            "task",
            "variant",
            "operation",
        )
        self.added = histogram(
            "added_seconds",
            "Time in the gateway, less the wait for models: to an answer, to a stream's start.",
            _ADDED,
        )
        self.open = Gauge(
            "stillhouse_open_requests",
            "In work.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.breaker = Gauge(
            "stillhouse_breaker",
            "0 closed, 1 half open, 2 open; of several workers the worst.",
            ("upstream",),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._shared: CollectorRegistry | None = None
        if values.ValueClass is not values.MutexValue:
            self._shared = CollectorRegistry()
            MultiProcessCollector(self._shared)  # type: ignore[no-untyped-call]

    def tell_breakers(self, breakers: Mapping[str, str]) -> None:
        """Take each upstream's breaker state; also for the pages of other workers."""
        for upstream, state in breakers.items():
            self.breaker.labels(upstream).set(_BREAKER[state])

    def tell_unreadable(self, counts: Mapping[str, int]) -> None:
        """Take how many stored rows more could not be read, by task."""
        for task, count in counts.items():
            self.unreadable.labels(task).inc(count)

    def breakers(self) -> dict[str, str]:
        """Each upstream's breaker, of several workers the worst, as they were told last."""
        names = {number: name for name, number in _BREAKER.items()}
        return {
            sample.labels["upstream"]: names[int(sample.value)]
            for metric in self.collected()
            if metric.name == "stillhouse_breaker"
            for sample in metric.samples
        }

    def page(self) -> bytes:
        """The page that Prometheus reads: of all workers together."""
        return generate_latest(self._shared or self.registry)

    def collected(self) -> list[Metric]:
        """What the page shows, as records."""
        return list((self._shared or self.registry).collect())


def share_metrics(folder: Path, worker: int) -> None:
    """Keep this process' metrics, those that are made from now on, in files of a folder that all
    workers share. A worker that is started again under its number goes on from its counts.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    # The library's documented way to name files by something else than the process id.
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def forget_live(folder: Path, worker: int) -> None:
    """A worker died: what was going on in it goes on no more; what it counted stays."""
    mark_process_dead(worker, str(folder))  # type: ignore[no-untyped-call]
