"""Errors a user can cause; each message is one sentence naming what was given and what is allowed."""

from __future__ import annotations


class FastdllmError(Exception):
    """Base class of the errors this package raises on purpose."""


class CheckpointError(FastdllmError, ValueError):
    """A checkpoint is missing, damaged, or of a kind this package does not serve."""


class OptionError(FastdllmError, ValueError):
    """An option has a value that is not allowed, or contradicts another option."""


class NumericalError(FastdllmError, ArithmeticError):
    """The model produced logits that are not numbers."""
