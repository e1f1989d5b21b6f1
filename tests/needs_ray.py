"""For the tests of what runs on Ray."""

from __future__ import annotations

import os

import pytest


def needs_ray() -> None:
    """Skip a file of tests where Ray is missing, but not where everything has to be tested."""
    try:
        import ray.data
        import ray.serve  # noqa: F401
    except ImportError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            raise
        pytest.skip(f"{error.name} is missing: pip install 'fastdllm[ray]'", allow_module_level=True)
