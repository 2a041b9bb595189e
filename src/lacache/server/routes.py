"""OpenAI's routes, the health check and the metrics."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from lacache.errors import LaCacheError
from lacache.server.errors import INTERNAL_ERROR, ServerError, ShutdownError, error_response
from lacache.server.openai_format import model_info, models_list
from lacache.server.response import CompletionResponse
from lacache.server.schemas import ERRORS, ChatRequest, CompletionRequest, Json, content_types
from lacache.server.service import Service

_DISCONNECT_POLL_SECONDS = 0.5
_STREAM = content_types("application/json", "text/event-stream")


def router(service: Service) -> APIRouter:
    """Return the routes of a service."""
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
        return models_list(list(service.models))

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        return model_info(service.model(name).name)

    @routes.post("/v1/completions", responses=_STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _respond(service, body, request)

    @routes.post("/v1/chat/completions", responses=_STREAM)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _respond(service, body, request)

    return routes


async def _respond(
    service: Service, body: CompletionRequest | ChatRequest, request: Request
) -> Response:
    """Generate for one request; a client that disconnects cancels it and frees its batch slots."""
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
        response.cancel()


@final
class _EventStream(StreamingResponse):
    """A response as server-sent events, cancelled when its client disconnects."""

    def __init__(self, response: CompletionResponse) -> None:
        super().__init__(_events(response.chunks()), media_type="text/event-stream")
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; cancel also if the client disconnects before the first one."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._response.cancel()


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
