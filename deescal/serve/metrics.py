"""The API's own metrics, through Ray to Prometheus, beside those of vLLM and of Ray Serve.

Labels are few by design: routes as the schema has them, models that are served, status codes.
"""

from __future__ import annotations

from typing import Any

from deescal.serve.exchange import Exchange, Recorder

FIRST_TOKEN_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
TOKEN_S = [0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1]
REQUEST_S = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


def _labels(*names: str) -> Any:
    return names  # Ray's annotation says a tuple of one


def ray_recorder() -> Recorder:
    """A recorder for a replica of Ray Serve; Ray adds deployment and replica as labels, and `ray_` before the names."""
    from ray.serve.metrics import Counter, Histogram

    requests = Counter(
        "deescal_requests",
        "Requests that are over; status 499: the client left.",
        _labels("path", "status", "model", "end"),
    )
    tokens = Counter("deescal_tokens", "Tokens of requests that are over.", _labels("kind", "model"))
    seconds = Histogram(
        "deescal_request_seconds",
        "From a request's arrival to the end of its answer.",
        REQUEST_S,
        _labels("path", "model"),
    )
    first = Histogram(
        "deescal_first_token_seconds", "From a stream's request to its first text.", FIRST_TOKEN_S, _labels("model")
    )
    token = Histogram("deescal_token_seconds", "Between the tokens of a stream, its mean.", TOKEN_S, _labels("model"))

    def record(exchange: Exchange) -> None:
        model = {"model": exchange.model or "none"}
        path = {"path": exchange.route}
        requests.inc(1, {**model, **path, "status": str(exchange.status), "end": exchange.end})
        seconds.observe(exchange.seconds, {**model, **path})
        for kind, n in (("prompt", exchange.prompt_tokens), ("completion", exchange.completion_tokens)):
            if n:
                tokens.inc(n, {**model, "kind": kind})
        if exchange.first_token_s is not None:
            first.observe(exchange.first_token_s, model)
        if exchange.seconds_per_token is not None:
            token.observe(exchange.seconds_per_token, model)

    return record
