"""The config of an endpoint. Defaults are the `local` profile: SmolLM2-135M on this machine's CPUs, loopback only."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from deescal.cluster import RayConfig
from deescal.config import Config
from deescal.engine import LlmConfig, LoraSlots
from deescal.serve.adapters import Adapter, parse_adapter
from deescal.serve.limits import Limits


class HttpConfig(Config):
    """Where it listens; beyond loopback only where API keys are configured."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    cors_origins: tuple[str, ...] = ()  # pages of these origins may call it from a browser; none by default


class KeysConfig(Config):
    """API keys: from DEESCAL_API_KEYS in the environment, or a file; never in a config."""

    file: str | None = None  # a path on every node: a line a key, `name:key`
    required: bool = False  # a replica that finds no key does not start; set by itself where there are keys


class ReplicasConfig(Config):
    """Copies of the model. More than one, or a range for the autoscaler, needs a cluster or a large machine."""

    min: int = Field(default=1, ge=0)  # 0: none while nobody asks; the first request then waits for a start
    max: int = Field(default=1, ge=1)
    target_ongoing: float = Field(default=16, gt=0)  # requests a replica works on, beyond which another one starts
    max_ongoing: int = Field(default=64, ge=1)  # requests a replica takes; more wait at the proxy
    max_queued: int = Field(default=256, ge=-1)  # waiting at a proxy, beyond which a client gets 503; -1: no limit
    num_cpus: float = Field(default=2, ge=0)  # of one worker, of which there are `llm.tensor_parallel_size`
    num_gpus: float = Field(default=0, ge=0)  # the same
    memory_gib: float = Field(default=6.0, ge=0)
    # Of the replicas, how many more there may be while an update replaces them; 0: the old one stops before the new one
    # starts, so that a single one answers nothing for the time of a start.
    surge_percent: int = Field(default=0, ge=0, le=100)
    drain_s: float = Field(default=60.0, ge=0)  # a replica that stops may finish its requests for so long
    start_s: float = Field(default=900.0, gt=0)  # to the first healthy replica

    @model_validator(mode="after")
    def _in_order(self) -> ReplicasConfig:
        if self.min > self.max:
            raise ValueError(f"min={self.min} is more than max={self.max}")
        return self

    def demand(self, tensor_parallel_size: int) -> dict[str, float]:
        """What Ray must have for the first replicas, by Ray's names."""
        n = max(1, self.min)
        workers = n * tensor_parallel_size
        return {
            "CPU": workers * self.num_cpus,
            "GPU": workers * self.num_gpus,
            "memory": n * self.memory_gib * 2**30,
        }


class ServeConfig(Config):
    """All of an endpoint."""

    llm: LlmConfig = LlmConfig(model="smollm2-135m", max_model_len=4096, max_num_seqs=16)
    name: str | None = None  # of the base in requests; None: as `llm.model`
    adapters: tuple[Adapter, ...] = ()
    lora: LoraSlots | None = LoraSlots()  # null: no adapters ever, and a little faster
    http: HttpConfig = HttpConfig()
    keys: KeysConfig = KeysConfig()
    limits: Limits = Limits()
    replicas: ReplicasConfig = ReplicasConfig()
    metrics: bool = True  # the engine's own, through Ray to Prometheus
    log_prompts: bool = False  # true writes what people say into the replicas' logs
    ray: RayConfig = RayConfig()

    @field_validator("adapters", mode="before")
    @classmethod
    def _parse(cls, given: object) -> object:
        """`name=URI` is short for {name, uri}."""
        if not isinstance(given, list | tuple):
            return given
        return [parse_adapter(a) if isinstance(a, str) else a for a in given]

    @model_validator(mode="after")
    def _fits_together(self) -> ServeConfig:
        names = [self.served_name, *(a.name for a in self.adapters)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' names two models: the base and every adapter need names of their own")
        if self.adapters and self.lora is None:
            raise ValueError("adapters need a `lora` section")
        if self.limits.max_tokens >= self.llm.max_model_len:
            raise ValueError(
                f"limits.max_tokens={self.limits.max_tokens} leaves no room for a prompt in llm.max_model_len="
                f"{self.llm.max_model_len}"
            )
        return self

    @property
    def served_name(self) -> str:
        return self.name or self.llm.model.rstrip("/").rsplit("/", 1)[-1]
