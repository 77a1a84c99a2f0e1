"""The API that clients see: OpenAI's for chat, completions and models, and `/v1/rehearse`, over any backend.

It checks, asks the backend, and passes on what that says. Whatever a client can do wrong is an error in OpenAI's shape
that says what is allowed; whatever else goes wrong is a 500 whose cause stands in the log, or a 503 when the engine is
dead. `/openapi.json` describes all of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from deescal import __version__
from deescal.dataset.chat import Message
from deescal.serve.config import ServeConfig
from deescal.serve.errors import SERVER, RequestRefused, explain_invalid, server_error, shown
from deescal.serve.exchange import EXCHANGE, Exchange, Recorder, ignore
from deescal.serve.guard import Guard
from deescal.serve.keys import KeyRing, RateLimit
from deescal.serve.rehearse import RehearseRequest, fit_turns, rehearse_fields, rehearse_messages
from deescal.serve.requests import ChatRequest, CompletionRequest, chat_fields, completion_fields
from deescal.serve.responses import (
    EVENTS,
    REFUSALS,
    ChatResponse,
    CompletionResponse,
    Health,
    ModelCard,
    ModelList,
    RehearseResponse,
)
from deescal.serve.stream import start_stream

Fields = dict[str, Any]
Reply = dict[str, Any] | AsyncGenerator[str, None]  # OpenAI's response, or `data: {...}\n\n` events up to [DONE]
_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/rehearse", "/v1/models", "/health", "/openapi.json")
prompt_log = logging.getLogger("deescal.serve.prompts")


class Backend(Protocol):
    """What generates. All that the client did wrong (too long, a role that the template lacks) is RequestRefused."""

    def models(self) -> list[dict[str, Any]]:
        """Cards as `ModelCard`; `max_model_len` where long dialogues shall be fitted."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Of the prompt that these messages make."""

    async def healthy(self) -> bool:
        """Whether it can generate; False, not an error."""

    async def chat(self, fields: Fields) -> Reply:
        """Fields of vLLM's ChatCompletionRequest. A stream that is closed early (`aclose`) stops generating."""

    async def completions(self, fields: Fields) -> Reply:
        """The same for CompletionRequest."""


def build_api(backend: Backend, config: ServeConfig, keys: KeyRing, record: Recorder = ignore) -> ASGIApp:
    """The app that a replica mounts.

    Args:
        config: its `limits`, `http.cors_origins` and `log_prompts`.
        keys: none: only clients of this machine are served.
        record: gets every exchange when it is over.
    """
    app = FastAPI(title="deescal", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_error_handlers(app, backend)
    security = [Security(HTTPBearer(auto_error=False))] if keys else []  # for the schema: the guard has checked it
    app.include_router(_open_routes(backend))
    app.include_router(_model_routes(backend), dependencies=security)
    app.include_router(_generation_routes(backend, config), dependencies=security)
    limits = config.limits
    rate = RateLimit(limits.requests_per_minute, limits.burst) if limits.requests_per_minute else None
    guarded = Guard(app, limits, keys, record, rate)
    if not config.http.cors_origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=config.http.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # OpenAI's own client for browsers sends several of its own
        expose_headers=["X-Dropped-Turns", "X-Request-ID", "Retry-After"],
    )


class _JsonRequest(Request):
    """Reads JSON as pydantic does: no NaN, no half of a surrogate pair, no endless nesting."""

    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read_and_handle


def _open_routes(backend: Backend) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health", response_model=Health, responses={503: REFUSALS[503]}, tags=["operations"])
    async def health() -> Response:
        """Whether the engine can answer; needs no key."""
        if not await backend.healthy():
            raise _engine_is_down()
        return JSONResponse(Health().model_dump())

    return routes


def _model_routes(backend: Backend) -> APIRouter:
    routes = APIRouter(responses={s: r for s, r in REFUSALS.items() if s not in (400, 413)}, tags=["models"])

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """The base and every adapter over it."""
        return JSONResponse({"object": "list", "data": backend.models()})

    @routes.get("/v1/models/{id:path}", response_model=ModelCard)
    async def model(id: str) -> Response:
        """One of them."""
        return JSONResponse(find_model(backend, id))

    return routes


def _generation_routes(backend: Backend, config: ServeConfig) -> APIRouter:
    routes = APIRouter(route_class=_JsonRoute, responses=REFUSALS, tags=["generation"])
    streams: dict[int | str, dict[str, Any]] = {200: {"content": EVENTS}}

    @routes.post("/v1/chat/completions", response_model=ChatResponse, responses=streams)
    async def chat(request: Request, body: ChatRequest) -> Response:
        """The next message of a chat."""
        find_model(backend, body.model)
        fields = chat_fields(body, config.limits)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await ask(request, backend.chat, fields, include_usage=usage)

    @routes.post("/v1/completions", response_model=CompletionResponse, responses=streams)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """How a text goes on."""
        find_model(backend, body.model)
        fields = completion_fields(body, config.limits)
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await ask(request, backend.completions, fields, include_usage=usage)

    @routes.post("/v1/rehearse", response_model=RehearseResponse, responses=streams)
    async def rehearse(request: Request, body: RehearseRequest) -> Response:
        """What the civilian says next."""
        card = find_model(backend, body.model)
        first_turn = 0
        messages = rehearse_messages(body)
        if body.keep == "newest":
            reply_tokens = rehearse_fields(body, [], config.limits)["max_completion_tokens"]
            # In a thread: this is the loop of all streams, and long dialogues are counted several times.
            room = card["max_model_len"] - reply_tokens
            first_turn = await asyncio.to_thread(fit_turns, body, room, backend.count_tokens)
            messages = rehearse_messages(body, first_turn)
        fields = rehearse_fields(body, messages, config.limits)

        def tell(answer: dict[str, Any]) -> dict[str, Any]:
            choice = answer["choices"][0]
            told = {"reply": choice["message"]["content"] or "", "n_dropped_turns": first_turn}
            told |= {"model": answer["model"], "finish_reason": choice["finish_reason"], "usage": answer["usage"]}
            return told | ({"messages": messages} if body.echo_prompt else {})

        dropped = {"X-Dropped-Turns": str(first_turn)}
        return await ask(request, backend.chat, fields, include_usage=True, tell=tell, headers=dropped)

    async def ask(
        request: Request,
        generate: Callable[[Fields], Awaitable[Reply]],
        fields: Fields,
        *,
        include_usage: bool,
        tell: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer,
        headers: dict[str, str] | None = None,
    ) -> Response:
        exchange: Exchange = request.scope[EXCHANGE]
        exchange.model = fields["model"]
        if config.log_prompts:
            prompt_log.info("%s %s", exchange.request_id, json.dumps(fields.get("messages", fields.get("prompt"))))
        reply = await generate(fields)
        if not isinstance(reply, dict):
            return await start_stream(reply, exchange, include_usage=include_usage, headers=headers)
        exchange.note_usage(reply.get("usage"))
        return JSONResponse(tell(reply), headers=headers)

    return routes


def find_model(backend: Backend, name: str) -> dict[str, Any]:
    """Its card; raises RequestRefused where there is none."""
    cards = backend.models()
    card = next((card for card in cards if card["id"] == name), None)
    if card is None:
        known = ", ".join(card["id"] for card in cards)
        raise RequestRefused(
            404, f"model '{shown(name)}' is not served (there are: {known})", "model", code="model_not_found"
        )
    return card


def _engine_is_down() -> RequestRefused:
    return RequestRefused(503, "the engine is down", None, SERVER, "engine_down", {"Retry-After": "10"})


def _add_error_handlers(app: FastAPI, backend: Backend) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefused)
        if error.status >= 500 and not await backend.healthy():  # what the engine says in its last moment
            return _engine_is_down().response()
        return error.response()

    async def refuse_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return explain_invalid(error.errors(), request.scope["route"].body_field.field_info.annotation).response()

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = HTTPStatus(error.status_code)
        told = {
            HTTPStatus.NOT_FOUND: f"no such path: there is {', '.join(_PATHS)}",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not for this path",
        }
        message = told.get(status, str(error.detail))
        code = status.phrase.lower().replace(" ", "_")
        return RequestRefused(status, message, code=code, headers=error.headers).response()

    async def fail(request: Request, error: Exception) -> Response:
        """Starlette raises the error again after this answer, so the guard logs it."""
        if not await backend.healthy():
            return _engine_is_down().response()
        return server_error(request.scope[EXCHANGE].request_id).response()

    app.add_exception_handler(RequestRefused, refuse)
    app.add_exception_handler(RequestValidationError, refuse_invalid)
    app.add_exception_handler(HTTPException, refuse_route)
    app.add_exception_handler(Exception, fail)
