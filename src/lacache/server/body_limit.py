"""Requests that are too large end before they are read."""

from typing import final

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lacache.server.session_routes import PREFIX


@final
class BodyLimit:
    """Counts what comes, whatever its header says."""

    def __init__(self, app: ASGIApp, most: int, most_of_session: int) -> None:
        self._app = app
        self._most = most
        self._most_of_session = max(most, most_of_session)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        came = 0
        most = self._most_of_session if _is_import(scope) else self._most

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > most:
                # FastAPI's own, which it passes on from within the reading of a body.
                raise HTTPException(413, f"the request is larger than {most} bytes")
            return message

        await self._app(scope, counted, send)


def _is_import(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "PUT":
        return False
    path: str = scope["path"]
    return path.startswith(f"{PREFIX}/")
