"""Settings small enough for tests of the bench."""

from __future__ import annotations

import pytest

from fastdllm.bench import peaks
from fastdllm.bench.setting import Load, Setting

TOY = "d=16,layers=2,heads=2,ffn=24,vocab=40"


def setting(**changes: object) -> Setting:
    values = {"load": Load(shape=TOY), "prompt_length": 11, "gen_length": 29, "block_length": 8, "threads": 1}
    return Setting(**(values | changes))  # type: ignore[arg-type]


def shrink_square(patch: pytest.MonkeyPatch) -> None:
    """What a large product is good for does not show in a test."""
    patch.setattr(peaks, "SQUARE", {"cpu": 64})
