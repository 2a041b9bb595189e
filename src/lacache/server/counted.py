"""Counts answers by route and status."""

from typing import final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lacache.server.metrics import Metrics


@final
class Counted:
    """Stands before the routes, which tell by then which of them it was."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = "none" if route is None else route.path
                self._metrics.answers.labels(path, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)
