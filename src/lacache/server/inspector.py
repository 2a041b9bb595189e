"""The inspector: a page to chat on that shows what the cache holds, and its data."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.staticfiles import StaticFiles

from lacache.server.schemas import ERRORS, Json
from lacache.server.service import Service

PAGE = "/page/"
_HEADERS = {
    # The page loads nothing from elsewhere, and no other page may embed it.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files of two releases do not fit together, so browsers must revalidate.
    "Cache-Control": "no-cache",
}


def router(service: Service) -> APIRouter:
    """Return the routes of the page and of its data."""
    routes = APIRouter(responses=ERRORS)
    files = StaticFiles(packages=[("lacache.server", "page")])

    @routes.head("/", include_in_schema=False)
    @routes.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page_file("index.html", request)

    @routes.get(PAGE + "{name}", include_in_schema=False)
    async def page_file(name: str, request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(_HEADERS)
        return response

    @routes.get("/inspect")
    def inspect(seen: Annotated[int, Query(ge=0, le=10**12)], model: str | None = None) -> Json:
        return service.model(model).inspector.after(seen)

    return routes
