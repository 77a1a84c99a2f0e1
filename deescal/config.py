"""Configs: frozen pydantic models filled from YAML and `key=value` overrides, wrong keys refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from deescal.errors import UserError


class Config(BaseModel):
    """Base of every config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Resources(Config):
    """What one worker of a stage asks Ray for, and how many there are."""

    workers: int = 1
    num_cpus: float = 1
    num_gpus: float = 0
    memory_gib: float = 1.0

    def ray_options(self) -> dict[str, Any]:
        """Keyword arguments of `Dataset.map_batches` for one worker."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": int(self.memory_gib * 2**30)}


def _check_import_path(path: str) -> str:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError("expected 'package.module:Class'")
    return path


# The class that does a stage's heavy work; a test or a user puts another of the same interface in its place.
ImportPath = Annotated[str, AfterValidator(_check_import_path)]


def load_engine(path: str) -> Any:
    """'package.module:Class' -> the class."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


C = TypeVar("C", bound=BaseModel)


def load_config(path: str | Path | None, model: type[C], overrides: Sequence[str] = ()) -> C:
    """YAML file (or nothing: all defaults) -> validated config; overrides are `a.b=value`, value in YAML.

    Raises:
        UserError: missing file, bad YAML, unknown key, or a value that does not fit, in one line each.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise UserError(f"config {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise UserError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise UserError(f"config {path}: expected 'key: value' lines, found a {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}': expected key=value")
        node = data
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override '{override}': '{parent}' is a value, not a section")
        try:
            node[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"override '{override}': value is not YAML") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, model, str(path) if path else "config")) from error


def _explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(_fields_beside(model, problem["loc"]))
            lines.append(f"unknown key '{field}' (allowed: {allowed})")
        elif problem["type"] == "missing":
            lines.append(f"'{field}' is required")
        else:
            lines.append(f"{field}={problem['input']!r}: {problem['msg']}")
    return f"{where}: " + "; ".join(lines)


def _fields_beside(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)


def fingerprint(*parts: object) -> str:
    """12 hex digits that change when any part does; configs, strings and JSON-like values."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
