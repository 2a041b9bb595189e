"""Request bodies in OpenAI's format, and the schema of error responses."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Json = dict[str, Any]
"""A JSON object."""

MAX_LOGPROBS = 20

_NonEmpty = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class TextRequest(BaseModel, ABC):
    """Fields that completions and chats share.

    A field of OpenAI's that this server does not support, and that would change the response, may
    only have its default value.
    """

    # Unknown fields are ignored, since clients send new ones every month.
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: _NonEmpty | Annotated[list[_NonEmpty], Field(fail_fast=True, max_length=64)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)
    session: str | None = None
    """Not OpenAI's: name of the session to continue; the prompt is then only what is new."""
    inspect: bool = False
    """Not OpenAI's: a stream includes its tokens, those of the prompt first."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop strings as a tuple."""
        given = self.stop or ()
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    @abstractmethod
    def num_top_logprobs(self) -> int | None:
        """Number of top log probabilities for each token; None is without log probabilities."""

    @property
    @abstractmethod
    def max_new_tokens(self) -> int | None:
        """Maximum number of new tokens; None leaves it to the server."""

    @model_validator(mode="after")
    def validate_session(self) -> Self:
        """Refuse several completions of one session."""
        if self.session is not None and self.n != 1:
            raise ValueError(f"n={self.n} must be 1 with a session; fork the session for more")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a streamed response ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(TextRequest):
    """Body of a request to `/v1/completions`."""

    prompt: str | Annotated[list[int], Field(fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: Literal[False] = False
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def num_top_logprobs(self) -> int | None:
        """Return the number in `logprobs`."""
        return self.logprobs

    @property
    def max_new_tokens(self) -> int | None:
        """Return the number in `max_tokens`."""
        return self.max_tokens


class Message(BaseModel):
    """One message of a chat, whose content must be text."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def join_parts(cls, value: Any) -> Any:
        """Join text parts, which some clients send, to one text."""
        if isinstance(value, dict) and isinstance(value.get("content"), list):
            parts = value["content"]
            if parts and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
                return value | {"content": "".join(part["text"] for part in parts)}
        return value


class ChatRequest(TextRequest):
    """Body of a request to `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = Field(None, max_length=0)

    @property
    def num_top_logprobs(self) -> int | None:
        """Return the number in `top_logprobs`, if log probabilities are requested."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_new_tokens(self) -> int | None:
        """Return the number in `max_completion_tokens`, or in the older `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def validate_logprobs(self) -> Self:
        """Refuse `top_logprobs` without `logprobs`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} needs logprobs=true; set it")
        return self


class SessionRequest(BaseModel):
    """Body of a request that creates or forks a session."""

    model_config = ConfigDict(extra="ignore")

    name: str
    model: str | None = None


class ErrorDetail(BaseModel):
    """Reason for which a request is refused."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of an error response in OpenAI's format."""

    error: ErrorDetail


Responses = dict[int | str, dict[str, Any]]
"""Responses of a route in the OpenAPI schema, by status."""

ERRORS: Responses = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}


def content_types(*types: str) -> Responses:
    """Return the schema of a successful response that has one of several content types."""
    return {200: {"content": {each: {} for each in types}}}
