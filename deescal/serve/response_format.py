"""The shape that a reply must have: `response_format` of a chat request, bounded.

The engine compiles a schema into an automaton before the first token, at a cost that a short text can make very large
(`{"maxLength": 10000000}`, `"pattern": "(a{1,999}){1,999}"`). So size, depth and repetition have bounds here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_BYTES = 16_384
MAX_DEPTH = 16  # of objects and lists in one another
MAX_REPEAT = 1_000  # of a counted repetition
MAX_PATTERN = 256  # characters
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NESTED_COUNT = re.compile(r"\)\s*\{")  # a counted group: counts in it would multiply


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class JsonSchema(_Part):
    """`schema` with a name, which nothing is made of."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: Annotated[str, Field(max_length=1024)] | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None

    @field_validator("schema_")
    @classmethod
    def _bounded(cls, schema: dict[str, Any]) -> dict[str, Any]:
        check_schema(schema)
        return schema


class ResponseFormat(_Part):
    """Any text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_goes_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError where a JSON schema is none, or could cost the engine too much."""
    from jsonschema import Draft202012Validator, SchemaError

    for node in _nodes(schema, MAX_DEPTH):
        _check_node(node)
    text = json.dumps(schema)
    if len(text) > MAX_BYTES:
        raise ValueError(f"a schema of {len(text)} bytes, {MAX_BYTES} are allowed")
    if "\\u0000" in text:
        raise ValueError("holds a NUL character")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a JSON schema: at {error.json_path}") from error


def _nodes(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if depth < 0:
        raise ValueError(f"a schema of more than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner, depth - 1)


def _check_node(node: dict[str, Any]) -> None:
    for name in _COUNTS:
        count = node.get(name)
        if isinstance(count, int | float) and count > MAX_REPEAT:
            raise ValueError(f"{name} of more than {MAX_REPEAT}")
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise ValueError("$ref to another document")
    patterns = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    inside = node.get("patternProperties")
    for pattern in [*patterns, *(inside if isinstance(inside, dict) else ())]:
        _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"pattern of more than {MAX_PATTERN} characters")
    if _NESTED_COUNT.search(pattern):
        raise ValueError("pattern with a counted repetition of a group")
    if any(int(n[:9]) > MAX_REPEAT for n in re.findall(r"[{,]\s*(\d+)", pattern)):
        raise ValueError(f"pattern that repeats more than {MAX_REPEAT} times")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError("pattern that is no regular expression") from error
