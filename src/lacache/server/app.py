"""The ASGI application: its routes, and the middleware before them.

Starlette's own TrustedHostMiddleware and FastAPI's HTTPBearer are not used: their errors have
another format, the former refuses `[::1]:8000` in older releases, and the latter lets the body of
a request without a key be parsed, and its path be looked up.
"""

import hmac
from collections.abc import Collection
from typing import final
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lacache.server.errors import add_error_handlers, error_body
from lacache.server.metrics import Metrics
from lacache.server.routes import (
    PAGE,
    SESSIONS,
    inspector_routes,
    openai_routes,
    session_routes,
)
from lacache.server.service import Service
from lacache.version import __version__


def make_app(
    service: Service, *, api_key: str | None = None, hosts: Collection[str] = ()
) -> FastAPI:
    """Return the application of a service, for any ASGI server.

    Args:
        service: answers the requests.
        api_key: key that clients must send as `Authorization: Bearer ...`; None asks for none.
        hosts: allowed names in the Host header; empty allows all.
    """
    app = FastAPI(title="LaCache", version=__version__, docs_url=None, redoc_url=None)
    # The last one added runs first.
    app.add_middleware(
        BodyLimit,
        max_bytes=service.limits.body_bytes,
        max_import_bytes=service.session_file_bytes,
    )
    if api_key is not None:
        app.add_middleware(KeyCheck, api_key=api_key)
    if hosts:
        app.add_middleware(HostCheck, hosts=hosts)
    app.add_middleware(ResponseCounter, metrics=service.metrics)
    for routes in (openai_routes, session_routes, inspector_routes):
        app.include_router(routes(service))
    add_error_handlers(app)
    return app


@final
class ResponseCounter:
    """Count responses by route and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the response of one request."""

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The router has set it by now; paths without a route share one label.
                route = scope.get("route")
                path = "none" if route is None else route.path
                self._metrics.responses.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, count)


@final
class HostCheck:
    """Refuse requests whose Host header is not a name of this server.

    Prevents DNS rebinding: a web page whose own name resolves to this machine could otherwise read
    and write here as its own origin.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, or refuse it."""
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else None
        if host is None or self._is_allowed(host):
            await self._app(scope, receive, send)
            return
        allowed = " or ".join(sorted(self._hosts))
        text = f"Host header {host[:80]!r} is not allowed; use {allowed}"
        await JSONResponse(error_body(text), 400)(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        try:
            return urlsplit(f"//{host}").hostname in self._hosts
        except ValueError:
            return False


@final
class KeyCheck:
    """Refuse requests without `Authorization: Bearer <key>`.

    The health check and the page, which contains no user's data and asks for the key, need none.
    """

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and pass it on, or refuse it."""
        if scope["type"] != "http" or _needs_no_key(scope["path"]) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        text = "the API key is missing or wrong; send Authorization: Bearer <key>"
        body = error_body(text, kind="authentication_error")
        await JSONResponse(body, 401)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


def _needs_no_key(path: str) -> bool:
    return path in ("/health", "/") or path.startswith(PAGE)


@final
class BodyLimit:
    """Refuse a request as soon as its body is too large, whatever its Content-Length is.

    Args:
        app: the next application.
        max_bytes: limit of all requests but imports of sessions.
        max_import_bytes: limit of these, where it is larger.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_import_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_import_bytes = max(max_bytes, max_import_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes of one request."""
        num_bytes = 0
        max_bytes = self._max_import_bytes if _is_import(scope) else self._max_bytes

        async def count() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > max_bytes:
                # FastAPI passes on only its own exception from within the reading of a body.
                raise HTTPException(
                    413, f"the request is larger than {max_bytes} bytes; shorten it"
                )
            return message

        await self._app(scope, count, send)


def _is_import(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "PUT":
        return False
    path: str = scope["path"]
    return path.startswith(f"{SESSIONS}/")
