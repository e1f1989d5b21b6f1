"""The command that is running, as it would be typed again."""

from __future__ import annotations

import shlex
from typing import Any

import typer


def command_of(context: typer.Context) -> str:
    """The command with the options that were given, after the names of its groups."""
    names: list[str] = []
    at: Any = context
    while at.parent is not None:
        names, at = [at.info_name, *names], at.parent
    words: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is None or source.name != "COMMANDLINE":
            continue
        several = [str(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
        if parameter.param_type_name == "argument":
            arguments += several
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif parameter.nargs > 1:
            words += [parameter.opts[0], *several]
        else:
            words += [word for one in several for word in (parameter.opts[0], one)]
    return shlex.join(["fastdllm", *names, *arguments, *words])
