"""The engine of one replica as the API sees it (`deescal.serve.api.Backend`), and its adapters.

Requests go to Ray's engine (`ray.serve.llm`), which hands them to vLLM's own OpenAI layer: what a field means is vLLM's
matter, here are only the names of models and the form of the prompt.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from deescal.dataset.chat import Message, count_tokens, fold_system, load_tokenizer, render
from deescal.errors import UserError
from deescal.serve.adapters import Adapter, bring_adapter
from deescal.serve.config import ServeConfig
from deescal.serve.errors import RequestRefused


class EngineBackend:
    """A base model and what adapters there are over it at the moment."""

    def __init__(self, engine: Any, config: ServeConfig) -> None:
        """
        Args:
            engine: Ray Serve LLM's, started.
        """
        self._engine, self._config = engine, config
        self._adapters: dict[str, Adapter] = {}
        self._started_at = int(time.time())
        self._tokenizer = load_tokenizer(config.llm.model)
        self._has_system_role = has_system_role(self._tokenizer)

    def models(self) -> list[dict[str, Any]]:
        """Cards as /v1/models lists them, the base first."""
        base = self._config.served_name
        common = {
            "object": "model",
            "created": self._started_at,
            "owned_by": "deescal",
            "max_model_len": self._config.llm.max_model_len,
        }
        return [
            {"id": base, **common, "root": self._config.llm.model, "parent": None},
            *({"id": name, **common, "root": a.uri, "parent": base} for name, a in self._adapters.items()),
        ]

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Of the prompt that the model reads for these messages."""
        return count_tokens([render(messages, self._tokenizer, add_generation_prompt=True)], self._tokenizer)[0]

    async def healthy(self) -> bool:
        try:
            await self._engine.check_health()
        except Exception:  # of whatever kind: why is in the engine's own log
            return False
        return True

    async def chat(self, fields: Mapping[str, Any]) -> dict[str, Any] | AsyncGenerator[str, None]:
        """Fields of vLLM's ChatCompletionRequest -> an answer, or server-sent events.

        Raises:
            RequestRefused: vLLM does not take it (too long, a wrong value).
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        messages = fields["messages"] if self._has_system_role else fold_system(fields["messages"])
        return await _first(self._engine.chat(_request(ChatCompletionRequest, {**fields, "messages": messages})))

    async def completions(self, fields: Mapping[str, Any]) -> dict[str, Any] | AsyncGenerator[str, None]:
        """The same for CompletionRequest."""
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        return await _first(self._engine.completions(_request(CompletionRequest, fields)))

    async def set_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Load and unload until these are there, while requests go on.

        Raises:
            UserError: one cannot be brought, in which case nothing has changed, or vLLM cannot load it.
        """
        wanted = {adapter.name: adapter for adapter in adapters}
        changed = [a for name, a in wanted.items() if self._adapters.get(name) != a]
        folders = {a.name: bring_adapter(a).folder for a in changed}
        for name in [n for n in self._adapters if self._adapters[n] != wanted.get(n)]:
            await self._unload(name)
        for adapter in changed:
            await self._load(adapter, folders[adapter.name])

    async def _load(self, adapter: Adapter, folder: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        answer = await self._names.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=adapter.name, lora_path=folder))
        if not isinstance(answer, str):
            raise UserError(f"adapter '{adapter.name}': vLLM cannot load it: {answer.error.message}")
        self._adapters[adapter.name] = adapter

    async def _unload(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        # vLLM forgets the name only; the weights stay until others need the room, and requests on them end well.
        await self._names.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        del self._adapters[name]

    @property
    def _names(self) -> Any:
        # vLLM's registry of model names. Ray's engine has a call that adds to it, and none that takes away.
        return self._engine._oai_models


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template takes a system message; `render` folds it into the first user message where not."""
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    return render(chat, tokenizer) != render(fold_system(chat), tokenizer)


def _request(kind: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(fields)
    except ValueError as error:  # pydantic's ValidationError is one
        problem: Any = error.errors()[0] if hasattr(error, "errors") else {"msg": str(error), "loc": ()}
        raise RequestRefused(400, problem["msg"], ".".join(map(str, problem["loc"])) or None) from error


async def _first(answers: AsyncGenerator[Any, None]) -> dict[str, Any] | AsyncGenerator[str, None]:
    """Ray's engine yields one answer, one error, or the events of a stream."""
    first = await anext(answers)
    if isinstance(first, str):
        return _stream(first, answers)
    if hasattr(first, "error"):
        raise RequestRefused(int(first.error.code), first.error.message, first.error.param)
    return dict(first.model_dump())


async def _stream(first: str, rest: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:  # when the client has left, the engine shall stop working for it
        await rest.aclose()
