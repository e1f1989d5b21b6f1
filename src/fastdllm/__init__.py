"""fastdllm: fast, exact and batched generation with masked diffusion language models (LLaDA, Dream)."""

from fastdllm.canvas import RowEvent, StepEvent
from fastdllm.completion import Completion
from fastdllm.config import GenerationConfig
from fastdllm.engine import Engine, Generation, load
from fastdllm.errors import CheckpointError, FastdllmError, NumericalError, OptionError

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "Completion",
    "Engine",
    "FastdllmError",
    "Generation",
    "GenerationConfig",
    "NumericalError",
    "OptionError",
    "RowEvent",
    "StepEvent",
    "load",
]
