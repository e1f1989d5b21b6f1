"""The memory budget: how many slots it makes, what jobs are charged beside them, and what does not fit."""

from __future__ import annotations

import pytest
import torch

from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError
from fastdllm.memory import memory
from fastdllm.models.transformer import Transformer
from fastdllm.serve import pool as module
from fastdllm.serve.jobs import Limits
from fastdllm.serve.pool import Pool
from fastdllm.serve.scheduler import Scheduler
from schedules import WIDTH, Box, job_of
from toys import FAMILIES, toy_engine


def pool_of(family="llada", **limits) -> Pool:
    return Pool(toy_engine(family), Limits(**({"max_batch": 8, "max_model_len": WIDTH} | limits)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_makes_as_many_slots_as_it_holds(family):
    plenty = pool_of(family)
    assert plenty.slots == 8
    assert plenty.store.nbytes == 8 * plenty.slot_bytes
    usual = GenerationConfig(gen_length=WIDTH)
    each = plenty.slot_bytes + plenty.wants(0, usual)
    for budget, slots in ((each, 1), (3 * each - 1, 2), (3 * each, 3), (100 * each, 8)):
        pool = pool_of(family, kv_bytes=budget)
        assert pool.slots == slots
        assert pool.store.nbytes + pool.room == budget


def test_a_budget_that_holds_no_slot_is_refused_with_the_bytes_it_takes():
    pool = pool_of()
    wants = pool.wants(0, GenerationConfig(gen_length=WIDTH))
    with pytest.raises(OptionError, match=rf"{pool.slot_bytes} bytes of keys and values and {wants} bytes for its"):
        pool_of(kv_bytes=pool.slot_bytes + wants - 1)


def test_without_a_budget_a_share_of_free_memory_is_taken(monkeypatch):
    pool = pool_of()
    each = pool.slot_bytes + pool.wants(0, GenerationConfig(gen_length=WIDTH))
    monkeypatch.setattr(module, "available", lambda device: int(3.5 * each / module.SHARE))
    assert pool_of().slots == 3
    monkeypatch.setattr(module, "available", lambda device: None)
    assert (pool_of().slots, pool_of().room) == (8, None)


def test_a_job_is_charged_what_its_options_take():
    """Beside ``memory``: states as wide as the pool, noise and sorting, and logits twice with guidance."""
    pool = pool_of()
    plain = {"gen_length": 16, "block_length": 8, "decoder": "topk:k=1"}

    def wants(**options) -> int:
        return pool.wants(5, GenerationConfig(**(plain | options)))

    config = GenerationConfig(**plain)
    sizes = {"batch_size": 1, "gen_length": 16, "block_length": 8, "itemsize": 4}
    own = memory(pool.engine.config, config.policy, config.rule, prompt_length=5, **sizes)
    assert wants() == own.logits + own.activations + pool.slot_bytes // pool.engine.config.num_layers
    assert wants(temperature=1.0) - wants() == (module.NOISE - 1) * own.logits
    assert wants(temperature=1.0, top_p=0.9) - wants() == wants(top_k=5) - wants() == (module.FILTERS - 1) * own.logits
    assert wants(cache="none", cfg_scale=1.0) - wants(cache="none") == own.logits
    policy = GenerationConfig(**plain, cache="dllm").policy
    wide = memory(pool.engine.config, policy, config.rule, prompt_length=WIDTH - 16, **sizes)
    assert wants(cache="dllm") - wants() == wide.method


def test_a_job_that_wants_more_than_there_is_is_refused_and_others_wait_their_turn():
    engine = toy_engine()
    probe = pool_of()
    large = job_of([1, 2, 3], gen_length=60, block_length=60, decoder="klass")
    budget = probe.slot_bytes + probe.wants(0, GenerationConfig(gen_length=WIDTH))
    scheduler = Scheduler(engine, Limits(max_batch=8, max_model_len=WIDTH, kv_bytes=budget))
    room = scheduler.pool.room
    wants = probe.wants(3, large.config)
    assert wants > room
    with pytest.raises(OptionError, match=f"needs {wants} bytes beside its keys and values, and {room} are there"):
        scheduler.submit(large, Box(large))


def test_slots_are_taken_lowest_first_and_given_back():
    pool = pool_of(max_batch=3)
    assert [pool.take(10) for _ in range(4)] == [0, 1, 2, None]
    pool.give(1, 10)
    assert (pool.free, pool.used, pool.take(5)) == (1, 20, 1)


def test_the_model_bounds_the_length_of_a_slot():
    assert Pool(toy_engine(), Limits(max_batch=1)).width == 512
    with pytest.raises(OptionError, match=r"max_model_len=513 is more than the 512 positions of toy\."):
        pool_of(max_model_len=513)


def test_slots_that_cannot_be_had_are_refused(monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Transformer, "allocate", full)
    with pytest.raises(OptionError, match=r"8 slots of \d+ bytes for keys and values do not fit into the memory of c"):
        pool_of()


def test_a_model_that_is_split_over_processes_is_not_served():
    engine = toy_engine()
    engine.model.tensor_parallel = 2
    with pytest.raises(OptionError, match=r"split over 2 processes is not served; use one process\."):
        Pool(engine, Limits())


@pytest.mark.parametrize("limits", [{"max_batch": 0}, {"queue_size": 0}, {"kv_bytes": 0}, {"max_model_len": 0}])
def test_limits_are_checked(limits):
    with pytest.raises(OptionError):
        Limits(**limits)
    assert Limits(kv_bytes=2**40).kv_bytes == 2**40
