"""Tests run offline, on one thread: the models are too small to gain from more."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from helpers import write_checkpoint

torch.set_num_threads(1)
# The same examples at every run: a property that fails here fails for the next person too.
settings.register_profile("fastdllm", deadline=None, derandomize=True)
settings.load_profile("fastdllm")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A random checkpoint folder with a tokenizer and a chat template."""
    return str(write_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> str:
    """A checkpoint folder without a tokenizer."""
    return str(write_checkpoint(tmp_path_factory.mktemp("bare"), tokenizer=False))
