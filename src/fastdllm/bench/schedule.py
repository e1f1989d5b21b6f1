"""Which passes a generation is made of, found without running its network, and a sample of them to time.

Plain decoding of a thousand tokens is a thousand passes that cost the same. Where a setting's passes are known
beforehand (how many tokens each commits, and which rows it computes), a few of each kind say what all of them take.

A sampled block keeps some of its passes and leaves the others out: what they would have committed goes with the pass
before, so that every pass that is made finds the canvas as it would be in the whole run.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from fastdllm.bench.clock import Kind, Sample, Timed
from fastdllm.bench.commits import Replay
from fastdllm.bench.setting import Setting
from fastdllm.bench.shapes import random_model
from fastdllm.caches import CachePolicy, Policy
from fastdllm.decoders import Schedule, TopK
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.models.config import ModelConfig

KNOWN = (Replay, TopK, Schedule)
"""Decoders of which it is known beforehand what each pass commits."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass of a schedule."""

    kind: Kind
    block: int
    slots: int
    committed: int
    """Tokens of each batch row."""


@lru_cache(maxsize=32)
def passes_of(setting: Setting, config: ModelConfig) -> tuple[Pass, ...]:
    """Every pass of a generation, from one with a network that computes next to nothing in place of ``config``'s.

    Raises:
        OptionError: what a pass of this setting commits depends on what the model says.
    """
    if not isinstance(setting.config.rule, KNOWN):
        raise OptionError(
            f"decoder {setting.rule!r} commits what the model is sure of, so how many passes there will be is not "
            "known beforehand; give --tokens-per-pass or --trace, or time whole runs, without --passes."
        )
    layers = config.num_layers if _looks_in(setting.config.policy) else 0  # such a policy may count its rows by layers
    narrow = replace(
        config, hidden_size=4, num_layers=layers, num_heads=1, num_kv_heads=1, intermediate_size=4, vocab_size=8,
        mask_id=7, eos_ids=(6,), pad_id=6,
    )  # fmt: skip
    engine = Engine(random_model(narrow, torch.float32, torch.device("cpu")), name="schedule")
    made = Timed(engine, setting.prompts(engine), setting.options)
    return tuple(as_pass(sample) for sample in made)


def _looks_in(policy: CachePolicy) -> bool:
    """Whether a policy runs the layers itself."""
    own: object = type(policy).layers
    return own is not Policy.layers


def as_pass(sample: Sample) -> Pass:
    """What a pass that was timed is in a schedule."""
    committed = sample.committed // len(sample.kind.rows)
    return Pass(kind=sample.kind, block=sample.block, slots=sample.slots, committed=committed)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Passes of a schedule that are made, with what they commit in place of those left out."""

    passes: tuple[Pass, ...]
    """As they are in the whole schedule."""
    commits: tuple[int, ...]
    """Tokens that each of them commits: the decoder's trace."""


def sample(schedule: Sequence[Pass], wanted: int, cache: str) -> Sampled:
    """The passes to make so that ``wanted`` of each kind are, or as many as there are.

    Blocks are taken from the first on, until there are enough. Of a block the opening pass is kept, as there is no
    other way into it, and of the rest an even share, at another place in each block: the fewer slots are open, the
    fewer a pass predicts, and the sample has as much of each as the whole.

    Raises:
        OptionError: some kind of pass is not among those kept; ``cache`` is whose passes they are.
    """
    blocks: dict[int, list[Pass]] = defaultdict(list)
    for made in schedule:
        blocks[made.block].append(made)
    total = Counter(made.kind for made in schedule)
    share = -(-wanted // min(wanted, len(blocks)))  # of each block, but for its opening
    passes, commits, have = list[Pass](), list[int](), Counter[Kind]()
    for number, of_block in enumerate(blocks.values()):
        kept = _kept(len(of_block), share, number, min(wanted, len(blocks)))
        ends = [*kept[1:], len(of_block)]
        passes += [of_block[at] for at in kept]
        commits += [sum(one.committed for one in of_block[at:end]) for at, end in zip(kept, ends, strict=True)]
        have.update(of_block[at].kind for at in kept)
        if all(have[kind] >= min(wanted, count) for kind, count in total.items()):
            break
    if have.keys() != total.keys():
        raise _unsampled(cache)
    return Sampled(passes=tuple(passes), commits=tuple(commits))


def _kept(count: int, share: int, number: int, blocks: int) -> list[int]:
    """Places of the passes that are kept in a block of ``count``: the first, and ``share`` of the others."""
    others = count - 1
    offset = (number % blocks + 0.5) / blocks  # of where within its part of the block each one lies
    return [0, *sorted({1 + int((i + offset) * others / share) for i in range(share)})] if others else [0]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of a whole generation, from the passes that were made of it."""

    seconds: float
    kinds: Mapping[Kind, tuple[int, int, float]]
    """Passes that were timed, passes of the whole, and the median of those timed, in seconds."""


def estimate(schedule: Iterable[Pass], samples: Sequence[Sample], setup: float) -> Estimate:
    """Each kind's median, as often as the schedule has it, and the time before the first pass."""
    times: dict[Kind, list[float]] = defaultdict(list)
    for timed in samples:
        times[timed.kind].append(timed.whole)
    total = Counter(made.kind for made in schedule)
    assert times.keys() == total.keys()
    kinds = {kind: (len(times[kind]), count, statistics.median(times[kind])) for kind, count in total.items()}
    return Estimate(seconds=setup + sum(count * median for _, count, median in kinds.values()), kinds=kinds)


def check_as_planned(cache: str, planned: Sampled, samples: Sequence[Sample]) -> None:
    """Refuse a sample whose passes are not those of the schedule: its cache asks what came before, or what was said.

    Raises:
        OptionError: the rows of a pass, or the slots it predicted, are other ones.
    """
    wanted = [(made.kind, made.block, made.slots) for made in planned.passes]
    if [(timed.kind, timed.block, timed.slots) for timed in samples] != wanted:
        raise _unsampled(cache)


def _unsampled(cache: str) -> OptionError:
    return OptionError(
        f"the rows that cache {cache!r} computes do not follow from the block and its open slots alone, so some of "
        "its passes cannot stand for all; time whole runs, without --passes."
    )
