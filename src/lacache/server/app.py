"""The ASGI application: routes, middleware and error handlers."""

from collections.abc import Collection

from fastapi import FastAPI

from lacache.server import inspector, routes, session_routes
from lacache.server.errors import add_error_handlers
from lacache.server.middleware import BodyLimit, HostCheck, KeyCheck, ResponseCounter
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
    for module in (routes, session_routes, inspector):
        app.include_router(module.router(service))
    add_error_handlers(app)
    return app
