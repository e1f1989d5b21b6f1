"""The fixed pool of K/V slots, and the memory that jobs at work may take beside it."""

from __future__ import annotations

import heapq
from functools import partial

from fastdllm.config import GenerationConfig
from fastdllm.engine import Engine
from fastdllm.errors import OptionError, out_of_memory
from fastdllm.kv import KVStore
from fastdllm.memory import available, kv_bytes, memory
from fastdllm.serve.jobs import Limits

SHARE = 0.8
"""Of the memory that is free at the start: the rest is for what is only estimated, and for other programs."""
NOISE, FILTERS = 3, 8
"""Times the logits of greedy decoding that a temperature takes, and top_p or top_k, which sort (measured on a GPU)."""


class Pool:
    """K/V slots of one length, and the room for what passes need and methods remember beside them.

    There are as many slots as jobs of the full length with the default options fit into the budget. A job
    that wants more than these for its passes (long blocks, a decoder that watches the whole answer) leaves less
    room for others; it never takes memory that another was promised.

    Raises:
        OptionError: the model has fewer positions than asked for, the budget does not hold one job, or the model is
            split over processes, which would have to be told of every pass.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self.engine = engine
        if engine.model.tensor_parallel > 1:
            raise OptionError(
                f"a model that is split over {engine.model.tensor_parallel} processes is not served; use one process."
            )
        self.width = self._width(limits)
        default = GenerationConfig(gen_length=min(GenerationConfig().gen_length, self.width))
        typical = self.wants(self.width - default.gen_length, default)
        budget = limits.kv_bytes
        if budget is None:
            free = available(str(engine.device))
            budget = None if free is None else int(SHARE * free)
        self.slots = limits.max_batch
        if budget is not None:
            self.slots = min(self.slots, budget // (self.slot_bytes + typical))
        if not self.slots:
            raise OptionError(
                f"a budget of {budget} bytes does not hold one request of max_model_len={self.width}, which needs "
                f"{self.slot_bytes} bytes of keys and values and {typical} bytes for its passes."
            )
        self.room = None if budget is None else budget - self.slots * self.slot_bytes
        self.used = 0
        self.store = self._allocate()
        self._free = list(range(self.slots))

    def _width(self, limits: Limits) -> int:
        most = self.engine.config.max_length
        if limits.max_model_len is None:
            return most
        if limits.max_model_len > most:
            raise OptionError(
                f"max_model_len={limits.max_model_len} is more than the {most} positions of {self.engine.name}."
            )
        return limits.max_model_len

    @property
    def slot_bytes(self) -> int:
        """Keys and values of one canvas of the full length."""
        return kv_bytes(self.engine.config, self.width, self._itemsize)

    @property
    def _itemsize(self) -> int:
        return self.engine.dtype.itemsize

    def _allocate(self) -> KVStore:
        try:
            return self.engine.model.allocate(self.slots, self.width)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise OptionError(
                f"{self.slots} slots of {self.slot_bytes} bytes for keys and values do not fit into the memory of "
                f"{self.engine.device}; lower kv_bytes, max_batch or max_model_len."
            ) from None

    @property
    def free(self) -> int:
        """Slots that no job holds."""
        return len(self._free)

    def wants(self, prompt_length: int, config: GenerationConfig) -> int:
        """Bytes that a job takes beside its slot: what its methods remember, logits, activations, and a layer's keys
        and values, which are copied out of the pool to be attended to.

        What methods remember has the width of the pool's canvases, not that of the job.
        """
        model, length = self.engine.config, config.gen_length
        of_prompt = partial(
            memory, model, config.policy, config.rule, batch_size=1, gen_length=length,
            block_length=config.block_length, itemsize=self._itemsize,
        )  # fmt: skip
        own, wide = of_prompt(prompt_length=prompt_length), of_prompt(prompt_length=self.width - length)
        filtered = config.top_k is not None or (config.top_p or 1.0) < 1.0
        times = FILTERS if filtered else NOISE if config.temperature else 1
        copied = self.slot_bytes // model.num_layers
        return wide.method + (times + bool(config.cfg_scale)) * own.logits + own.activations + copied

    def check(self, prompt_length: int, config: GenerationConfig) -> int:
        """What :meth:`wants` says of a job that fits; OptionError for one that never does."""
        length = prompt_length + config.gen_length
        if length > self.width:
            raise OptionError(
                f"a prompt of {prompt_length} tokens with gen_length={config.gen_length} makes {length} positions; "
                f"at most {self.width} are served."
            )
        wants = self.wants(prompt_length, config)
        if self.room is not None and wants > self.room:
            raise OptionError(
                f"a request with these options needs {wants} bytes beside its keys and values, and {self.room} are "
                "there: take a shorter gen_length or block_length, or another cache or decoder."
            )
        return wants

    def take(self, wants: int) -> int | None:
        """The lowest free slot for a job that wants so many bytes beside it; None where slot or room is missing."""
        if not self._free or (self.room is not None and self.used + wants > self.room):
            return None
        self.used += wants
        return heapq.heappop(self._free)

    def give(self, slot: int, wants: int) -> None:
        """Take back what :meth:`take` gave."""
        assert slot not in self._free
        self.used -= wants
        heapq.heappush(self._free, slot)
