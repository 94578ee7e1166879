"""OpenAPI documents of the paths that the gateway serves: from the openai client's own types, and
OpenAI's published one, pruned.

The client is generated from the published document, so its types say what clients rely on. That
document itself is not kept here: who has it names its file in STILLHOUSE_OPENAI_SPEC.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from openai.types import (
    Batch,
    Completion,
    CreateEmbeddingResponse,
    FileDeleted,
    FileObject,
    Model,
    batch_create_params,
    completion_create_params,
    embedding_create_params,
)
from openai.types.chat import ChatCompletion
from openai.types.chat import completion_create_params as chat_params
from pydantic import TypeAdapter

SERVED = {
    "/chat/completions": ["post"],
    "/completions": ["post"],
    "/embeddings": ["post"],
    "/models": ["get"],
    "/models/{model}": ["get"],
    "/files": ["get", "post"],
    "/files/{file_id}": ["delete", "get"],
    "/files/{file_id}/content": ["get"],
    "/batches": ["get", "post"],
    "/batches/{batch_id}": ["get"],
    "/batches/{batch_id}/cancel": ["post"],
}
ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# OpenAI's document names no errors; those that the gateway gives have OpenAI's shape.
ERRORS = {
    status: {"description": "Refused.", "content": {"application/json": {"schema": ERROR}}}
    for status in ("400", "401", "403", "404", "405", "409", "413", "429")
}
EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_SECURITY = {"bearer": {"type": "http", "scheme": "bearer"}}


def _count(most: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": 1, "maximum": most}


# The gateway's own, as they are where gateway.yaml says nothing.
_LIMITS = {
    "n": _count(16),
    "best_of": _count(16),
    "max_tokens": _count(200_000),
    "max_completion_tokens": _count(200_000),
}


class Known(NamedTuple):
    """What there is: the only model, a file of requests and a batch of them."""

    task: str
    file: str
    batch: str

    def put(self, document: dict[str, Any]) -> None:
        """Let requests name these and keep within limits, so that they come to something."""
        paths, only = document["paths"], {"type": "string", "enum": [self.batch]}
        for path in ("/batches/{batch_id}", "/batches/{batch_id}/cancel"):
            for operation in paths[path].values():
                operation["parameters"][0]["schema"] = only
        for path in ("/chat/completions", "/completions", "/embeddings", "/batches"):
            self._put_in(paths[path]["post"]["requestBody"], document["components"]["schemas"])

    def _put_in(self, body: Any, schemas: dict[str, Any]) -> None:
        schema = body["content"]["application/json"]["schema"]
        if "$ref" in schema:
            schema = schemas[schema["$ref"].rsplit("/", 1)[1]]
        for one in (schema, *schema.get("allOf", ())):
            properties = one.get("properties", {})
            for name, value in (("model", self.task), ("input_file_id", self.file)):
                if name in properties:
                    properties[name] = {"type": "string", "enum": [value]}
            properties |= {name: one for name, one in _LIMITS.items() if name in properties}
            if "messages" in properties:
                properties["messages"] = {**properties["messages"], "minItems": 1}


def own() -> dict[str, Any]:
    """The served paths out of the client's types."""
    schemas: dict[str, Any] = {}

    def named(kind: Any) -> str:
        return f"{kind.__module__}.{kind.__name__}".removeprefix("openai.types.")

    def schema(kind: Any) -> dict[str, Any]:
        # Modules have classes of the same names.
        home = named(kind).rpartition(".")[0]
        made = TypeAdapter(kind).json_schema(ref_template=f"#/components/schemas/{home}.{{model}}")
        parts = made.pop("$defs", {})
        schemas.update({f"{home}.{name}": part for name, part in parts.items()})
        schemas[named(kind)] = made
        return {"$ref": f"#/components/schemas/{named(kind)}"}

    def listed(kind: Any) -> dict[str, Any]:
        shown = {
            "object": {"const": "list"},
            "data": {"type": "array", "items": schema(kind)},
            "has_more": {"type": "boolean"},
        }
        return {"type": "object", "required": ["object", "data"], "properties": shown}

    def answered(shape: dict[str, Any] | None, *, streams: bool = False) -> dict[str, Any]:
        content: dict[str, Any] = {"application/json": {"schema": shape}}
        if shape is None:
            content = {"application/octet-stream": {"schema": {"format": "binary"}}}
        if streams:
            content["text/event-stream"] = {"schema": EVENT}
        return {"responses": {"200": {"description": "Done.", "content": content}, **ERRORS}}

    def body(kind: Any) -> dict[str, Any]:
        shown = schema(kind)
        if kind is chat or kind is older:
            schemas[named(kind)]["properties"]["stream"] = {"type": ["boolean", "null"]}
        return {
            "requestBody": {"required": True, "content": {"application/json": {"schema": shown}}}
        }

    def query(name: str, of: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "in": "query", "required": False, "schema": of}

    def path(name: str) -> dict[str, Any]:
        return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}

    chat = chat_params.CompletionCreateParamsNonStreaming
    older = completion_create_params.CompletionCreateParamsNonStreaming
    embedding = embedding_create_params.EmbeddingCreateParams
    batch = batch_create_params.BatchCreateParams
    after, limit = query("after", {"type": "string"}), query("limit", {"type": "integer"})
    order = query("order", {"enum": ["asc", "desc"]})
    purpose = query("purpose", {"type": "string"})
    form = {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": ["batch"]},
        },
    }
    upload = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    paths: dict[str, Any] = {
        "/chat/completions": {"post": body(chat) | answered(schema(ChatCompletion), streams=True)},
        "/completions": {"post": body(older) | answered(schema(Completion), streams=True)},
        "/embeddings": {"post": body(embedding) | answered(schema(CreateEmbeddingResponse))},
        "/models": {"get": answered(listed(Model))},
        "/models/{model}": {"get": {"parameters": [path("model")]} | answered(schema(Model))},
        "/files": {
            "get": {"parameters": [after, limit, order, purpose]} | answered(listed(FileObject)),
            "post": {"requestBody": upload} | answered(schema(FileObject)),
        },
        "/files/{file_id}": {
            "get": {"parameters": [path("file_id")]} | answered(schema(FileObject)),
            "delete": {"parameters": [path("file_id")]} | answered(schema(FileDeleted)),
        },
        "/files/{file_id}/content": {"get": {"parameters": [path("file_id")]} | answered(None)},
        "/batches": {
            "get": {"parameters": [after, limit]} | answered(listed(Batch)),
            "post": body(batch) | answered(schema(Batch)),
        },
        "/batches/{batch_id}": {
            "get": {"parameters": [path("batch_id")]} | answered(schema(Batch))
        },
        "/batches/{batch_id}/cancel": {
            "post": {"parameters": [path("batch_id")]} | answered(schema(Batch))
        },
    }
    return _document(paths, {"schemas": schemas})


def pruned(published: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's published document with the served paths alone, what they refer to, and errors."""
    paths = {
        path: {method: dict(published["paths"][path][method]) for method in methods}
        for path, methods in SERVED.items()
    }
    for operation in (one for methods in paths.values() for one in methods.values()):
        operation["responses"] = {**operation["responses"], **ERRORS}
        operation.pop("security", None)
    # What the document leaves out: older completions are streamed too, and a content is bytes.
    _also(paths["/completions"]["post"], "text/event-stream", EVENT)
    _also(paths["/files/{file_id}/content"]["get"], "application/octet-stream", {"type": "string"})
    components: dict[str, Any] = {}
    waiting = list(_references(paths))
    while waiting:
        kind, name = waiting.pop()
        if name not in components.setdefault(kind, {}):
            # A discriminator without mapping would want schemas' names where the API says types;
            # the unions that it is of stay.
            found = _without(published["components"][kind][name], "discriminator")
            components[kind][name] = found
            waiting += _references(found)
    return _document(paths, components)


def _without(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return {name: _without(inner, key) for name, inner in value.items() if name != key}
    return [_without(inner, key) for inner in value] if isinstance(value, list) else value


def _also(operation: dict[str, Any], kind: str, schema: dict[str, Any]) -> None:
    good = operation["responses"]["200"]
    content = {**good["content"], kind: {"schema": schema}}
    operation["responses"]["200"] = {**good, "content": content}


def _document(paths: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {"title": "The served part of OpenAI's API", "version": "1"},
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {**components, "securitySchemes": _SECURITY},
    }


def _references(value: Any) -> Iterator[tuple[str, str]]:
    """Kinds and names of the components that a part of a document refers to."""
    if isinstance(value, dict):
        target = value.get("$ref")
        if isinstance(target, str):
            _, _, kind, name = target.split("/")
            yield kind, name
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
