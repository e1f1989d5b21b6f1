"""What only a GPU can show: the same tokens as on the CPU, recorded passes, and how often the host waits."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch

import fastdllm
from fastdllm.engine import Engine
from fastdllm.models.compiled import Compiled
from toys import FAMILIES, prompts_of, toy_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPTS = prompts_of([30, 3, 12, 55], seed=2)
CACHES = ("none", "prefix", "dual", "dual:prompt_every=2,suffix_window=5", "sliding", "dkv", "d2cache", "dllm")
DECODERS = ("threshold:threshold=0.5", "topk:k=1", "factor", "klass", "credit", "wino")


def toy(family, dtype=torch.float32, compiled=False, graphs=None):
    model = toy_model(family, seed=3).to("cuda", dtype)
    return Engine(Compiled(model, graphs=graphs) if compiled else model, name="toy")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_tokens_are_those_of_the_cpu(family, cache):
    for decoder in DECODERS:
        options = {"gen_length": 24, "block_length": 8, "cache": cache, "decoder": decoder}
        cpu = Engine(toy_model(family, seed=3), name="toy").generate(PROMPTS, **options)
        gpu = toy(family).generate(PROMPTS, **options)
        assert [(c.canvas, c.nfe) for c in gpu] == [(c.canvas, c.nfe) for c in cpu], decoder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "sliding", "d2cache"])
def test_recorded_passes_are_the_passes(family, cache):
    """In float32 the tokens of the plain network; in bfloat16 those of the same kernels launched one by one."""
    options = {"gen_length": 24, "block_length": 8, "cache": cache, "decoder": "threshold:threshold=0.5"}
    plain = toy(family).generate(PROMPTS, **options)
    engine = toy(family, compiled=True)
    for _ in range(2):
        assert [c.canvas for c in engine.generate(PROMPTS, **options)] == [c.canvas for c in plain]
    launched = toy(family, torch.bfloat16, compiled=True, graphs=False).generate(PROMPTS, **options)
    recorded = toy(family, torch.bfloat16, compiled=True).generate(PROMPTS, **options)
    assert [c.canvas for c in recorded] == [c.canvas for c in launched]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "sliding"])
def test_the_host_waits_once_a_pass(cache, compiled):
    engine = toy("llada", compiled=compiled)
    options = {"gen_length": 32, "block_length": 8, "cache": cache, "decoder": "threshold:threshold=0.5"}
    engine.generate(PROMPTS, **options)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            events = iter(engine.stream(PROMPTS, **options))
            next(events)  # starting is more than a pass
            seen.clear()
            passes = sum(1 for _ in events)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = Counter(f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
    assert passes > 1
    assert waits.total() <= passes, waits


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_the_embedded_model_answers(dtype):
    question = "Ana has 19 apples. She gives 4 apples to each of 2 friends and then finds 11 more. How many now?"
    engine = fastdllm.load("tiny", dtype=dtype)
    assert engine.device.type == "cuda"
    (done,) = engine.generate(question, gen_length=64, block_length=8)
    assert done.text
