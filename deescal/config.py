"""Configs: frozen pydantic models filled from YAML and `key=value` overrides, wrong keys refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from deescal.errors import UserError, one_line
from deescal.storage import STORAGE_ERRORS, read_bytes


class Config(BaseModel):
    """Base of every config: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, given: Any) -> Any:
        """A section that is given in part keeps the rest of this field's default, which may not be its class' own."""
        if not isinstance(given, dict):
            return given
        defaults = {name: field.default for name, field in cls.model_fields.items() if name in given}
        return {name: _over(defaults.get(name), value) for name, value in given.items()}


def _over(default: Any, given: Any) -> Any:
    if not isinstance(default, Config) or not isinstance(given, dict):
        return given
    values = {name: getattr(default, name) for name in default.model_fields_set}  # its class says the others
    return values | {name: _over(values.get(name), value) for name, value in given.items()}


class TaskResources(Config):
    """What one task of a stage without a model asks Ray for; Ray runs as many as fit."""

    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    memory_gib: float = Field(default=1.0, ge=0)

    def ray_options(self) -> dict[str, Any]:
        """Keyword arguments of `Dataset.map_batches` for one worker."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": int(self.memory_gib * 2**30)}


class Resources(TaskResources):
    """The same for one worker that holds a model, and how many of them there are."""

    workers: int = Field(default=1, ge=1)

    def demand(self, times: int = 1) -> dict[str, float]:
        """What Ray must have for all workers at once, by Ray's names; of so many such pools."""
        n = self.workers * times
        return {"CPU": n * self.num_cpus, "GPU": n * self.num_gpus, "memory": n * self.memory_gib * 2**30}


def _check_import_path(path: str) -> str:
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError("expected 'package.module:Class'")
    before = sys.path[:]
    sys.path.append(os.getcwd())  # where Ray's workers look, too, but an installed command does not
    try:
        if find_spec(module) is None:
            raise ImportError
    except ImportError:  # it, or a package on the way to it
        raise ValueError(f"there is no module '{module}'") from None
    finally:
        sys.path[:] = before
    return path


# The class that does a stage's heavy work; a test or a user puts another of the same interface in its place.
ImportPath = Annotated[str, AfterValidator(_check_import_path)]


def load_engine(path: str) -> Any:
    """'package.module:Class' -> the class."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


C = TypeVar("C", bound=BaseModel)


def load_config(path: str | os.PathLike[str] | None, model: type[C], overrides: Sequence[str] = ()) -> C:
    """YAML file or URI (or nothing: all defaults) -> validated config; overrides are `a.b=value`, value in YAML.

    Raises:
        UserError: missing file, bad YAML, unknown key, or a value that does not fit, in one line each.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(read_bytes(os.fspath(path)).decode("utf-8-sig")) or {}
        except STORAGE_ERRORS as error:
            raise UserError(f"config {path}: {getattr(error, 'strerror', None) or one_line(error)}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"config {path}: not text in UTF-8") from error
        except yaml.YAMLError as error:
            raise UserError(f"config {path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(data, dict):
            raise UserError(f"config {path}: expected 'key: value' lines, found a {type(data).__name__}")
    put_overrides(data, overrides)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, model, str(path) if path else "config")) from error


def put_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """`a.b=value`, value in YAML, into nested dicts.

    Raises:
        UserError: no `=`, a section that is a value, or a value that is not YAML.
    """
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


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """One line that names every field that is wrong, its value, and what is allowed."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(_fields_beside(model, problem["loc"]))
            lines.append(f"unknown key '{field}' (allowed: {allowed})")
        elif problem["type"] == "missing":
            lines.append(f"'{field}' is required")
        else:
            # What two fields together get wrong is reported of their section, whose whole content would not be a line.
            value = "" if isinstance(problem["input"], dict) else f"={problem['input']!r}"
            where_in = f"{field}{value}: " if field else ""  # what sections get wrong together has no field
            lines.append(f"{where_in}{problem['msg'].removeprefix('Value error, ')}")
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
