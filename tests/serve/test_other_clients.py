"""OpenAI's client for Node, and LangChain's, through the gateway; `make clients` fetches both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_gateways import KEYS
from faithful_model import faithful
from gateway_servers import Model, Running, gateway, models, two

from stillhouse.serve.batches import BatchWork
from stillhouse.serve.tables import open_database

HERE = Path(__file__).parent
CLIENTS = HERE.parents[1] / ".cache" / "clients"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    url = f"sqlite:///{tmp_path_factory.mktemp('clients')}/g.db"
    engine = open_database(url)
    teacher = Model(faithful)
    with models(teacher):
        raw = {**two(teacher, None), "clients": KEYS, "log": {"url": url}, "batches": {}}
        with gateway(raw, batches=BatchWork(engine)) as served:
            yield served
    engine.dispose()


def said(command: list[str], **environment: str) -> list[str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_client_for_node(running: Running) -> None:
    if shutil.which("node") is None:
        pytest.skip("needs node")
    if not (CLIENTS / "openai" / "index.mjs").exists():
        pytest.skip("needs OpenAI's client for Node: make clients (with npm)")
    script = str(HERE / "openai_client.mjs")
    found = said(["node", script, str(CLIENTS / "openai"), f"{running.url}/v1", "key-a"])
    assert found == [
        "plain",
        "streamed",
        "helper",
        "tools",
        "schema",
        "logprobs",
        "completions",
        "embeddings",
        "models",
        "batches",
        "errors",
        "left",
    ]


@pytest.mark.full
def test_langchain(running: Running) -> None:
    if not (CLIENTS / "langchain" / ".done").exists():
        pytest.skip("needs langchain-openai: make clients")
    command = [sys.executable, str(HERE / "langchain_client.py"), f"{running.url}/v1", "key-a"]
    # Beside this environment: what both have is this environment's.
    found = said(command, LANGCHAIN_FOLDER=str(CLIENTS / "langchain"))
    assert found == ["plain", "streamed", "awaited", "tools", "schema", "embeddings", "errors"]
