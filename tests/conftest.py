"""Tests run offline, on one thread: the models are too small to gain from more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

import fastdllm
from browsing import chromium
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.evals.sandbox import find_isolation
from fastdllm.evals.sandbox_isolation import Isolation
from helpers import write_checkpoint

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The same examples at every run: a property that fails here fails for the next person too.
settings.register_profile("fastdllm", deadline=None, derandomize=True)
settings.load_profile("fastdllm")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that a test sets are its own."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A random checkpoint folder with a tokenizer and a chat template."""
    return str(write_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> str:
    """A checkpoint folder without a tokenizer."""
    return str(write_checkpoint(tmp_path_factory.mktemp("bare"), tokenizer=False))


@pytest.fixture(scope="session")
def tiny() -> Engine:
    """The embedded model in float32."""
    return fastdllm.load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser; not for the whole session, since Playwright keeps an event loop in this thread."""
    with chromium() as one:
        yield one


@pytest.fixture(scope="session")
def isolation() -> Isolation:
    """The sandbox of this machine; where there is none, tests that need it are skipped, but not in CI."""
    try:
        return find_isolation()
    except OptionError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI must try the sandbox: {error}")
        pytest.skip(str(error))
