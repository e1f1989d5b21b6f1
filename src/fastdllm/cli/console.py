"""Where the command line prints: answers on stdout, everything about them on stderr."""

from __future__ import annotations

import os
import sys
import warnings

from rich.console import Console
from rich.text import Text

INTERRUPTED, BROKEN_PIPE = 130, 141  # exit codes, as shells give them
CONTROL = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def stdout() -> Console:
    """For what was asked for. Made anew for each use, as tests and pipes replace sys.stdout."""
    return Console(highlight=False, markup=False, emoji=False)


def stderr() -> Console:
    """For progress, summaries and notes."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def note(message: str) -> None:
    """A dim line on stderr; only a terminal breaks it, between words."""
    console = stderr()
    console.print(Text(message, style="dim"), soft_wrap=not console.is_terminal)


def printable(text: str) -> str:
    """Text that cannot steer the terminal: control characters other than line breaks and tabs are replaced."""
    return text.translate(CONTROL)


def quiet_libraries() -> None:
    """Keep warnings and progress bars of other libraries off the terminal; a variable that is set wins."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # on a terminal a download of many gigabytes shows how far it is
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
