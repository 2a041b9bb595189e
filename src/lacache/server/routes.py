"""OpenAI's routes, and those that tell how the server is."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from lacache.errors import LaCacheError
from lacache.server.answers import INTERNAL, model_info, models_list, of_error
from lacache.server.documented import ERRORS, may_be
from lacache.server.errors import ClosedError, ServerError
from lacache.server.json import Json
from lacache.server.schemas import ChatRequest, CompletionRequest
from lacache.server.service import Service
from lacache.server.texts import Texts

_WATCH_SECONDS = 0.5
_STREAM = may_be("application/json", "text/event-stream")


def router(service: Service) -> APIRouter:
    """The routes of a service."""
    routes = APIRouter(responses=ERRORS)

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health")
    async def health() -> Json:
        if not service.is_alive:
            raise ClosedError
        return {"status": "ok"}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=1.0.0")

    @routes.get("/v1/models")
    async def models() -> Json:
        return models_list(list(service.all))

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Json:
        return model_info(service.served(name).name)

    @routes.post("/v1/completions", responses=_STREAM)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answered(service, body, request)

    @routes.post("/v1/chat/completions", responses=_STREAM)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answered(service, body, request)

    return routes


async def _answered(
    service: Service, body: CompletionRequest | ChatRequest, request: Request
) -> Response:
    texts = await service.begin(body)
    if body.stream:
        return _Streamed(texts)
    answer = asyncio.create_task(texts.whole())
    try:
        while not (await asyncio.wait([answer], timeout=_WATCH_SECONDS))[0]:
            if await request.is_disconnected():
                return Response(status_code=499)
        return JSONResponse(answer.result())
    finally:
        answer.cancel()
        texts.close()


@final
class _Streamed(StreamingResponse):
    """Texts as server-sent events; when nobody listens any more, they end."""

    def __init__(self, texts: Texts) -> None:
        super().__init__(_sent(texts.chunks()), media_type="text/event-stream")
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Also where the first piece is never sent."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._texts.close()


async def _sent(chunks: AsyncIterator[Json]) -> AsyncIterator[str]:
    """An error in the midst of a stream can only be told in it."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except (ServerError, LaCacheError) as error:
        yield f"data: {json.dumps(of_error(error))}\n\n"
    except Exception:
        yield f"data: {json.dumps(INTERNAL)}\n\n"
        raise
    yield "data: [DONE]\n\n"
