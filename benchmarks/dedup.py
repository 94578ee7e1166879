"""Near-duplicates among 100,000 short texts: seconds, memory, and what is found.

    python benchmarks/dedup.py [--texts 100000]

Beside it datasketch's MinHashLSH, used plainly as its documentation shows (128 permutations, the
same shingles and threshold), which believes its own bands: it also joins pairs below the threshold.
Each is measured in a process of its own. Claim: at most 60 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from machine_line import save
from selection_data import short_texts

from stillhouse.core.duplicates import groups_of, jaccard, shingle_sets, shingles

THRESHOLD = 0.7
MOST_SECONDS = 60


def ours(texts: list[str]) -> dict[str, Any]:
    """Groups verified by true Jaccard similarity."""
    started = time.perf_counter()
    groups = groups_of(texts, THRESHOLD)
    seconds = time.perf_counter() - started
    seen: set[str] = set()
    dropped = []
    for index, group in enumerate(groups):
        if group in seen:
            dropped.append(index)
        seen.add(group)
    return {"seconds": seconds, "near_duplicates": len(dropped), "dropped": dropped}


def plain_datasketch(texts: list[str]) -> dict[str, Any]:
    """Query, then insert, text by text."""
    from datasketch import MinHash, MinHashLSH

    started = time.perf_counter()
    lsh = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    dropped, wrong = [], 0
    pairs = []
    for index, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        for shingle in shingles(text):
            sketch.update(shingle.to_bytes(8, "big"))
        found = lsh.query(sketch)
        if found:
            dropped.append(index)
            pairs.append((index, found))
        else:
            lsh.insert(index, sketch)
    seconds = time.perf_counter() - started
    sets = shingle_sets(texts)
    wrong = sum(
        max(jaccard(sets[index], sets[other]) for other in found) < THRESHOLD
        for index, found in pairs
    )
    return {
        "seconds": seconds,
        "near_duplicates": len(dropped),
        "below_the_threshold": wrong,
        "dropped": dropped,
    }


def measured(part: str, count: int) -> dict[str, Any]:
    """Run one part in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--texts", str(count), "--part", part],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure both, and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--part", choices=["ours", "datasketch", "texts"])
    arguments = parser.parse_args()
    if arguments.part:
        texts = short_texts(arguments.texts)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found: dict[str, Any] = {"words": sum(len(text.split()) for text in texts) / len(texts)}
        if arguments.part != "texts":
            found = {"ours": ours, "datasketch": plain_datasketch}[arguments.part](texts)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(json.dumps({**found, "peak_rss_mb": after, "texts_rss_mb": before}))
        return
    load = os.getloadavg()[0]
    mine, theirs = (measured(part, arguments.texts) for part in ("ours", "datasketch"))
    ours_dropped, theirs_dropped = set(mine.pop("dropped")), set(theirs.pop("dropped"))
    save(
        "dedup",
        "python benchmarks/dedup.py",
        {
            "texts": arguments.texts,
            "words_per_text": measured("texts", arguments.texts)["words"],
            "threshold": THRESHOLD,
            "load_before": load,
            "stillhouse": mine,
            "datasketch_plain": theirs,
            "found_by_both": len(ours_dropped & theirs_dropped),
            "met": mine["seconds"] <= MOST_SECONDS,
        },
    )
    if mine["seconds"] > MOST_SECONDS:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
