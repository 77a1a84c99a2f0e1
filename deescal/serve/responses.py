"""What answers look like, for the published schema; the engine's own are passed on as they are."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from deescal.serve.errors import ErrorBody


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(BaseModel):
    """One of `n` replies; `finish_reason` is `stop` or `length`."""

    index: int
    message: ReplyMessage
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class ChatResponse(BaseModel):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """One of `n` replies to one of the prompts."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: dict[str, Any] | None = None


class CompletionResponse(BaseModel):
    """Answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class RehearseResponse(BaseModel):
    """Answer of /v1/rehearse."""

    reply: str
    model: str
    finish_reason: str | None
    usage: Usage
    n_dropped_turns: int = Field(description="oldest turns left out with keep=newest")
    messages: list[dict[str, str]] | None = Field(default=None, description="the prompt, with echo_prompt=true")


class ModelCard(BaseModel):
    """A base model, or an adapter over it (`parent`)."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = Field(default=None, description="tokens of a prompt with its reply")
    weights: str | None = Field(default=None, description="changes when the weights under this name do")


class ModelList(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Answer of /health."""

    status: Literal["ok"] = "ok"


# With stream=true, as FastAPI describes its own server-sent events.
_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "description": "JSON of a chunk or an error; [DONE] at the end"}},
}
EVENTS: dict[str, Any] = {"text/event-stream": {"itemSchema": _EVENT}}
_REFUSALS: dict[int | str, str] = {
    400: "Wrong field or value, or a prompt too long; `param` names the field",
    401: "No API key, or a wrong one",
    403: "No API key is configured, and the client is of another machine",
    404: "No such model or path",
    408: "The request did not arrive in time",
    413: "Body too large",
    429: "Too many requests with this key; see Retry-After",
    500: "A failure of the server",
    503: "The engine is down",
    504: "No answer in time",
    "4XX": "Refused",  # stands for what ASGI servers and routers refuse, and for FastAPI's own 422, which is a 400 here
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description} for status, description in _REFUSALS.items()
}
