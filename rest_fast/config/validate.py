"""Checks of configuration values: every refusal names the field, the expectation and the value."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rest_fast.errors import ConfigError as ConfigError


def require(ok: bool, name: str, expected: str, value: object) -> None:
    if not ok:
        raise ConfigError(f"config field {name}: expected {expected}, got {value!r}")


def check_fields(part: Any, where: str, *, at_least: dict[int, str] | None = None, positive: str = "") -> None:
    """Check that every field has the type of its annotation, and values within bounds.

    ``at_least={1: "layers heads"}`` and ``positive="rate"`` name bounded fields. A tuple's bounds apply to each entry.
    """
    prefix = f"{where}." if where else ""
    for name, hint in _hints(type(part)).items():
        value = getattr(part, name)
        require(_fits(value, hint), prefix + name, _describe(hint), value)
    for low, names in (at_least or {}).items():
        for name in names.split():
            value = getattr(part, name)
            entries = value if isinstance(value, tuple) else (value,)
            require(all(v >= low for v in entries), prefix + name, f"at least {low}", value)
    for name in positive.split():
        value = getattr(part, name)
        entries = value if isinstance(value, tuple) else (value,)
        require(all(v > 0 for v in entries), prefix + name, "positive", value)


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        kinds = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else list(args)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "/".join(args)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, args))
    if origin is tuple:
        return f"a list of {_describe(args[0])}" if args[-1] is Ellipsis else f"{len(args)} x {_describe(args[0])}"
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
    return words.get(hint, f"an object of {getattr(hint, '__name__', hint)}")


def json_object(text: str) -> dict[str, Any]:
    """What a ``config.json`` holds. Raises: :class:`ConfigError`."""
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as e:
        raise ConfigError(f"config is not JSON: {e}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config: expected a JSON object, got {type(raw).__name__}")
    return raw


def build(cls: Any, values: Any, where: str) -> Any:
    """Dataclass from JSON values: unknown and missing fields are named, lists become tuples."""
    require(isinstance(values, dict), where, "an object", values)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    require(not unknown, where, f"fields {sorted(fields)}", unknown)
    no_default = (
        f for f in fields.values() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    missing = sorted(f.name for f in no_default if f.name not in values)
    require(not missing, where, "all required fields", f"missing {missing}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def replaced(config: Any, changes: dict[str, Any], parts: tuple[str, ...]) -> Any:
    """A copy of a configuration with changed fields; ``stream__chunk=3`` reaches into one of its ``parts``."""
    own: dict[str, Any] = {}
    for key, value in changes.items():
        part, _, name = key.partition("__")
        if name:
            require(part in parts, key, f"a part of the configuration, one of {parts}", part)
            base = own.get(part, getattr(config, part))
            own[part] = _replace(base, {name: value}, part)
        else:
            own[key] = value
    return _replace(config, own, "config")


def _replace(obj: Any, values: dict[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(obj)}
    for name in values:
        require(name in known, f"{where}.{name}", f"one of {sorted(known)}", name)
    return dataclasses.replace(obj, **values)
