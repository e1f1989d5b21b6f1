"""Compiled passes: the same answers in shapes that come again, without a break in the graph or a second compilation.

The compiler's backend is left out (``eager`` runs what was traced as it is), so this is about what is traced and in
which shapes. Recording as CUDA graphs needs a GPU; scripts/gpu_check.py does it there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import fastdllm
from fastdllm import OptionError
from fastdllm.engine import Engine
from fastdllm.kv import KVStore
from fastdllm.models.compiled import Compiled
from toys import FAMILIES, prompts_of, toy_engine, toy_model

PROMPTS = prompts_of([30, 3, 12], seed=2)
CACHES = ("none", "prefix", "dual", "dual:prompt_every=2,suffix_window=5", "sliding", "dkv", "d2cache", "dllm")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What one test has compiled is no other's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(family, backend="eager", **changes):
    return Engine(Compiled(toy_model(family, seed=3, **changes), backend=backend), name="toy")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", CACHES)
def test_answers_are_those_of_the_network_itself(family, cache):
    options = {"gen_length": 20, "block_length": 8, "cache": cache, "decoder": "threshold:threshold=0.5"}
    plain = toy_engine(family, seed=3).generate(PROMPTS, **options)
    engine = compiled(family)
    for _ in range(2):  # the second answer uses the store of the first
        found = engine.generate(PROMPTS, **options)
        assert [c.canvas for c in found] == [c.canvas for c in plain]
        assert [(c.nfe, c.rows_computed) for c in found] == [(c.nfe, c.rows_computed) for c in plain]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_answers_and_prompts_of_a_size_compile_nothing_new(family):
    counter = CompileCounter()
    engine = compiled(family, counter)
    options = {"gen_length": 24, "block_length": 8, "cache": "dual", "decoder": "threshold:threshold=0.5"}
    engine.generate(prompts_of([30]), **options)
    first = counter.frame_count
    assert 0 < first <= 2
    for seed, length in enumerate((30, 7, 61, 90)):
        engine.generate(prompts_of([length], seed), **options, seed=seed)
    assert counter.frame_count == first


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [9, 40])
def test_the_forward_has_no_graph_break(family, rows):
    """Of the whole network as it stands, for a pass over the whole canvas and one over a block."""
    model, length = toy_model(family), 40
    store = KVStore(3, 1, model.kv_heads, length, 8, dtype=torch.float32, device=torch.device("cpu"))
    at = torch.arange(rows)[None]
    view = store.bind(torch.tensor([0]), at, length)
    with torch.inference_mode():
        found = torch._dynamo.explain(model)(torch.ones_like(at), at, None, view)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_a_store_is_lent_once_and_keeps_its_place():
    network = Compiled(toy_model(), backend="eager")
    first = network.allocate(2, 128)
    place = first.of_layer(0, slice(None))[0].data_ptr()
    first.keep([1])
    other = network.allocate(2, 128)
    assert other.of_layer(0, slice(None))[0].data_ptr() != place
    del first
    again = network.allocate(2, 128)
    assert (again.of_layer(0, slice(None))[0].data_ptr(), again.batch) == (place, 2)


def test_what_a_store_held_before_is_not_seen():
    """A smaller answer after a larger one, in the same store."""
    engine, options = compiled("llada"), {"gen_length": 16, "block_length": 8, "cache": "dual", "decoder": "topk:k=1"}
    engine.generate(prompts_of([100]), **options)
    (found,) = engine.generate(prompts_of([5], 4), **options)
    (plain,) = toy_engine("llada", seed=3).generate(prompts_of([5], 4), **options)
    assert found.canvas == plain.canvas


def test_without_a_compiler_there_is_a_sentence_before_the_model_is_loaded(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr("fastdllm.loading.load_weights", lambda *_: 1 / 0)
    monkeypatch.setattr("fastdllm.loading.has_kernels", lambda *_: False)
    with config.patch({"cpp.cxx": (None, "/no/such/compiler")}), pytest.raises(OptionError, match="C\\+\\+ compiler"):
        fastdllm.load("tiny", device="cpu", compile=True)
