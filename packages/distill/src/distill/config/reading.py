"""From a preset, YAML files and ``key=value`` overrides to one checked configuration, and back to YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from distill.config.runs import RunConfig, TermsRun

Run = TypeVar("Run", bound=RunConfig)


def resolve(base: Run, layers: Sequence[Mapping[str, Any]]) -> Run:
    """Lay overrides over a complete configuration and check the result.

    Args:
        base: what a preset returned.
        layers: nested dictionaries, later ones win.

    Raises:
        ValueError: unknown key (with the nearest valid name) or invalid value.
    """
    merged = base.model_dump(mode="python")
    for layer in layers:
        merged = _merge(merged, layer)
    try:
        return type(base).model_validate(merged)
    except ValidationError as error:
        raise ValueError(_explain(error, type(base))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML configuration file as a nested dictionary."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a YAML file, got {path}, which is not a file; check the path")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML in {path}, got: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"expected keys and values in {path}, got {type(content).__name__}; write lines such as 'steps: 100'"
        )
    return content


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn ``a.b=value`` into ``{"a": {"b": value}}``; the value is read as YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"expected key=value, got {text!r}; for example --set optimizer.lr=1e-4")
    try:
        content: Any = _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ValueError(
            f"expected key=value, got {text!r}: the value is not YAML; quote it or close its brackets"
        ) from error
    for part in reversed(key.split(".")):
        content = {part: content}
    assert isinstance(content, dict)
    return content


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML.

    Terms that are left out stand there as null: laid over any preset the file means the same.
    """
    content = config.model_dump(mode="json")
    if isinstance(config, TermsRun):
        content["terms"] |= {name: None for name in config.term_names() if name not in config.weights}
    return yaml.safe_dump(content, sort_keys=False)


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-4`` as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        current = merged.get(key)
        merged[key] = _merge(current, value) if isinstance(current, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if place[:1] == ["terms"] and place[-1] == "[key]" and issubclass(kind, TermsRun):
        known = kind.term_names()
        close = difflib.get_close_matches(place[1], known, n=1, cutoff=0.6)
        remedy = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        return f"unknown term {place[1]!r} in this task; {remedy}"
    if problem["type"] != "extra_forbidden":
        # pydantic prefixes the messages of our own validators.
        message = problem["msg"].removeprefix("Value error, ")
        return f"invalid configuration: {name + ': ' if name else ''}{message}"
    near = _nearest(name, _keys(kind))
    remedy = f"did you mean {near!r}?" if near else "--print-config shows all keys"
    return f"unknown configuration key {name!r}; {remedy}"


def _nearest(name: str, keys: Sequence[str]) -> str | None:
    """The key most like ``name``: of the same section first, otherwise by the last part of its name."""
    section, _, leaf = name.rpartition(".")
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    for candidates in (siblings, keys):
        by_leaf = {key.rpartition(".")[2]: key for key in reversed(candidates)}
        if found := difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.6):
            return by_leaf[found[0]]
    return None


def _keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in kind.model_fields.items():
        keys.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys.extend(_keys(info.annotation, f"{prefix}{name}."))
    if issubclass(kind, TermsRun):
        keys.extend(f"terms.{name}" for name in kind.term_names())
    return keys
