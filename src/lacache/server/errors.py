"""What a server refuses for reasons of its own; how each is told in HTTP stands with it."""

from typing import ClassVar


class ServerError(Exception):
    """One of those below."""

    status: ClassVar[int]
    kind: ClassVar[str]
    """OpenAI's `type`."""
    retry_after: ClassVar[int | None] = None
    """Seconds."""


class BusyError(ServerError):
    """As many texts wait as may."""

    status, kind, retry_after = 429, "rate_limit_error", 5

    def __init__(self) -> None:
        super().__init__("as many texts wait as may; come again")


class LateError(ServerError):
    """A text took longer than it may."""

    status, kind = 504, "timeout_error"

    def __init__(self) -> None:
        super().__init__("the text took longer than it may; ask for less")


class ClosedError(ServerError):
    """The server ends."""

    status, kind, retry_after = 503, "server_error", 5

    def __init__(self) -> None:
        super().__init__("the server is ending")


class MissingError(ServerError):
    """Something that has a name is not here."""

    status, kind = 404, "invalid_request_error"


class ConflictError(ServerError):
    """A session is there already, or somebody writes to it."""

    status, kind = 409, "invalid_request_error"


class StorageError(ServerError):
    """A session cannot be read or written."""

    status, kind = 507, "server_error"
