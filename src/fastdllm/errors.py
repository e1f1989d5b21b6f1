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


class SandboxError(FastdllmError, RuntimeError):
    """The sandbox could not start a program, which therefore did not run."""


class BrokenOff(FastdllmError, RuntimeError):
    """A pass failed after canvases had changed: its rows cannot go on."""


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says so. Torch has a class for it on GPUs; on CPUs it is a RuntimeError with these words."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
