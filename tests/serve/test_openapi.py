"""Requests out of OpenAPI documents: no failure inside, no answer unlike its schema."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from aiohttp import web
from batch_gateways import ASK, KEYS, begun, client_of, ended, jsonl, line
from faithful_model import faithful
from gateway_servers import Model, Running, gateway, models, status, two
from openai_document import SERVED, Known, own, pruned
from test_gateway_http import send

from stillhouse.serve.batches import BatchWork
from stillhouse.serve.tables import open_database

ASKED = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}
SPEC = "STILLHOUSE_OPENAI_SPEC"
RUN = "from schemathesis.cli import schemathesis; schemathesis()"
# Not among them: whether what a schema forbids is refused, and what it allows is accepted. The
# gateway passes on what it does not know, and has limits that the document does not.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
)


async def plain(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Embeddings as numbers alone: the document has no word for the others. What no server would
    understand is refused."""
    try:
        return await faithful(request, {**body, "encoding_format": "float"})
    except (KeyError, TypeError, AttributeError, IndexError):
        return await status(400)(request, body)


class Site(NamedTuple):
    """A gateway, its model, and what there is on it."""

    running: Running
    teacher: Model
    known: Known


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path_factory.mktemp('openapi')}/g.db"
    engine = open_database(url)
    teacher = Model(plain)
    with models(teacher):
        raw = {**two(teacher, None), "clients": KEYS, "log": {"url": url}}
        raw["batches"] = {"unfinished": 10**6}
        with gateway(raw, batches=BatchWork(engine)) as running, client_of(running) as client:
            batch = begun(client, jsonl(line(1), line(2)))
            ended(client, batch.id)
            teacher.paths.clear()
            yield Site(running, teacher, Known("t", batch.input_file_id, batch.id))
    engine.dispose()


def fuzzed(site: Site, document: dict[str, Any], folder: Path) -> str:
    """What schemathesis says at its end; fails where it found something."""
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("needs schemathesis")
    site.known.put(document)
    place = folder / "openapi.json"
    place.write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, "-c", RUN, "run", str(place), "--url", f"{site.running.url}/v1"]
    command += ["--header", "Authorization: Bearer key-a", "--checks", ",".join(CHECKS)]
    command += ["--seed", "1", "--generation-database", "none", "--no-color"]
    done = subprocess.run(
        [*command, "--max-examples", "30"],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout[-9000:] + done.stderr[-3000:]
    return done.stdout


def test_answers_are_as_the_clients_types_say(site: Site) -> None:
    document = own()
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == SERVED
    key = {"authorization": "Bearer key-a"}
    made = {"input_file_id": site.known.file, "endpoint": "/v1/chat/completions"}
    cases: list[tuple[str, str, str, Any]] = [
        ("post", "/chat/completions", "", ASK),
        ("post", "/completions", "", {"model": "t", "prompt": "a"}),
        ("post", "/embeddings", "", {"model": "t", "input": "a"}),
        ("get", "/models", "", None),
        ("get", "/models/{model}", "t", None),
        ("get", "/models/{model}", "other", None),
        ("get", "/files", "", None),
        ("get", "/files/{file_id}", site.known.file, None),
        ("get", "/batches", "", None),
        ("post", "/batches", "", {**made, "completion_window": "24h"}),
        ("post", "/batches", "", made),
        ("get", "/batches/{batch_id}", site.known.batch, None),
        ("post", "/batches/{batch_id}/cancel", site.known.batch, {}),
        ("delete", "/files/{file_id}", "file-0", None),
    ]
    for method, path, name, body in cases:
        place = f"/v1{path.partition('{')[0]}{name}{'/cancel' if 'cancel' in path else ''}"
        got = send(site.running.url, body, place, key, method.upper())
        responses = document["paths"][path][method]["responses"]
        schema = responses[str(got.status)]["content"]["application/json"]["schema"]
        whole = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(whole).validate(got.json)


@pytest.mark.full
def test_requests_out_of_the_clients_types(site: Site, tmp_path: Path) -> None:
    assert "Tested: 14" in fuzzed(site, own(), tmp_path)
    assert set(site.teacher.paths) == ASKED


@pytest.mark.full
def test_requests_out_of_the_published_document(site: Site, tmp_path: Path) -> None:
    if SPEC not in os.environ:
        pytest.skip(f"needs OpenAI's openapi.json, its path in {SPEC}")
    published = json.loads(Path(os.environ[SPEC]).read_text(encoding="utf-8"))
    assert "Tested: 14" in fuzzed(site, pruned(published), tmp_path)
    assert set(site.teacher.paths) == ASKED
