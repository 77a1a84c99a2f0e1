"""Schemathesis: whatever the published schema allows or forbids, answers are as it says, and never a 5xx."""

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.serve.fake_backend import KEY, Server, keys_for_tests

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

HEADERS = {"Authorization": f"Bearer {KEY}"}
with pytest.MonkeyPatch.context() as patch:
    SERVER = Server(keys_for_tests(patch), limits={"requests_per_minute": 0})
schema = schemathesis.openapi.from_asgi("/openapi.json", SERVER.app, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=10, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
def test_answers_are_as_the_schema_says(case):
    if isinstance(case.body, dict) and isinstance(model := case.body.get("model"), str) and 0 < len(model) <= 256:
        case.body["model"] = "base"  # else all that can be found is that there is no such model
    # What fields must not be together, or more than this server allows, is refused and no schema can say it.
    case.call_and_validate(headers=HEADERS, excluded_checks=[positive_data_acceptance])


def test_it_got_as_far_as_the_backend():
    assert SERVER.backend.asked
    assert SERVER.backend.running == 0
