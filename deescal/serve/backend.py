"""The engine of one replica as the API sees it (`deescal.serve.api.Backend`), and its adapters.

Requests go to Ray's engine (`ray.serve.llm`), which hands them to vLLM's own OpenAI layer: what a field means is vLLM's
matter, here are only the names of models and the form of the prompt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from deescal.dataset.chat import Message, count_tokens, fold_system, load_tokenizer, render
from deescal.errors import UserError
from deescal.models import identity
from deescal.serve.adapters import Adapter, Brought, bring_adapter
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
        self._engine_names: dict[str, str] = {}  # of adapters: name -> vLLM's
        self._started_at = int(time.time())
        self._weights = identity(config.llm.model)
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
            {"id": base, **common, "root": self._config.llm.model, "parent": None, "weights": self._weights},
            *(
                {"id": name, **common, "root": a.uri, "parent": base, "weights": f"{self._weights}, {a.digest}"}
                for name, a in self._adapters.items()
            ),
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
        request = self._request(ChatCompletionRequest, {**fields, "messages": messages})
        return await _first(self._engine.chat(request), request.model, fields["model"])

    async def completions(self, fields: Mapping[str, Any]) -> dict[str, Any] | AsyncGenerator[str, None]:
        """The same for CompletionRequest."""
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        request = self._request(CompletionRequest, fields)
        return await _first(self._engine.completions(request), request.model, fields["model"])

    async def set_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Load and unload until these are there, while requests go on.

        Raises:
            UserError: one cannot be brought, in which case nothing has changed, or vLLM cannot load it.
        """
        wanted = {adapter.name: adapter for adapter in adapters}
        changed = [a for name, a in wanted.items() if self._adapters.get(name) != a]
        # In threads: this is the loop of all streams.
        brought = await asyncio.gather(*(asyncio.to_thread(bring_adapter, a) for a in changed))
        before = dict(self._engine_names)
        for adapter, content in zip(changed, brought, strict=True):
            await self._load(adapter, content)
        for name in [name for name in self._adapters if name not in wanted]:
            del self._adapters[name], self._engine_names[name]
        for engine_name in set(before.values()) - set(self._engine_names.values()):
            await self._unload(engine_name)

    async def _load(self, adapter: Adapter, content: Brought) -> None:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        # vLLM tells adapters apart by name: with the digest in it, requests on a name's old weights end on those.
        engine_name = f"{adapter.name}@{content.digest}"
        if engine_name not in self._names.lora_requests:
            request = LoadLoRAAdapterRequest(lora_name=engine_name, lora_path=content.folder)
            answer = await self._names.load_lora_adapter(request)
            if not isinstance(answer, str):
                raise UserError(f"adapter '{adapter.name}': vLLM cannot load it: {answer.error.message}")
        self._adapters[adapter.name], self._engine_names[adapter.name] = adapter, engine_name

    async def _unload(self, engine_name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        # vLLM forgets the name only; the weights stay until others need the room, and requests on them end well.
        await self._names.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=engine_name))

    def _request(self, kind: Any, fields: Mapping[str, Any]) -> Any:
        named = {**fields, "model": self._engine_names.get(fields["model"], fields["model"])}
        try:
            return kind.model_validate(named)
        except ValueError as error:  # pydantic's ValidationError is one
            problem: Any = error.errors()[0] if hasattr(error, "errors") else {"msg": str(error), "loc": ()}
            raise RequestRefused(400, problem["msg"], ".".join(map(str, problem["loc"])) or None) from error

    @property
    def _names(self) -> Any:
        # vLLM's registry of model names. Ray's engine has a call that adds to it, and none that takes away.
        return self._engine._oai_models


def has_system_role(tokenizer: Any) -> bool:
    """Whether the chat template takes a system message; `render` folds it into the first user message where not."""
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    return render(chat, tokenizer) != render(fold_system(chat), tokenizer)


async def _first(
    answers: AsyncGenerator[Any, None], engine_name: str, name: str
) -> dict[str, Any] | AsyncGenerator[str, None]:
    """Ray's engine yields one answer, one error, or the events of a stream; the model gets the client's name again."""
    first = await anext(answers)
    if isinstance(first, str):
        return _stream(first, answers, f'"model":"{engine_name}"', f'"model":"{name}"')
    if hasattr(first, "error"):
        message = first.error.message.replace(engine_name, name)
        raise RequestRefused(int(first.error.code), message, first.error.param)
    return {**first.model_dump(), "model": name}


async def _stream(first: str, rest: AsyncGenerator[str, None], old: str, new: str) -> AsyncGenerator[str, None]:
    try:
        yield first.replace(old, new, 1)
        async for event in rest:
            yield event.replace(old, new, 1)  # the first is the event's own, before any text
    finally:  # when the client has left, the engine shall stop working for it
        await rest.aclose()
