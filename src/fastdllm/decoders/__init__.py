"""Decoders: which slots are committed after a pass."""

from fastdllm.decoders.base import Decoder, Ranked, Turn
from fastdllm.decoders.informed import Certainty, EntropyBound, Hierarchy, PositionAware
from fastdllm.decoders.parallel import Factor, Threshold, TopK
from fastdllm.decoders.revising import WINO, Edit, Saber
from fastdllm.decoders.schedules import Schedule, Timestep
from fastdllm.decoders.stateful import Credit, Klass, SlowFast

DECODERS: dict[str, type[Decoder]] = {
    "topk": TopK,
    "threshold": Threshold,
    "factor": Factor,
    "schedule": Schedule,
    "timestep": Timestep,
    "edit": Edit,
    "saber": Saber,
    "wino": WINO,
    "certainty": Certainty,
    "entropy_bound": EntropyBound,
    "klass": Klass,
    "pc": PositionAware,
    "credit": Credit,
    "hierarchy": Hierarchy,
    "slowfast": SlowFast,
}

__all__ = [
    "DECODERS",
    "WINO",
    "Certainty",
    "Credit",
    "Decoder",
    "Edit",
    "EntropyBound",
    "Factor",
    "Hierarchy",
    "Klass",
    "PositionAware",
    "Ranked",
    "Saber",
    "Schedule",
    "SlowFast",
    "Threshold",
    "Timestep",
    "TopK",
    "Turn",
]
