"""Who has no key comes no further."""

import hmac
from typing import final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lacache.server.answers import error_body
from lacache.server.inspector import PAGE

_OPEN = ("/health", "/")


@final
class KeyCheck:
    """Asks for `Authorization: Bearer <key>`."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or _is_open(scope["path"]) or self._is_right(scope):
            await self._app(scope, receive, send)
            return
        text = "the API key is missing or wrong; send Authorization: Bearer <key>"
        body = error_body(text, kind="authentication_error")
        await JSONResponse(body, 401)(scope, receive, send)

    def _is_right(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


def _is_open(path: str) -> bool:
    """The page asks for the key itself, and nothing of anybody's is in it."""
    return path in _OPEN or path.startswith(PAGE)
