"""What a client is told when its request fails, in the shape of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from starlette.responses import JSONResponse

INVALID = "invalid_request_error"
SERVER = "server_error"
_MAX_SHOWN = 100  # characters of a name that the client made up
# Fields of OpenAI's API, or of vLLM's beside it, that clients do send and that this server does not have.
UNSUPPORTED = frozenset(
    [
        "audio",
        "best_of",
        "chat_template",
        "chat_template_kwargs",
        "function_call",
        "functions",
        "guided_json",
        "guided_regex",
        "logit_bias",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "store",
        "structured_outputs",
        "suffix",
        "tool_choice",
        "tools",
        "use_beam_search",
        "verbosity",
        "web_search_options",
    ]
)


class ErrorDetail(BaseModel):
    """`param` is the field at fault, if it is one's fault; `code` a name that programs can rely on."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Body of every answer that is no success."""

    error: ErrorDetail


class RequestRefused(Exception):
    """A request that is answered with an error status; its message is for the client and must hold no prompt."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        type: str = INVALID,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.type, self.code = status, message, param, type, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """As `ErrorBody`."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump()

    def response(self) -> JSONResponse:
        """The same as an answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def server_error(request_id: str) -> RequestRefused:
    """For a bug of ours: what it was stands in the server's log under that id."""
    return RequestRefused(500, f"the server failed; its log says why under {request_id}", None, SERVER, "internal")


def shown(name: object) -> str:
    """A name made up by the client, as it may stand in an answer or a log: short, one line, valid Unicode."""
    text = str(name).encode("utf-8", "replace").decode()
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "?", text)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def explain_invalid(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> RequestRefused:
    """pydantic's errors -> 400 that names the first field at fault and what is allowed.

    Args:
        errors: of FastAPI's `RequestValidationError`, not empty. Their `input` is not told: it may hold a prompt.
        model: what the body should have been.
    """
    first = _locate(errors[0], model)
    if errors[0]["type"] == "json_invalid":
        return RequestRefused(400, f"the body is not JSON: {errors[0]['ctx']['error']}", code="invalid_json")
    if errors[0]["type"] == "value_error" and not first.path:  # of fields that do not go together
        return RequestRefused(400, _plain(errors[0]["msg"]), code="invalid_value")
    if not first.path:
        return RequestRefused(400, "the body must be a JSON object, sent with Content-Type: application/json")
    # A field that may be of several types has an error for each of them; the one of the type that it has tells most.
    places = [(error, _locate(error, model)) for error in errors]
    same = [(error, place) for error, place in places if place.path[: len(first.path)] == first.path]
    error, place = next((pair for pair in same if not pair[0]["type"].endswith("_type")), (errors[0], first))
    param = ".".join(shown(part) for part in place.path)
    if error["type"] == "missing":
        return RequestRefused(400, f"'{param}' is required", param, code="missing_field")
    if error["type"] == "extra_forbidden":
        if len(place.path) == 1 and place.path[0] in UNSUPPORTED:
            return RequestRefused(400, f"'{param}' is not supported by this server", param, code="unsupported_field")
        allowed = ", ".join(place.beside)
        return RequestRefused(400, f"unknown field '{param}' (allowed: {allowed})", param, code="unknown_field")
    is_other = error["type"].endswith("_type") or error["type"] == "literal_error"
    message = place.expected if is_other and place.expected else _plain(error["msg"])
    return RequestRefused(400, f"'{param}': {message}", param, code="invalid_value")


class _Place(NamedTuple):
    """Where in a body an error is."""

    path: list[int | str]
    beside: list[str]  # fields there are in the object that it is in
    expected: str  # what the field may be, in words, where it may be of several types


def _locate(error: Mapping[str, Any], model: type[BaseModel]) -> _Place:
    """pydantic's location has the branches of unions in it, too, which are no part of the body."""
    path: list[int | str] = []
    beside: list[str] = []
    expected, inside = "", [model]
    for part in error["loc"][1:]:  # the first says that it is in the body
        fields = {field.alias or name: field for one in inside for name, field in one.model_fields.items()}
        if part in fields:
            path, beside = [*path, part], list(fields)
            expected, inside = fields[part].description or "", list(_models(fields[part].annotation))
        elif isinstance(part, int):
            path.append(part)
        elif error["type"] == "extra_forbidden" and part == error["loc"][-1]:
            path, beside, expected = [*path, part], list(fields), ""
    return _Place(path, beside, expected)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should be", "should be")
