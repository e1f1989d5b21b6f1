"""``fastdllm lm-eval``: lm-eval's own command line, in which ``--model fastdllm`` is known."""

from __future__ import annotations

import sys

import typer

from fastdllm.errors import OptionError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def lm_eval(context: typer.Context) -> None:
    """lm-eval's own command line, in which --model fastdllm is known."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import fastdllm.evals.lm  # noqa: F401  registers the model
    except ImportError as error:
        raise OptionError(f"{error.name} is missing: pip install 'fastdllm[eval]'.") from None
    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
