"""Selection at scale, and what it is worth: seconds, memory, coverage against random samples.

    python benchmarks/selection.py [--part NAME]

- k-centre, 50,000 of 100,000 vectors of 384 dimensions (claims: 300 s, 2 GB), on a skewed mixture
  of a thousand topics and on directions without any structure, beside the plain greedy algorithm,
  of which the first thousand choices are timed and compared;
- facility location, as many of as many;
- coverage of the real review snippets, measured in the embedding that chose and in MiniLM; and of
  the mixture, with the number of topics that are represented at all (claim: 2,000 of 20,000 leave
  the 95th percentile of the traffic at least a quarter nearer than random samples do).

Each part runs in a process of its own. All cores that OMP_NUM_THREADS allows are used.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine_line import save
from selection_data import TOPICS, Vectors, mixture, snippets, sphere

from stillhouse.core.coverage import coverage
from stillhouse.core.facility import facility_location, neighbour_graph
from stillhouse.core.selection import Indices, Strata, k_center, quotas
from stillhouse.models.clusters import Clusters, cluster
from stillhouse.models.embedders import open_embedder

N, CHOSEN, PLAIN = 100_000, 50_000, 1000
MOST_SECONDS, MOST_MB = 300, 2048
# What selection promises over random on skewed traffic, of the 95th percentile distance: the low
# end of the interval must reach it (docs/diversity.md).
PROMISED_P95 = 0.25


def scale(vectors: Vectors) -> dict[str, Any]:
    """Time k-centre; time the plain algorithm on its first choices, and compare them."""
    started = time.perf_counter()
    found = k_center(vectors, CHOSEN)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    near = np.full(len(vectors), -np.inf, dtype=np.float32)
    plain = [int(found.chosen[0])]
    while len(plain) < PLAIN:
        np.maximum(near, vectors @ vectors[plain[-1]], out=near)
        near[plain[-1]] = np.inf
        plain.append(int(near.argmin()))
    each = (time.perf_counter() - started) / PLAIN
    return {
        "seconds": seconds,
        "plain_greedy_seconds_estimated": each * CHOSEN,
        "first_choices_equal": float((found.chosen[:PLAIN] == plain).mean()),
    }


def facility() -> dict[str, Any]:
    """Time facility location with its clusters and graph."""
    vectors, _ = mixture(N)
    started = time.perf_counter()
    clusters = cluster(vectors)
    clustered = time.perf_counter()
    graph = neighbour_graph(vectors, clusters.labels, clusters.centres)
    drawn = time.perf_counter()
    facility_location(vectors, CHOSEN, graph)
    return {
        "clusters": len(clusters.centres),
        "cluster_seconds": clustered - started,
        "graph_seconds": drawn - clustered,
        "greedy_seconds": time.perf_counter() - drawn,
    }


def methods(vectors: Vectors, clusters: Clusters, n: int) -> dict[str, Callable[[], Indices]]:
    """The two methods as a recipe runs them: by cluster, with a floor of one."""
    strata = Strata(clusters.labels, quotas(clusters.sizes, n, 1))
    return {
        "k_center": lambda: k_center(vectors, n, strata=strata).chosen,
        "facility_location": lambda: (
            facility_location(
                vectors,
                n,
                neighbour_graph(vectors, clusters.labels, clusters.centres),
                strata=strata,
            ).chosen
        ),
    }


def on_snippets() -> dict[str, Any]:
    """Choose among the review snippets; measure where it was chosen, and in MiniLM."""
    texts = snippets()
    spaces = {name: open_embedder(name, texts).embed(texts) for name in ("hashing", "minilm")}
    found: dict[str, Any] = {"texts": len(texts)}
    for chooser, vectors in spaces.items():
        clusters = cluster(vectors)
        for n in (500, 2000):
            for name, choose in methods(vectors, clusters, n).items():
                chosen = choose()
                found[f"{name} by {chooser}, n {n}"] = {
                    f"in {space}": coverage(other, chosen, measured=len(texts)).as_json()
                    for space, other in spaces.items()
                }
    return found


def on_mixture() -> dict[str, Any]:
    """Choose among the skewed mixture; how many of its topics are represented at all."""
    vectors, topics = mixture(20_000)
    clusters = cluster(vectors)
    there = len(set(topics.tolist()))
    rng = np.random.default_rng(1)
    found: dict[str, Any] = {"vectors": len(vectors), "topics": TOPICS, "topics_there": there}
    for n in (1000, 2000):
        random = [
            len(set(topics[rng.choice(len(vectors), n, replace=False)].tolist())) for _ in range(20)
        ]
        for name, choose in methods(vectors, clusters, n).items():
            chosen = choose()
            found[f"{name}, n {n}"] = {
                **coverage(vectors, chosen, measured=len(vectors)).as_json(),
                "topics_represented": len(set(topics[chosen].tolist())),
                "topics_of_random": float(np.mean(random)),
            }
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "k_center_mixture": lambda: scale(mixture(N)[0]),
    "k_center_sphere": lambda: scale(sphere(N)),
    "facility_location_mixture": facility,
    "coverage_mixture": on_mixture,
    "coverage_snippets": on_snippets,
}


def measured(part: str) -> dict[str, Any]:
    """Run one part in a process of its own; load is of the minute before."""
    load = os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, __file__, "--part", part], stdout=subprocess.PIPE, check=True, text=True
    )
    return {"load_before": load, **json.loads(done.stdout)}


def main() -> None:
    """Run all parts, save, and fail where a claim is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", choices=list(PARTS))
    part = parser.parse_args().part
    if part:
        found = PARTS[part]()
        found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(json.dumps(found))
        return
    result = {name: measured(name) for name in PARTS}
    timed = [result["k_center_mixture"], result["k_center_sphere"]]
    met = all(one["seconds"] <= MOST_SECONDS and one["peak_rss_mb"] <= MOST_MB for one in timed)
    skewed = result["coverage_mixture"]
    met = met and all(
        skewed[f"{name}, n 2000"]["gain_p95"]["low"] >= PROMISED_P95
        for name in ("k_center", "facility_location")
    )
    save("selection", "python benchmarks/selection.py", {**result, "met": met})
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
