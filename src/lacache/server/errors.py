"""Errors of the server, and the response to each error in OpenAI's format."""

import re
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lacache.errors import ConfigError, InputError, LaCacheError
from lacache.server.schemas import Json


class ServerError(Exception):
    """Base of the errors that only a server has, with their HTTP status."""

    status: ClassVar[int]
    kind: ClassVar[str]
    """OpenAI's `type`."""
    retry_after: ClassVar[int | None] = None
    """Seconds."""


class QueueFullError(ServerError):
    """The queue has no place for another sequence."""

    status, kind, retry_after = 429, "rate_limit_error", 5

    def __init__(self) -> None:
        super().__init__(f"the queue is full; retry in {self.retry_after} s")


class RequestAbortedError(ServerError):
    """The client disconnected, or another completion of the request failed."""

    # The status that nginx logs for it; no client receives it.
    status, kind = 499, "request_aborted"

    def __init__(self) -> None:
        super().__init__("the request was aborted, since nobody reads its response any more")


class RequestTimeoutError(ServerError):
    """A sequence reached the server's time limit."""

    status, kind = 504, "timeout_error"

    def __init__(self) -> None:
        super().__init__("the request took longer than this server allows; ask for fewer tokens")


class ShutdownError(ServerError):
    """The server is shutting down, or its engine's thread has ended."""

    status, kind, retry_after = 503, "server_error", 5

    def __init__(self) -> None:
        super().__init__(f"the server is shutting down; retry in {self.retry_after} s")


class NotFoundError(ServerError):
    """A model or session of the given name does not exist."""

    status, kind = 404, "invalid_request_error"


class ConflictError(ServerError):
    """A session exists already, or another request is using it."""

    status, kind = 409, "invalid_request_error"


class StorageError(ServerError):
    """A session cannot be read from disk or written to it."""

    status, kind = 507, "server_error"


def error_body(
    message: str, *, kind: str = "invalid_request_error", param: str | None = None
) -> Json:
    """Return the body of an error response.

    Args:
        message: one line.
        kind: OpenAI's `type`.
        param: the field of the request that is wrong.
    """
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


INTERNAL_ERROR = error_body("the server failed; its log has the reason", kind="server_error")


def error_response(error: LaCacheError | ServerError) -> Json:
    """Return the body of the response to an exception, with its message in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ServerError):
        return error_body(text, kind=error.kind)
    return error_body(text) if _is_clients(error) else error_body(text, kind="server_error")


def add_error_handlers(app: FastAPI) -> None:
    """Make an application answer every exception in OpenAI's format."""

    @app.exception_handler(LaCacheError)
    async def lacache_error(request: Request, error: LaCacheError) -> JSONResponse:
        return JSONResponse(error_response(error), 400 if _is_clients(error) else 500)

    @app.exception_handler(ServerError)
    async def server_error(request: Request, error: ServerError) -> JSONResponse:
        wait = error.retry_after
        headers = None if wait is None else {"Retry-After": str(wait)}
        return JSONResponse(error_response(error), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        message, field = _describe(error.errors()[0])
        return JSONResponse(error_body(message, param=field or None), 400)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(INTERNAL_ERROR, 500)


def _is_clients(error: LaCacheError) -> bool:
    """Whether another request would succeed."""
    return isinstance(error, InputError | ConfigError)


# Names of our types in the path of a wrong field, which clients do not know.
_TYPE = re.compile(r"(constrained-)?str|list\[.*")


def _describe(first: dict[str, Any]) -> tuple[str, str]:
    """Return the message of a validation error, and the field that is wrong."""
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first['ctx']['error']}", ""
    parts = [str(part) for part in first["loc"] if part != "body"]
    field = ".".join(part for part in parts if not _TYPE.fullmatch(part))
    message = first["msg"].removeprefix("Value error, ")
    return (f"{field}: {message}" if field else f"the body: {message}"), field
