"""Checks of single options, each with the sentence that refuses what is not allowed."""

from __future__ import annotations

from fastdllm.errors import OptionError

LARGEST = 2**31 - 1  # of whole numbers; far above any canvas, and sums of a few still fit in 64 bits


def check_least(name: str, value: float, least: float = 0.0) -> None:
    """Refuse numbers below ``least``, what is no number, and whole numbers that no tensor could hold."""
    if not least <= value < float("inf"):
        raise OptionError(f"{name}={value} must be {least:g} or more.")
    if isinstance(value, int) and value > LARGEST:
        raise OptionError(f"{name}={value} must be at most {LARGEST}.")


def check_above(name: str, value: float) -> None:
    """Refuse what is not above 0; infinity is."""
    if not value > 0:
        raise OptionError(f"{name}={value} must be above 0.")
