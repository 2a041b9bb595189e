"""A server that anybody on this machine may use is still not for any page in a browser."""

from collections.abc import Collection
from typing import final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lacache.server.answers import error_body


@final
class HostCheck:
    """Refuses requests to a name that is not the server's.

    A page could otherwise have its own name lead to this machine, and then read and write here as
    its own (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or self._is_ours(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        text = f"the server is not called so; call it {' or '.join(sorted(self._hosts))}"
        await JSONResponse(error_body(text), 400)(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        try:
            return urlsplit(f"//{host}").hostname in self._hosts
        except ValueError:
            return False
