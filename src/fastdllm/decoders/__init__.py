"""Decoders: which slots are committed after a pass."""

from fastdllm.decoders.base import Decoder, Ranked, Turn
from fastdllm.decoders.parallel import Factor, Threshold, TopK
from fastdllm.decoders.schedules import Schedule, Timestep

DECODERS: dict[str, type[Decoder]] = {
    "topk": TopK,
    "threshold": Threshold,
    "factor": Factor,
    "schedule": Schedule,
    "timestep": Timestep,
}

__all__ = ["DECODERS", "Decoder", "Factor", "Ranked", "Schedule", "Threshold", "Timestep", "TopK", "Turn"]
