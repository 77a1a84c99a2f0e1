"""The Grafana dashboard: every metric and label that it asks for is one that the installed packages export."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "deescal-serve.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
QUERIES = [variable["query"]["query"] for variable in VARIABLES.values() if variable["type"] == "query"]
BUILT_IN = {"__rate_interval"}
# What Prometheus adds to the name of each kind.
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_DEFINED = re.compile(r'(counter|gauge|histogram)(?:_cls)?\(\s*(?:name=)?f?"([a-z0-9_:{}]+)"', re.IGNORECASE)
SERVE_LABELS = {"application", "deployment", "replica"}  # Ray Serve adds them in replicas


@cache
def exported() -> dict[str, set[str]]:
    """Name as Prometheus has it -> the labels that may stand with it: texts of the module that defines it."""
    found: dict[str, set[str]] = {}
    for path in _modules():
        source = path.read_text()
        labels = set(re.findall(r'"([A-Za-z_]+)"', source)) | {"le", "WorkerId"}
        # vLLM's wrapper of Ray's metrics adds the replica; Ray Serve's classes add all three.
        labels |= {"ReplicaId"} if "vllm" in path.parts else SERVE_LABELS
        for kind, name in _DEFINED.findall(source):
            # As vLLM's wrapper has it: OpenTelemetry allows letters, digits and underscores.
            name = "ray_" + re.sub(r"[^a-zA-Z0-9_]", "_", name.replace("{protocol_name}", "http"))
            for suffix in SUFFIXES[kind.lower()]:
                found[name if name.endswith(suffix) else name + suffix] = labels
    return found


def _modules() -> list[Path]:
    def folder(package: str) -> Path:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent

    ray = sorted((folder("ray") / "serve").rglob("*.py"))
    return [*ray, folder("vllm") / "v1" / "metrics" / "loggers.py", ROOT / "deescal" / "serve" / "metrics.py"]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def labels(expression: str) -> set[str]:
    """Names of matchers and of `by (...)`."""
    grouped = re.findall(r"by \(([^)]*)\)", expression)
    return set(re.findall(r"(\w+)[!=]~?\"", expression)) | {
        name.strip() for group in grouped for name in group.split(",")
    }


def test_the_sources_are_read() -> None:
    assert {"ray_vllm_kv_cache_usage_perc", "ray_serve_num_http_requests_total"} <= exported().keys()
    assert "ray_serve_http_request_latency_ms_bucket" in exported()
    assert "ray_serve_num_http_requests" not in exported()


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *QUERIES])
def test_what_is_asked_for_is_exported(expression: str) -> None:
    assert names(expression)
    for name in names(expression):
        assert name in exported(), f"no such metric: {name}"
        assert labels(expression) <= exported()[name], f"labels of {name}"
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    assert expression.count('"') % 2 == 0
    assert set(re.findall(r"\$(\w+)", expression)) <= VARIABLES.keys() | BUILT_IN


def test_a_quantile_keeps_the_buckets_apart() -> None:
    quantiles = [expression for expression in EXPRESSIONS if "histogram_quantile" in expression]
    assert len(quantiles) > 20
    assert all("by (le" in expression and "_bucket{" in expression for expression in quantiles)


def test_every_counter_is_a_rate() -> None:
    for expression in EXPRESSIONS:
        for name in re.findall(r"\bray_\w+_(?:total|bucket)\b", expression):
            assert re.search(rf"(rate|increase)\({name}\{{", expression)


def test_first_tokens_and_tokens_at_three_percentiles() -> None:
    asked = " ".join(EXPRESSIONS)
    for histogram in (
        "first_token_seconds",
        "token_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
    ):
        for quantile in ("0.5", "0.95", "0.99"):
            assert re.search(rf"histogram_quantile\({quantile}, [^)]*\) \(rate\(ray_\w*{histogram}_bucket", asked)
    assert "ray_vllm_generation_tokens_total" in asked


def test_panels_have_their_own_id_and_place() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        assert at["h"] > 0
    for a, b in combinations((panel["gridPos"] for panel in panels), 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above


def test_it_works_with_any_data_source() -> None:
    def sources(value: Any) -> list[Any]:
        if isinstance(value, list):
            return [found for item in value for found in sources(item)]
        if isinstance(value, dict):
            own = [value["datasource"]] if "datasource" in value else []
            return own + [found for item in value.values() for found in sources(item)]
        return []

    assert VARIABLES["datasource"]["query"] == "prometheus"
    assert {"application", "deployment", "model"} <= VARIABLES.keys()
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources(DASHBOARD))
    assert DASHBOARD["schemaVersion"] >= 36
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
