"""fastdllm: fast, exact and batched generation with masked diffusion language models (LLaDA, Dream)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdllm.completion import Completion
    from fastdllm.config import GenerationConfig
    from fastdllm.engine import Engine, Generation
    from fastdllm.errors import CheckpointError, FastdllmError, NumericalError, OptionError
    from fastdllm.events import RowEvent, StepEvent
    from fastdllm.loading import load
    from fastdllm.presets import load_preset

__version__ = "0.1.0"

_HOMES = {
    "completion": ("Completion",),
    "config": ("GenerationConfig",),
    "engine": ("Engine", "Generation"),
    "errors": ("CheckpointError", "FastdllmError", "NumericalError", "OptionError"),
    "events": ("RowEvent", "StepEvent"),
    "loading": ("load",),
    "presets": ("load_preset",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

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
    "load_preset",
]


def __getattr__(name: str) -> object:
    """Import torch and transformers when something needs them, not for ``fastdllm --help``."""
    if name not in _HOME:
        raise AttributeError(f"module 'fastdllm' has no attribute {name!r}")
    return getattr(import_module(f"fastdllm.{_HOME[name]}"), name)
