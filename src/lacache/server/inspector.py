"""The inspector: a page to chat on, which shows what the cache holds."""

from importlib.resources import files
from pathlib import PurePath
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette.exceptions import HTTPException

from lacache.server.documented import ERRORS
from lacache.server.json import Json
from lacache.server.service import Service

PAGE = "/page/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER = files("lacache.server") / "page"
# Names are looked up here and never joined to a path, so that no name leads out of the folder.
_PARTS = {part.name: part for part in _FOLDER.iterdir() if PurePath(part.name).suffix in _TYPES}
# The page asks nobody else for anything, and no other page may show it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Parts of two releases do not fit together.
    "Cache-Control": "no-cache",
}


def router(service: Service) -> APIRouter:
    """The routes of a service."""
    routes = APIRouter(responses=ERRORS)

    @routes.head("/", include_in_schema=False)
    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        return _file("index.html")

    @routes.get(PAGE + "{name}", include_in_schema=False)
    def part(name: str) -> Response:
        return _file(name)

    @routes.get("/inspect")
    def held(seen: Annotated[int, Query(ge=0, le=10**12)], model: str | None = None) -> Json:
        return service.served(model).holding.after(seen)

    return routes


def _file(name: str) -> Response:
    if name not in _PARTS:
        raise HTTPException(404, f"the page has no {name[:80]!r}")
    kind = _TYPES[PurePath(name).suffix]
    return Response(_PARTS[name].read_bytes(), media_type=kind, headers=_HEADERS)
