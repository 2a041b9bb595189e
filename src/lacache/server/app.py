"""The application: what stands before its routes, and how errors end."""

import re
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lacache.errors import LaCacheError
from lacache.server import inspector, routes, session_routes
from lacache.server.answers import INTERNAL, error_body, is_clients, of_error
from lacache.server.body_limit import BodyLimit
from lacache.server.counted import Counted
from lacache.server.errors import ServerError
from lacache.server.host_check import HostCheck
from lacache.server.key_check import KeyCheck
from lacache.server.service import Service
from lacache.version import __version__


def make_app(
    service: Service, *, api_key: str | None = None, hosts: Collection[str] = ()
) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        service: what answers.
        api_key: what clients must send as `Authorization: Bearer ...`; None lets everybody in.
        hosts: names by which it may be called; none are all.
    """
    app = FastAPI(title="LaCache", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(
        BodyLimit, most=service.limits.body_bytes, most_of_session=service.session_file_bytes
    )
    if api_key is not None:
        app.add_middleware(KeyCheck, api_key=api_key)
    if hosts:
        app.add_middleware(HostCheck, hosts=hosts)
    app.add_middleware(Counted, metrics=service.metrics)
    app.include_router(routes.router(service))
    app.include_router(session_routes.router(service))
    app.include_router(inspector.router(service))
    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(LaCacheError)
    async def wrong(request: Request, error: LaCacheError) -> JSONResponse:
        return JSONResponse(of_error(error), 400 if is_clients(error) else 500)

    @app.exception_handler(ServerError)
    async def refused(request: Request, error: ServerError) -> JSONResponse:
        wait = error.retry_after
        headers = None if wait is None else {"Retry-After": str(wait)}
        return JSONResponse(of_error(error), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        message, where = _said(error.errors()[0])
        return JSONResponse(error_body(message, param=where or None), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse(INTERNAL, 500)


_TYPE = re.compile(r"(constrained-)?str|list\[.*")


def _said(first: dict[str, Any]) -> tuple[str, str]:
    """What is wrong, and with which field; without the names of our types."""
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['ctx']['error']}", ""
    parts = [str(part) for part in first["loc"] if part != "body"]
    where = ".".join(part for part in parts if not _TYPE.fullmatch(part))
    message = first["msg"].removeprefix("Value error, ")
    return (f"{where}: {message}" if where else f"the body: {message}"), where
