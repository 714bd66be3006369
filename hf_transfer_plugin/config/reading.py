"""Strategies written as names or JSON, and files of flags."""

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from hf_transfer_plugin.config.faults import ConfigError

# What a saved adapter says of where it was trained, and not of what it is.
OF_A_RUN = ("inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping")


def parse_spec(value: str | Mapping[str, Any], names: tuple[str, ...], flag: str) -> dict[str, Any]:
    """
    Brings a strategy given as a name, a JSON text or a mapping into the one form `{"name": ..., **fields}`.

    Args:
        value (`str` or `Mapping`):
            `"freeze-first"`, `'{"name": "freeze-first", "k": 3}'` or the mapping itself.
        names (`tuple[str, ...]`):
            The names that exist.
        flag (`str`):
            Field the value came from, for the message.

    Returns:
        `dict[str, Any]`: The name and its fields.

    Raises:
        ConfigError: If the text is no JSON object, or the name is unknown or missing.
    """
    spec: Any = value
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                spec = json.loads(value)
            except json.JSONDecodeError as error:
                raise ConfigError([
                    f"`{flag}` must be a name or a JSON object, but {value!r} is no JSON ({error})."
                ]) from error
        else:
            spec = {"name": value}
    if not isinstance(spec, Mapping) or spec.get("name") not in names:
        got = spec.get("name") if isinstance(spec, Mapping) else spec
        raise ConfigError([f"`{flag}` must name one of {', '.join(names)}, but got {got!r}."])
    return dict(spec)


def parse_adapter(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """
    Brings an adapter given as a name, a JSON text or file, a mapping or one of PEFT's configurations into one form.

    Args:
        value (`str`, `Mapping` or `PeftConfig`):
            `"lora"`, `'{"name": "lora", "r": 8}'`, `{"peft_type": "LOHA", ...}`, `"adapter_config.json"`.
        names (`tuple[str, ...]`):
            The names that exist.

    Returns:
        `dict[str, Any]`: JSON values with `"name"`, or, as PEFT writes them, with `"peft_type"`.

    Raises:
        ConfigError: If it is none of these.
    """
    given = value.to_dict() if hasattr(value, "peft_type") else value
    if isinstance(given, str) and given.endswith(".json"):
        if not Path(given).is_file():
            raise ConfigError([f"`adapter` must name an adapter or a JSON file, but there is no file {given!r}."])
        given = Path(given).read_text(encoding="utf-8")
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ConfigError([f"`adapter` must be a name or a JSON object, but is no JSON ({error})."]) from error
    if isinstance(given, Mapping) and "peft_type" in given and "name" not in given:
        return {key: _as_json(part) for key, part in given.items() if part is not None and key not in OF_A_RUN}
    return {key: _as_json(part) for key, part in parse_spec(given, names, "adapter").items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(part) for part in value]
    return {key: _as_json(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def read_config_file(path: str | Path) -> dict[str, Any]:
    """
    Reads the keys of a YAML or JSON file.

    Args:
        path (`str` or `Path`):
            The file.

    Returns:
        `dict[str, Any]`: Its keys and values.

    Raises:
        ConfigError: If the file is missing or holds no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError([f"`--config` must name a YAML file, but there is no file {str(path)!r}."])
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError([f"{str(path)!r} is no YAML: {error}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{str(path)!r} must hold keys and values, but holds {type(values).__name__}."])
    return values
