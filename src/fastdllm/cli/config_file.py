"""``--config``: the options of a command in a file, by their names; what the command line gives wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdllm.errors import OptionError
from fastdllm.files import read_text

NO_YAML = "pyyaml is missing, which reads YAML: pip install pyyaml, or write the file as JSON."
OWN = ("config", "help")


def _read(context: typer.Context, file: Path | None) -> Path | None:
    """Take the options of a file as the command's defaults, before the others are looked at."""
    if file is not None:
        context.default_map = {**(context.default_map or {}), **_options(context, file)}
    return file


ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", is_eager=True, callback=_read, help="Options in JSON or YAML."),
]


def _options(context: typer.Context, file: Path) -> dict[str, Any]:
    """Values by the names of the command's parameters.

    Raises:
        OptionError: the file is not readable as JSON or YAML, or names what is no option.
    """
    content = _parse(file)
    if not isinstance(content, Mapping):
        raise OptionError(f"{file} must hold options by name, such as max-batch: 8.")
    names = _names(context)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = names.get(str(key).replace("_", "-"))
        if name is None:
            raise OptionError(f"{file}: {key!r} is no option; there are {', '.join(names)}.")
        if name in found:
            raise OptionError(f"{file} gives {key!r} twice.")
        if value is not None:
            found[name] = _plain(value, key, file)
    return found


def _parse(file: Path) -> Any:
    text = read_text(file)
    if file.suffix == ".json":
        try:
            return json.loads(text)
        except ValueError as error:
            raise OptionError(f"{file} is not JSON ({error}).") from None
    if file.suffix not in (".yaml", ".yml"):
        raise OptionError(f"{file} must be named .json, .yaml or .yml.")
    try:
        import yaml
    except ImportError:
        raise OptionError(NO_YAML) from None
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise OptionError(f"{file} is not YAML ({' '.join(str(error).split())}).") from None


def _names(context: typer.Context) -> dict[str, str]:
    """What a file calls an option → the command's parameter."""
    names: dict[str, str] = {}
    for parameter in context.command.params:
        own = parameter.name or ""
        if own not in OWN:
            spelt = [text.removeprefix("--") for text in parameter.opts if text.startswith("--")]
            names[spelt[0] if spelt else own.replace("_", "-")] = own
    return names


def _plain(value: Any, key: object, file: Path) -> Any:
    """A value as the command line would give it: what an option makes of a text is not decided twice."""
    if isinstance(value, list):
        return [_plain(one, key, file) for one in value]
    if not isinstance(value, str | int | float | bool):
        raise OptionError(f"{file}: {key!r} must be a text, a number, true or false.")
    return value
