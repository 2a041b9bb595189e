"""Errors of the server, and the response to each error in OpenAI's format."""

import json
import re
import reprlib
from collections.abc import Sequence
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
        super().__init__("the client disconnected, so the request was aborted; send it again")


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
        message, field = _describe(error.errors())
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
_PLACES = ("body", "query", "path")

_WRONG_TYPE = re.compile(
    r"(string|int|float|bool|list|dict|model)_(attributes_)?(type|parsing|from.*)"
)
_TYPES = {
    "string": ("a string", "send text in quotes"),
    "int": ("an integer", "try {name}=1"),
    "float": ("a number", "try {name}=1"),
    "bool": ("true or false", "try {name}=true"),
    "list": ("a list", "put it in [ ]"),
    "dict": ("an object", "put it in {{ }}"),
    "model": ("an object", "put it in {{ }}"),
}
"""Rule and remedy for values of a wrong type, by the beginning of pydantic's error type."""

_RULES = {
    "greater_than_equal": ("at least {ge}", "try {name}={ge}"),
    "greater_than": ("above {gt}", "try a larger one"),
    "less_than_equal": ("at most {le}", "try {name}={le}"),
    "less_than": ("below {lt}", "try a smaller one"),
    "string_too_short": ("of length {min_length} or more", "add to it, or leave it out"),
    "string_too_long": ("of length {max_length} or less", "shorten it"),
    "too_short": ("of length {min_length} or more", "add to it"),
    "too_long": ("of length {max_length} or less", "shorten it"),
    "literal_error": ("{expected}", "use one of them"),
}
"""Rule and remedy for other values, by pydantic's error type."""


def _describe(errors: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return the message for the first wrong field, and its name.

    Args:
        errors: of pydantic; a field that may have several types has an error for each of them.
    """
    paths = [_path(error) for error in errors]
    # The type that was meant is the one that fits furthest into the value.
    path = max((each for each in paths if each[:1] == paths[0][:1]), key=len)
    found = [error for error, each in zip(errors, paths, strict=True) if each == path]
    matches = [_WRONG_TYPE.fullmatch(error["type"]) for error in found]
    error = next((each for each, match in zip(found, matches, strict=True) if not match), found[0])
    kind, context, name = error["type"], error.get("ctx", {}), ".".join(path)
    if kind == "json_invalid":
        return f"the body is not valid JSON: {context['error']}; mend it there", ""
    if kind == "value_error":
        return str(context["error"]), name
    if kind == "missing":
        return f"{name} is missing; add it" if name else "the body is missing; send JSON", name
    # Fields of OpenAI's that would change the response may only have their default.
    if context.get("max_length") == 0 or (
        kind == "literal_error" and " or " not in context["expected"]
    ):
        return f"{name} is not supported by this server; leave it out", name
    if all(matches):
        types = dict.fromkeys(_TYPES[match[1]] for match in matches if match)
        rule, remedy = " or ".join(a for a, _ in types), ", or ".join(b for _, b in types)
    elif kind in _RULES:
        rule, remedy = _RULES[kind]
    else:
        return f"{name or 'the body'}: {error['msg']}; correct it", name
    numbers = {key: f"{value:.15g}" for key, value in context.items() if isinstance(value, float)}
    values = {"name": name, **context, **numbers}
    if not name:
        return f"the body must be {rule.format(**values)}; send JSON as application/json", name
    given = f"{name}={_shown(error['input'])}"
    return f"{given} must be {rule.format(**values)}; {remedy.format(**values)}", name


def _path(error: dict[str, Any]) -> tuple[str, ...]:
    parts = [str(part) for part in error["loc"]]
    start = 1 if parts[:1] and parts[0] in _PLACES else 0
    return tuple(part for part in parts[start:] if not _TYPE.fullmatch(part))


def _shown(value: Any) -> str:
    """Return a value of JSON in short."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)
