"""Requests in OpenAI's format, as far as this server understands them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_NAMED = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """What a streamed answer tells besides its text."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class TextRequest(BaseModel):
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
    stop: _NAMED | list[_NAMED] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)

    @property
    def stops(self) -> tuple[str, ...]:
        """As a tuple."""
        given = self.stop or ()
        return (given,) if isinstance(given, str) else tuple(given)

    @property
    def tells_usage(self) -> bool:
        """At the end of a streamed answer."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(TextRequest):
    """`/v1/completions`."""

    prompt: str | list[Annotated[int, Field(ge=0)]]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: Literal[False] = False
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None


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
            if all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
                return value | {"content": "".join(part["text"] for part in parts)}
        return value


class ChatRequest(TextRequest):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    tools: list[Any] | None = Field(None, max_length=0)
