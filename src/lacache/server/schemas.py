"""Requests in OpenAI's format, as far as this server understands them."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_LOGPROBS = 20

_NAMED = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a streamed answer tells besides its text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class TextRequest(BaseModel, ABC):
    """What both kinds of requests share.

    Fields of OpenAI's that would change the answer, and that this server has not, may only be given
    with the values that they have anyway.
    """

    # Fields that nobody knows are no reason to fail: clients send new ones every month.
    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    stop: _NAMED | Annotated[list[_NAMED], Field(fail_fast=True, max_length=64)] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)
    session: str | None = None
    """Not OpenAI's: go on with a session; the request then has what is new."""
    inspect: bool = False
    """Not OpenAI's: a stream tells its tokens too, those of the prompt first."""

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple."""
        given = self.stop or ()
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    @abstractmethod
    def num_top(self) -> int | None:
        """Likeliest tokens to tell with each; None is no log probabilities."""

    @property
    @abstractmethod
    def most_new(self) -> int | None:
        """Tokens to write at most."""

    @model_validator(mode="after")
    def validate_session(self) -> Self:
        """A session is one text."""
        if self.session is not None and self.n != 1:
            raise ValueError(f"n={self.n} must be 1 with a session; fork it for others")
        return self

    @property
    def tells_usage(self) -> bool:
        """At the end of a streamed answer."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(TextRequest):
    """`/v1/completions`."""

    prompt: str | Annotated[list[int], Field(fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: Literal[False] = False
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def num_top(self) -> int | None:
        """As many as `logprobs` says."""
        return self.logprobs

    @property
    def most_new(self) -> int | None:
        """As `max_tokens` says."""
        return self.max_tokens


class Message(BaseModel):
    """One turn. Other content than text is refused."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def join_parts(cls, value: Any) -> Any:
        """Text that comes in parts, as some clients send it, is joined."""
        if isinstance(value, dict) and isinstance(value.get("content"), list):
            parts = value["content"]
            if parts and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
                return value | {"content": "".join(part["text"] for part in parts)}
        return value


class ChatRequest(TextRequest):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[Any] | None = Field(None, max_length=0)

    @property
    def num_top(self) -> int | None:
        """As many as `top_logprobs` says."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most_new(self) -> int | None:
        """As `max_completion_tokens` says, or the older `max_tokens`."""
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def validate_logprobs(self) -> Self:
        """One needs the other."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs} needs logprobs=true")
        return self


class SessionRequest(BaseModel):
    """What makes a session, or forks one."""

    model_config = ConfigDict(extra="ignore")

    name: str
    model: str | None = None
