"""All routes: OpenAI's, named sessions, the inspector's page, the health check and the metrics."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, final

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import StringConstraints
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from lacache.errors import LaCacheError
from lacache.server.errors import INTERNAL_ERROR, ServerError, ShutdownError, error_response
from lacache.server.response import CompletionResponse
from lacache.server.schemas import (
    ERRORS,
    ChatRequest,
    CompletionRequest,
    Json,
    SessionRequest,
    content_types,
)
from lacache.server.service import Service
from lacache.server.session_store import SessionInfo

SESSIONS = "/v1/sessions"
PAGE = "/page/"

_DISCONNECT_POLL_SECONDS = 0.5
_STREAM = content_types("application/json", "text/event-stream")
_FILE = "application/octet-stream"
_UPLOAD = {"requestBody": {"required": True, "content": {_FILE: {"schema": {}}}}}

_Name = Annotated[str, StringConstraints(max_length=1_000)]
_PAGE_HEADERS = {
    # The page loads nothing from elsewhere, and no other page may embed it.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files of two releases do not fit together, so browsers must revalidate.
    "Cache-Control": "no-cache",
}


def openai_routes(service: Service) -> APIRouter:
    """Return OpenAI's routes, the health check and the metrics."""
    routes = APIRouter(responses=ERRORS)

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health")
    async def health() -> Json:
        if not service.is_alive:
            raise ShutdownError
        return {"status": "ok"}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=1.0.0")

    @routes.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [_model_record(name) for name in service.models]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        return _model_record(service.model(name).name)

    @routes.post("/v1/completions", responses=_STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _respond(service, body, request)

    @routes.post("/v1/chat/completions", responses=_STREAM)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _respond(service, body, request)

    return routes


def _model_record(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "lacache"}


def session_routes(service: Service) -> APIRouter:
    """Return the routes that list, create, fork, export, import and delete named sessions.

    Those that are not coroutines run in threads of their own.
    """
    routes = APIRouter(prefix=SESSIONS, responses=ERRORS)

    @routes.get("")
    def list_sessions(model: str | None = None) -> Json:
        sessions = service.sessions(model).all()
        return {"object": "list", "data": [_session_record(info) for info in sessions]}

    @routes.post("", status_code=201)
    def create_session(body: SessionRequest) -> Json:
        return _session_record(service.sessions(body.model).create(body.name))

    @routes.get("/{name}")
    def get_session(name: _Name, model: str | None = None) -> Json:
        return _session_record(service.sessions(model).info(name))

    @routes.delete("/{name}")
    def delete_session(name: _Name, model: str | None = None) -> Json:
        service.sessions(model).delete(name)
        return {"id": name, "object": "session", "deleted": True}

    @routes.post("/{name}/fork", status_code=201)
    def fork_session(name: _Name, body: SessionRequest) -> Json:
        return _session_record(service.sessions(body.model).fork(name, body.name))

    @routes.get("/{name}/file", response_class=Response, responses=content_types(_FILE))
    def export_session(name: _Name, model: str | None = None) -> Response:
        return Response(service.sessions(model).export_file(name), media_type=_FILE)

    @routes.put("/{name}/file", status_code=201, openapi_extra=_UPLOAD)
    async def import_session(name: _Name, request: Request, model: str | None = None) -> Json:
        sessions = service.sessions(model)
        data = await request.body()
        return _session_record(await run_in_threadpool(sessions.import_file, name, data))

    return routes


def _session_record(info: SessionInfo) -> Json:
    return {
        "id": info.name,
        "object": "session",
        "num_seen": info.num_seen,
        "bytes": info.num_bytes,
        "changed": int(info.changed),
    }


def inspector_routes(service: Service) -> APIRouter:
    """Return the routes of the inspector, a page to chat on that shows what the cache holds."""
    routes = APIRouter(responses=ERRORS)
    files = StaticFiles(packages=[("lacache.server", "page")])

    @routes.head("/", include_in_schema=False)
    @routes.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page_file("index.html", request)

    @routes.get(PAGE + "{name}", include_in_schema=False)
    async def page_file(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(_PAGE_HEADERS)
        return response

    @routes.get("/inspect")
    def inspect(seen: Annotated[int, Query(ge=0, le=10**12)], model: str | None = None) -> Json:
        return service.model(model).inspector.after(seen)

    return routes


async def _respond(
    service: Service, body: CompletionRequest | ChatRequest, request: Request
) -> Response:
    """Generate for one request; if the client disconnects, abort it."""
    response = await service.start(body)
    if body.stream:
        return _EventStream(response)
    answer = asyncio.create_task(response.body())
    try:
        while not (await asyncio.wait([answer], timeout=_DISCONNECT_POLL_SECONDS))[0]:
            if await request.is_disconnected():
                return Response(status_code=499)
        return JSONResponse(answer.result())
    finally:
        answer.cancel()
        response.abort()


@final
class _EventStream(StreamingResponse):
    """A response as server-sent events, aborted when its client disconnects."""

    def __init__(self, response: CompletionResponse) -> None:
        super().__init__(_events(response.chunks()), media_type="text/event-stream")
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; abort also if the client disconnects before the first one."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._response.abort()


async def _events(chunks: AsyncIterator[Json]) -> AsyncIterator[str]:
    # The status has been sent by now, so an error can only be an event.
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except (ServerError, LaCacheError) as error:
        yield f"data: {json.dumps(error_response(error))}\n\n"
    except Exception:
        yield f"data: {json.dumps(INTERNAL_ERROR)}\n\n"
        raise
    yield "data: [DONE]\n\n"
