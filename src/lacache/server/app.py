"""The routes of the server, and how errors end."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from lacache.core.errors import LaCacheError
from lacache.server.answers import Json, error_body, models_list
from lacache.server.body_limit import BodyLimit
from lacache.server.engine_thread import BusyError, ClosedError, LateError
from lacache.server.key_check import KeyCheck
from lacache.server.schemas import ChatRequest, CompletionRequest
from lacache.server.service import Service
from lacache.version import __version__

_WATCH_SECONDS = 0.5


def make_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        service: what answers.
        api_key: what clients must send as `Authorization: Bearer ...`; None lets everybody in.
    """
    app = FastAPI(title="LaCache", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, most=service.limits.body_bytes)
    if api_key is not None:
        app.add_middleware(KeyCheck, api_key=api_key)
    _handle_errors(app)

    @app.get("/health")
    async def health() -> Json:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> Json:
        return models_list(service.model.name)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answered(service, body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answered(service, body, request)

    return app


async def _answered(
    service: Service, body: CompletionRequest | ChatRequest, request: Request
) -> Response:
    if body.model not in (None, service.model.name):
        raise HTTPException(404, f"model {body.model!r} is not here; try {service.model.name!r}")
    if body.stream:
        return StreamingResponse(_sent(service.stream(body)), media_type="text/event-stream")
    answer = asyncio.create_task(service.answer(body))
    while not (await asyncio.wait([answer], timeout=_WATCH_SECONDS))[0]:
        if await request.is_disconnected():
            answer.cancel()
            return Response(status_code=499)
    return JSONResponse(answer.result())


async def _sent(chunks: AsyncIterator[Json]) -> AsyncIterator[str]:
    """As server-sent events. An error in the midst of a stream can only be told in it."""
    try:
        async for chunk in chunks:
            yield f"data: {json.dumps(chunk)}\n\n"
    except (BusyError, ClosedError, LateError, LaCacheError) as error:
        yield f"data: {json.dumps(_body(error))}\n\n"
    except Exception:
        yield f"data: {json.dumps(_INTERNAL)}\n\n"
        raise
    yield "data: [DONE]\n\n"


_INTERNAL = error_body("the server failed; its log says why", kind="server_error")


def _body(error: Exception) -> Json:
    if isinstance(error, BusyError):
        return error_body("as many texts wait as may; come again", kind="rate_limit_error")
    if isinstance(error, ClosedError):
        return error_body("the server is ending", kind="server_error")
    if isinstance(error, LateError):
        return error_body("the text took longer than it may; ask for less", kind="timeout_error")
    return error_body(" ".join(str(error).split()))


def _handle_errors(app: FastAPI) -> None:
    statuses: dict[type[Exception], tuple[int, dict[str, str]]] = {
        LaCacheError: (400, {}),
        BusyError: (429, {"Retry-After": "5"}),
        ClosedError: (503, {"Retry-After": "5"}),
        LateError: (504, {}),
    }
    for kind, (status, headers) in statuses.items():

        def handle(
            request: Request, error: Exception, status: int = status, headers: Any = headers
        ) -> JSONResponse:
            return JSONResponse(_body(error), status, headers)

        app.add_exception_handler(kind, handle)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(error_body(message, param=where or None), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(_INTERNAL, 500)
