"""What is timed: how a model is loaded, and what it is asked to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fastdllm.bench.commits import Replay
from fastdllm.bench.shapes import parse_shape, random_model
from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig, GenerationOptions, describe
from fastdllm.decoders import Decoder
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.loading import choose_device, choose_dtype, choose_layout, fast_at, load, made_ready
from fastdllm.models.attention import check_mixing
from fastdllm.models.config import ModelConfig
from fastdllm.models.packed import Layout


@dataclass(frozen=True, kw_only=True)
class Load:
    """How a model comes to be: equal ones are loaded once.

    Args:
        model: embedded, a folder or a hub id; None for a shape.
        shape: as :func:`fastdllm.bench.shapes.parse_shape` reads it; None for a model.
    """

    model: str | None = None
    shape: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    packed: bool | str = "auto"
    compile: bool = False
    attention: str = "auto"

    @property
    def name(self) -> str:
        return self.shape or self.model or ""

    def config(self) -> ModelConfig:
        """The shape of the network, without its weights.

        Raises:
            OptionError, CheckpointError: there is no such model, or the dtype is none.
        """
        if self.shape is not None:
            config = parse_shape(self.shape)
            self._of_shape(config)
            return config
        from fastdllm.models.checkpoint import read_config, resolve

        return read_config(resolve(str(self.model), self.revision, weights=False))

    def weights(self) -> str | None:
        """A short name of the weights; None for random ones."""
        from fastdllm.models.checkpoint import resolve
        from fastdllm.record import fingerprint

        return None if self.shape is not None else fingerprint(resolve(str(self.model), self.revision))

    def open(self) -> Engine:
        """The engine.

        Raises:
            OptionError, CheckpointError: it cannot be had.
        """
        if self.shape is None:
            return load(
                str(self.model), dtype=self.dtype, device=self.device, revision=self.revision, packed=self.packed,
                compile=self.compile, attention=self.attention,
            )  # fmt: skip
        config = parse_shape(self.shape)
        device, chosen, layout = self._of_shape(config)
        model = random_model(config, chosen, device, layout)
        mixing = check_mixing(self.attention)
        return Engine(made_ready(model, self.dtype, mixing, compile=self.compile), name=self.shape)

    def _of_shape(self, config: ModelConfig) -> tuple[torch.device, torch.dtype, Layout | None]:
        """Where random weights lie, and how: as :func:`fastdllm.loading.load` has those of a checkpoint in bfloat16."""
        check_mixing(self.attention)
        device = choose_device(self.device)
        dtype = self.dtype
        if dtype == "auto":
            dtype = "bfloat16" if fast_at(torch.bfloat16, device) else "float32"
        chosen = choose_dtype(dtype, Path(), device)
        return (
            device,
            chosen,
            choose_layout(dtype, self.packed, chosen, device, config, compile=self.compile, tensor_parallel=1),
        )

    def plain(self, dtype: torch.dtype) -> Load:
        """The same model as torch alone runs it: ``nn.Linear``, its fused attention, nothing compiled."""
        name = str(dtype).removeprefix("torch.")
        return replace(self, dtype=name, packed=False, compile=False, attention="sdpa")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model at work.

    Args:
        threads: of the CPU; None leaves them as they are.
        decoder: a spec; None for the replay of ``tokens_per_pass`` or ``trace``.
        prompt_length: tokens of each prompt, drawn at random: speed does not ask what they say.
    """

    load: Load
    threads: int | None = None
    prompt_length: int = 512
    gen_length: int = 256
    block_length: int = 32
    batch_size: int = 1
    cache: str = "dual"
    decoder: str | None = None
    tokens_per_pass: float | None = None
    trace: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("prompt_length", 0), ("gen_length", 1), ("block_length", 1), ("batch_size", 1)):
            check_least(name, getattr(self, name), least)
        if self.threads is not None:
            check_least("threads", self.threads, 1)
        given = [name for name in ("decoder", "tokens_per_pass", "trace") if getattr(self, name) is not None]
        if len(given) > 1:
            raise OptionError(f"{given[0]} and {given[1]} cannot be given together: each says what a pass commits.")
        object.__setattr__(self, "block_length", min(self.block_length, self.gen_length))
        assert self.config.gen_length == self.gen_length

    @property
    def rule(self) -> Decoder | str:
        """The decoder: its spec, or the replay."""
        if self.trace is not None:
            return Replay(trace=self.trace)
        if self.tokens_per_pass is not None:
            return Replay(tokens_per_pass=self.tokens_per_pass)
        return self.decoder or ("topk:k=1" if self.load.shape else str(GenerationConfig.decoder))

    @property
    def decoder_name(self) -> str:
        """The decoder as tables call it."""
        if self.trace is not None:
            return f"replay of a trace of {len(self.trace)} passes"
        return str(self.rule) if isinstance(self.rule, str) else f"replay of {self.tokens_per_pass:g} tokens a pass"

    @property
    def options(self) -> GenerationOptions:
        """Of a generation; an end token does not end it, so that all of them do the same work."""
        return {
            "gen_length": self.gen_length, "block_length": self.block_length, "cache": self.cache,
            "decoder": self.rule, "stop_at_eos": False,
        }  # fmt: skip

    @cached_property
    def config(self) -> GenerationConfig:
        return GenerationConfig(**self.options)

    def check(self, config: ModelConfig) -> None:
        """Raise OptionError when the canvas is longer than the model's positions."""
        if self.prompt_length + self.gen_length > config.max_length:
            raise OptionError(
                f"prompt_length={self.prompt_length} with gen_length={self.gen_length} is longer than the "
                f"{config.max_length} positions of {self.load.name}."
            )

    def prompts(self, engine: Engine, seed: int = 0) -> list[list[int]]:
        """Random ids for every row of the batch."""
        rng = random.Random(seed)
        taken = {engine.config.mask_id, *engine.config.eos_ids}
        ids = [token for token in range(min(engine.config.vocab_size, 4096)) if token not in taken]
        return [rng.choices(ids, k=self.prompt_length) for _ in range(self.batch_size)]

    def take_threads(self) -> None:
        """Run with this setting's threads from here on."""
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)

    def as_json(self) -> dict[str, object]:
        own = {
            name: getattr(self, name)
            for name in ("threads", "prompt_length", "gen_length", "block_length", "batch_size")
        }
        load = {field.name: getattr(self.load, field.name) for field in fields(self.load)}
        strategies = {"cache": describe(self.config.policy), "decoder": describe(self.config.rule)}
        return {**load, **own, **strategies, "stop_at_eos": False}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How often everything is measured."""

    rounds: int
    """Of passes."""
    runs: int
    """Of generations."""
    passes: int | None
    """Of each kind in a run; None for whole runs."""


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _packing(text: str) -> bool | str:
    return text if text == "auto" else _flag(text)


OF_LOAD: dict[str, Callable[[str], Any]] = {
    "dtype": str, "device": str, "packed": _packing, "compile": _flag, "attention": str, "shape": str, "model": str,
}  # fmt: skip
OF_WORK: dict[str, Callable[[str], Any]] = {
    "cache": str, "decoder": str, "tokens_per_pass": float, "threads": int, "prompt_length": int, "gen_length": int,
    "block_length": int, "batch_size": int,
}  # fmt: skip
COMMITS = ("decoder", "tokens_per_pass", "trace")


def parse_setting(text: str, usual: Setting) -> Setting:
    """A setting from what it changes: ``cache=dual;dtype=bfloat16``, with semicolons, as specs hold commas.

    ``CACHE/DECODER`` may stand first, as the arena writes it: ``dual/topk:k=2;dtype=bfloat16``.

    Raises:
        OptionError: it cannot be read, or makes no setting; the message names it.
    """
    values: dict[str, Any] = {}
    for number, part in enumerate(part.strip() for part in text.split(";")):
        key, eq, value = (side.strip() for side in part.partition("="))
        cache, slash, decoder = (side.strip() for side in part.partition("/"))
        if not number and slash and key not in {**OF_LOAD, **OF_WORK}:
            values |= {"cache": cache, "decoder": decoder}
        elif not eq or key in values or key not in {**OF_LOAD, **OF_WORK}:
            keys = ", ".join(f"{key}=" for key in {**OF_WORK, **OF_LOAD})
            raise OptionError(
                f"setting {text!r}: it takes {keys} each once, separated by semicolons, perhaps after CACHE/DECODER; "
                f"not {part!r}."
            )
        else:
            values[key] = _read(text, key, value)
    try:
        return _changed(usual, values)
    except OptionError as error:
        raise OptionError(f"setting {text!r}: {error}") from None


def _read(text: str, key: str, value: str) -> Any:
    try:
        return {**OF_LOAD, **OF_WORK}[key](value)
    except ValueError:
        raise OptionError(f"setting {text!r}: {key}={value!r} is not of its kind.") from None


def _changed(usual: Setting, values: dict[str, Any]) -> Setting:
    load = {key: value for key, value in values.items() if key in OF_LOAD}
    if "shape" in load or "model" in load:
        load = {"shape": None, "model": None, **load}
    work = {key: value for key, value in values.items() if key in OF_WORK}
    if any(key in work for key in COMMITS):  # what a setting says of commits replaces what was said before
        work = {**dict.fromkeys(COMMITS), **work}
    return replace(usual, load=replace(usual.load, **load), **work)
