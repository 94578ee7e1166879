"""A teacher on a real cluster of two nodes: equal answers, a node lost, the driver killed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_driver import BATCH, DRAWN, AfterBatches, ask_all, chats

from stillhouse.core.errors import UserError
from stillhouse.core.jsonl import read_records, write_records
from stillhouse.core.progress import Silent
from stillhouse.core.recipe import Recipe
from stillhouse.core.recipe_asking import RaySection
from stillhouse.core.recipe_teacher import PricesSection, TeacherSection
from stillhouse.core.records import Completion, Message, Query
from stillhouse.models.completer import Sampling
from stillhouse.teacher.ask import ask
from stillhouse.teacher.build import open_teacher
from stillhouse.teacher.ray_ask import RayTeacher
from stillhouse.teacher.ray_cluster import RayCluster
from stillhouse.teacher.stage import run_ask
from stillhouse.teacher.store import AnswerStore
from tiny_models import byte_bpe, tiny_llama

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray: Any = pytest.importorskip("ray")
cluster_utils: Any = pytest.importorskip("ray.cluster_utils")

pytestmark = [
    # Ray Data's own settings, made by its constructor.
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context"),
    # Ray leaves pipes and sockets of the processes it started to the collector.
    pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning"),
]
MEMORY = 80 * 2**20  # bytes of each node's object store
# Nodes are missed within seconds, not the usual half minute.
WATCH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(folder)
    tiny_llama(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, where the driver lives, and two nodes of one CPU."""
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": MEMORY,
            "_system_config": WATCH,
        },
    )
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=MEMORY)
    yield made
    made.shutdown()


def stored_keys(store: Path) -> list[tuple[str, str, str]]:
    """The key of each answer line, as it stands in the file."""
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    return [
        (line["teacher"], line["chat"], line["sampling"]) for line in lines if "completions" in line
    ]


def in_this_process(
    model: Path, store: Path, queries: list[Query], sampling: Sampling
) -> Mapping[str, tuple[Completion, ...]]:
    async def run() -> Mapping[str, tuple[Completion, ...]]:
        completer = open_teacher(TeacherSection(model=f"hf:{model}"), PricesSection())
        with AnswerStore(store) as answers:
            result = await ask(completer, queries, sampling, answers, concurrency=64)
            await completer.aclose()
            return dict(result.completions_by_query)

    return asyncio.run(run())


def numbers(completion: Completion) -> list[float]:
    found = list((completion.label_logprobs or {}).values())
    for token in completion.logprobs or ():
        found += [token.logprob, *(value for _, value in token.top)]
    return found


def assert_equal_but_for_rounding(
    first: Mapping[str, tuple[Completion, ...]], second: Mapping[str, tuple[Completion, ...]]
) -> None:
    """Equal in all but the last decimal of log-probabilities: batches are other ones."""
    bare = {"label_logprobs": None, "logprobs": None}
    assert list(first) == list(second)
    for name in first:
        for one, other in zip(first[name], second[name], strict=True):
            assert one.model_copy(update=bare) == other.model_copy(update=bare)
            np.testing.assert_allclose(numbers(one), numbers(other), atol=5e-6)


@pytest.mark.full
def test_answers_are_those_of_this_process(model: Path, cluster: Any, tmp_path: Path) -> None:
    queries = chats(40)
    queries += [Query(id=f"again{q.id}", messages=q.messages) for q in queries[:10]]
    queries += [Query(id="long", messages=(Message(role="user", content="long " * 400),))]
    for sampling in (DRAWN, Sampling(labels=("positive", "negative"))):
        here = in_this_process(model, tmp_path / "here.jsonl", queries, sampling)
        store = tmp_path / "there.jsonl"
        result = asyncio.run(ask_all(model, cluster.address, store, queries, sampling=sampling))
        assert_equal_but_for_rounding(here, result.completions_by_query)
        assert (result.asked, result.reused, result.usd) == (41, 10, 0.0)
        assert [f.query_id for f in result.failures] == ["long"]
        assert "exceed the model's 256" in result.failures[0].detail
        assert sum(key in stored_keys(tmp_path / "here.jsonl") for key in stored_keys(store)) == (
            len(stored_keys(store))
        )
    again = asyncio.run(ask_all(model, cluster.address, store, queries[:40], sampling=sampling))
    assert (again.asked, again.reused) == (0, 40)


@pytest.mark.full
def test_a_killed_driver_asks_only_what_is_missing(
    model: Path, cluster: Any, tmp_path: Path
) -> None:
    store, queries = tmp_path / "a.jsonl", chats(64)
    driver = Path(__file__).with_name("ray_driver.py")
    arguments = [str(model), cluster.address, str(store), "64", "3"]
    killed = subprocess.run(
        [sys.executable, str(driver), *arguments], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -9, killed.stderr
    kept = stored_keys(store)
    assert len(kept) == 3 * BATCH
    result = asyncio.run(ask_all(model, cluster.address, store, queries))
    assert (result.asked, result.reused) == (64 - len(kept), len(kept))
    assert len(stored_keys(store)) == len(set(stored_keys(store))) == 64
    here = in_this_process(model, tmp_path / "here.jsonl", queries, DRAWN)
    assert_equal_but_for_rounding(here, result.completions_by_query)


@pytest.mark.full
def test_the_stage_asks_over_the_cluster(model: Path, cluster: Any, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "task": {"kind": "generation"},
            "traffic": {"path": "t.jsonl"},
            "teacher": {
                "model": f"hf:{model}",
                "max_tokens": 4,
                "token_logprobs": 5,
                "ray": {"address": cluster.address, "actors": 2, "batch_size": 8},
            },
            "student": {"head": "text", "from": "hf:x"},
            "train": {"alpha": 0},
        }
    )
    ray.init(cluster.address, log_to_driver=False)  # a connection there is already is used
    (tmp_path / "traffic").mkdir()
    write_records(tmp_path / "traffic" / "queries.jsonl", chats(20))
    (tmp_path / "work").mkdir()
    run_ask(recipe, tmp_path / "traffic", None, tmp_path / "store", tmp_path / "work", Silent())
    assert ray.is_initialized()  # and left as it is
    ray.shutdown()
    found = list(read_records(tmp_path / "work" / "completions.jsonl", Completion))
    assert [c.query_id for c in found] == [q.id for q in chats(20)]
    assert {len(token.top) for c in found for token in c.logprobs or ()} == {5}
    assert {c.model for c in found} == {f"hf:{model}"}


@pytest.mark.full
def test_weights_that_no_node_has_are_one_line(cluster: Any, tmp_path: Path) -> None:
    section = TeacherSection(
        model=f"hf:{tmp_path / 'gone'}", ray=RaySection(address=cluster.address)
    )
    with pytest.raises(UserError, match=r"there is no .*gone on 2 of 2 nodes.*same path") as e:
        RayTeacher(section, None, Silent())
    assert "\n" not in str(e.value)


@pytest.mark.full
def test_an_actor_that_fits_on_no_node_is_one_line(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"none of the cluster's 3 nodes has 1 CPUs and 2 GPUs"):
        RayCluster(RaySection(address=cluster.address, gpus_per_actor=2))


@pytest.mark.full
def test_a_lost_node_loses_nothing(model: Path, cluster: Any, tmp_path: Path) -> None:
    """Last: it leaves the cluster with one node."""
    store, queries = tmp_path / "a.jsonl", chats(96)

    def lose_one_that_works() -> None:
        free = ray._private.state.available_resources_per_node()
        busy = [n for n in cluster.worker_nodes if not free[n.node_id].get("CPU")]
        cluster.remove_node(busy[-1], allow_graceful=False)

    lost = AfterBatches(3, lose_one_that_works)
    result = asyncio.run(ask_all(model, cluster.address, store, queries, progress=lost))
    assert lost.left < 0  # the node went midway
    assert (result.asked, result.failures) == (96, ())
    assert len(stored_keys(store)) == len(set(stored_keys(store))) == 96
    here = in_this_process(model, tmp_path / "here.jsonl", queries, DRAWN)
    assert_equal_but_for_rounding(here, result.completions_by_query)
