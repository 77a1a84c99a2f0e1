"""What `/v1/chat/completions` and `/v1/completions` take: OpenAI's fields that vLLM has, checked before it sees them.

A wrong or unknown field is a 400 that names it, not a silent default. Two defaults are not OpenAI's: `temperature` is
0 (greedy, so that an answer can be had again), and `max_tokens` is the server's `limits.default_max_tokens`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from deescal.serve.errors import RequestRefused
from deescal.serve.limits import Limits
from deescal.serve.response_format import ResponseFormat

INT64 = 2**63
MAX_TOKEN_ID = 2**31 - 1


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_without_nul)]
Prompt = Annotated[str, Field(min_length=1), AfterValidator(_without_nul)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1)]


class Strict(BaseModel):
    """Base of every part of a body: no conversion ("1" is no number), no NaN, no unknown field."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class TextPart(Strict):
    """Part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message. What only answers have is allowed while it says nothing, so that an answer can be sent back."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="expected a string, or a list of {type: text, text}"
    )
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    reasoning: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """Role and text; parts become lines, as vLLM joins them."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class StreamOptions(Strict):
    """Of a stream."""

    include_usage: bool = False


class Sampling(Strict):
    """What both kinds of request have."""

    model: Name
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    stop: Name | Annotated[list[Name], Field(max_length=4)] | None = Field(
        default=None, description="expected a string of 1 to 256 characters, or up to 4 of them"
    )
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None  # vLLM's: answer until max_tokens; for load tests
    user: Annotated[str, Field(max_length=256)] | None = None  # ignored
    metadata: Annotated[dict[Text, Text], Field(max_length=16)] | None = None  # ignored

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self


class ChatRequest(Sampling):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None  # OpenAI's newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same: give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


class CompletionRequest(Sampling):
    """Body of POST /v1/completions."""

    prompt: (
        Prompt
        | Annotated[list[Prompt], Field(min_length=1)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1)]
    ) = Field(description="expected a string, token ids, or a list of either; none of them empty")
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


def chat_fields(request: ChatRequest, limits: Limits) -> dict[str, Any]:
    """A request -> fields of vLLM's ChatCompletionRequest.

    Raises:
        RequestRefused: more than the server's limits allow.
    """
    asked = request.max_completion_tokens or request.max_tokens
    param = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
    fields = _sampling_fields(request, limits)
    fields["messages"] = [message.plain() for message in request.messages]
    fields["max_completion_tokens"] = bounded_tokens(asked, limits, param)
    return fields | _given(request, "logprobs", "top_logprobs", "response_format")


def completion_fields(request: CompletionRequest, limits: Limits) -> dict[str, Any]:
    """A request -> fields of vLLM's CompletionRequest; raises as `chat_fields`."""
    n_prompts = (
        len(request.prompt) if isinstance(request.prompt, list) and not isinstance(request.prompt[0], int) else 1
    )
    if n_prompts > limits.max_prompts:
        raise _beyond("prompt", n_prompts, limits.max_prompts)
    fields = _sampling_fields(request, limits)
    fields["max_tokens"] = bounded_tokens(request.max_tokens, limits, "max_tokens")
    return fields | _given(request, "prompt", "echo", "logprobs")


def bounded_tokens(asked: int | None, limits: Limits, param: str) -> int:
    """Tokens of a reply, at most; raises RequestRefused beyond the server's limit."""
    if asked is not None and asked > limits.max_tokens:
        raise _beyond(param, asked, limits.max_tokens)
    return asked or limits.default_max_tokens


def _beyond(param: str, asked: int, limit: int) -> RequestRefused:
    return RequestRefused(400, f"'{param}': {asked}, this server allows {limit}", param, code="limit")


_SAMPLING = [
    "model",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "seed",
    "n",
    "ignore_eos",
    "stream",
]


def _sampling_fields(request: Sampling, limits: Limits) -> dict[str, Any]:
    n, temperature = request.n or 1, request.temperature or 0.0
    if n > limits.max_n:
        raise _beyond("n", n, limits.max_n)
    if n > 1 and temperature == 0:
        raise RequestRefused(400, "'n': replies without a temperature would all be the same", "n", code="invalid_value")
    fields = _given(request, *_SAMPLING) | {"temperature": temperature}
    if request.stream:
        fields["stream_options"] = {"include_usage": True}  # for the log; `stream.follow` keeps it from who did not ask
    return fields


def _given(request: BaseModel, *names: str) -> dict[str, Any]:
    return request.model_dump(include=set(names), exclude_none=True, by_alias=True)
