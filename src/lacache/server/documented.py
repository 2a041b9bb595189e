"""What the OpenAPI schema says of answers besides their own types."""

from typing import Any

from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


class ErrorFacts(BaseModel):
    """Why a request is refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """In OpenAI's format."""

    error: ErrorFacts


ERRORS: Responses = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def may_be(*types: str) -> Responses:
    """An answer of other content types."""
    return {200: {"content": {each: {} for each in types}}}
