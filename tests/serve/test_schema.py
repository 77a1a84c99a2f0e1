"""Schemathesis: whatever the published schema allows or forbids, answers are as it says, and never a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serve.fake_backend import KEY, Server, keys_for_tests

HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_answers_are_as_the_schema_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here, not when tests are collected: it brings Flask, whose globals vLLM stumbles over when it is loaded later.
    import schemathesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    server = Server(keys_for_tests(monkeypatch), limits={"requests_per_minute": 0})
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app, headers=HEADERS)
    for operation in [found.ok() for found in schema.get_all_operations()]:

        @settings(max_examples=10, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(name := case.body.get("model"), str) and 0 < len(name) <= 256:
                case.body["model"] = "base"  # else all that can be found is that there is no such model
            # What fields must not be together, or more than this server allows, is refused and no schema can say it.
            case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance])

        check()
    assert server.backend.asked, "it got as far as the backend"
    assert server.backend.running == 0
