"""One replica of the endpoint: vLLM as Ray Serve LLM loads it, and in the same process the API that faces clients.

Ray Serve LLM's own ingress is a deployment in front of the engine's: every token of every stream crosses two actors.
Here the engine's replica is the ingress, with an app that is built when the engine is up (`serve.ingress()` without an
app), so that a token crosses one; docs/serving.md says what that gains.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from deescal.config import Config
from deescal.dataset.chat import load_tokenizer
from deescal.engine import engine_arguments, engine_environment, thread_environment
from deescal.errors import UserError
from deescal.models import resolve
from deescal.serve.adapters import Adapter
from deescal.serve.backend import EngineBackend
from deescal.serve.config import ServeConfig
from deescal.serve.deploy import DEPLOYMENT
from deescal.serve.keys import read_keys
from deescal.train.export import pin_date

log = logging.getLogger("deescal.serve")


class LiveConfig(Config):
    """What changes in running replicas (`user_config` of the deployment)."""

    adapters: tuple[Adapter, ...] = ()


class CpuEngine(VLLMEngine):
    """Ray's engine on a CPU, with the model in the process of the engine's core: one process less between requests and
    model. Ray asks for a worker process; for a small model its messages cost more than the model itself."""

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, placement_group: Any) -> Any:
        if engine_config.parallel_config.world_size == 1:
            engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(engine_args, engine_config, placement_group)


class Endpoint(LLMServer):
    """The deployment; `application` binds it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, settings: Mapping[str, Any]
    ) -> None:
        self._config = ServeConfig.model_validate(settings)
        self._keys = read_keys(self._config.keys.file)
        if self._config.keys.required and not self._keys:  # else it would serve whoever reaches this node
            raise UserError("no API key on this node: set DEESCAL_API_KEYS or keys.file where Ray starts on every node")
        log.setLevel(logging.INFO)  # a line a request, by Ray's handler into its logs
        os.environ.update(engine_environment(self._config.llm))
        on_cpu = not self._config.replicas.num_gpus
        if on_cpu:
            os.environ.update(thread_environment(self._config.llm, self._config.replicas.num_cpus))
        await super().__init__(llm_config, engine_cls=CpuEngine if on_cpu else None)
        self._backend = EngineBackend(self.engine, self._config)

    async def __serve_build_asgi_app__(self) -> Any:
        from deescal.serve.api import build_api
        from deescal.serve.metrics import ray_recorder

        return build_api(self._backend, self._config, self._keys, ray_recorder())

    async def check_health(self) -> None:
        """Called by Serve every few seconds; a key that was taken out of the file opens nothing from then on."""
        await super().check_health()
        if self._config.keys.file is not None:
            try:
                self._keys.digests = (await asyncio.to_thread(read_keys, self._config.keys.file)).digests
            except UserError as error:  # half written, or away for a moment
                log.warning("the keys stay as they were: %s", error)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Called by Serve at the start, and in a running replica where `user_config` has changed."""
        await self._backend.set_adapters(LiveConfig.model_validate(dict(user_config)).adapters)


def application(args: Mapping[str, Any]) -> Any:
    """The Serve application of a config: what `import_path` in a Serve config file names.

    Args:
        args: fields of ServeConfig; its `adapters` are not read, they are the deployment's `user_config`.
    """
    config = ServeConfig.model_validate(dict(args))
    on_gpu = bool(config.replicas.num_gpus)
    bundle = {"CPU": config.replicas.num_cpus, **({"GPU": config.replicas.num_gpus} if on_gpu else {})}
    llm_config = LLMConfig(
        model_loading_config={"model_id": config.served_name, "model_source": resolve(config.llm.model)},
        engine_kwargs={
            **engine_arguments(config.llm, on_cpu=not on_gpu, lora=config.lora),
            # Training saw this date in every dialogue, whatever the day; so shall the served model.
            "chat_template": pin_date(load_tokenizer(config.llm.model).chat_template),
            "enable_prompt_tokens_details": True,
            "disable_log_stats": not config.metrics,
        },
        accelerator_config={"kind": "gpu" if on_gpu else "cpu"},  # type: ignore[arg-type]  # pydantic builds it
        placement_group_config={"bundle_per_worker": bundle},
        log_engine_metrics=config.metrics,
        deployment_config=_deployment(config),
    )
    options = Endpoint.get_deployment_options(llm_config)
    deployment: Any = serve.deployment(serve.ingress()(Endpoint), name=DEPLOYMENT, **options)
    return deployment.bind(llm_config, config.model_dump(mode="json"))


def _deployment(config: ServeConfig) -> dict[str, Any]:
    """Options of the Serve deployment."""
    replicas = config.replicas
    options: dict[str, Any] = {
        "max_ongoing_requests": replicas.max_ongoing,
        "max_queued_requests": replicas.max_queued,
        "graceful_shutdown_timeout_s": replicas.drain_s,
        "max_surge_percent": replicas.surge_percent,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        # CPUs are the placement group's; the replica's own process works while the engine's waits.
        "ray_actor_options": {"num_cpus": 0, "memory": int(replicas.memory_gib * 2**30)},
        "user_config": LiveConfig().model_dump(mode="json"),
        # The API logs requests itself, with the key's name and without a prompt.
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
    }
    if replicas.min == replicas.max:
        return {**options, "num_replicas": replicas.max}
    scaling = {"min_replicas": replicas.min, "max_replicas": replicas.max}
    return {**options, "autoscaling_config": {**scaling, "target_ongoing_requests": replicas.target_ongoing}}
