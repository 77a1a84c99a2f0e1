"""What one request, and one key, may ask of a server."""

from __future__ import annotations

from pydantic import Field, model_validator

from deescal.config import Config


class Limits(Config):
    """Of one replica each: with N replicas a key's rate may come to N times what is said here."""

    max_body_bytes: int = Field(default=2**20, ge=1024)
    request_timeout_s: float = Field(default=300.0, gt=0)  # from the first byte of the request to the last of the reply
    max_tokens: int = Field(default=2048, ge=1)  # of one reply, the most that may be asked for
    default_max_tokens: int = Field(default=256, ge=1)  # of one reply, where the request does not say
    max_n: int = Field(default=8, ge=1)  # replies to one prompt
    max_prompts: int = Field(default=64, ge=1)  # of one /v1/completions request
    requests_per_minute: float = Field(default=600.0, ge=0)  # of one key; 0: no limit
    burst: int = Field(default=60, ge=1)  # requests of one key at once, after a pause

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Limits:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(f"default_max_tokens={self.default_max_tokens} is more than max_tokens={self.max_tokens}")
        return self
