"""Hypothesis strategies of answers that a JSON schema allows, for the few keywords that the judges' schemas use."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def allowed(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "object":
            return st.fixed_dictionaries({name: allowed(inner) for name, inner in schema["properties"].items()})
        case "array":
            return st.lists(allowed(schema["items"]), max_size=schema["maxItems"])
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "string":
            return st.text(max_size=schema["maxLength"])
    raise AssertionError(schema)
