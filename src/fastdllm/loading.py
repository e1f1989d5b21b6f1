"""From a checkpoint to an engine: where it runs, in which dtype, and how its layers hold their weights."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import torch

from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.heap import keep_freed
from fastdllm.memory import weight_bytes
from fastdllm.models.attention import KERNELS, Mixing, check_mixing
from fastdllm.models.checkpoint import load_weights, read_config, resolve, stored_dtype
from fastdllm.models.compiled import Compiled, check_compiler
from fastdllm.models.config import ModelConfig
from fastdllm.models.native import has_kernels, is_native, native_layout, use_kernels
from fastdllm.models.packed import Layout, choose_packing
from fastdllm.models.quantized import CAPABILITIES, int8_layout, quantization, torchao_layout
from fastdllm.models.transformer import Block, Transformer
from fastdllm.native.build import compiler
from fastdllm.processes import agree, own_device, split_size
from fastdllm.text import Text, load_text

HALVES = (torch.bfloat16, torch.float16)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE = 2**28
"""Bytes of weights from which kernels are the default on a CPU: to build them takes seconds, once."""


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    tensor_parallel: int | str = 1,
    compile: bool = False,
    packed: bool | str = "auto",
    attention: str = "auto",
) -> Engine:
    """Load a checkpoint.

    Args:
        source: ``"tiny"`` (the model that comes with this package), a folder, or a hub id.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, a torch dtype, or ``"auto"``: what the
            checkpoint stores, or float32 on a CPU without fast bfloat16. ``"int8"`` rounds weights and rows of the
            linear layers to bytes, ``"float8"`` (GPUs) to 8-bit floats; all else is then in bfloat16, or in
            float32 on a CPU without fast bfloat16. On GPUs that needs torchao, and ``compile`` to be fast.
        device: a torch device, or ``"auto"``: the GPU when there is one.
        revision: branch, tag or commit of a hub id.
        tensor_parallel: processes that the model is split over, ``"auto"`` for all that torchrun started. Each of
            them then calls this and :meth:`Engine.generate` with the same arguments, and gets the same answers.
        compile: on a CPU, compute with kernels that are built for its processor by the C++ compiler (GCC), in
            seconds and once: float32 needs AVX-512, bfloat16 AVX-512 BF16. Elsewhere, compile the layers, and on a
            GPU record passes over a block as CUDA graphs: the first passes of each size take longer, up to a minute;
            what was compiled is kept for later runs.
        packed: lay the weights of linear layers out for the CPU once, here, rather than at every product. By default
            large models (:data:`LARGE`) are laid out for the kernels of ``compile``, where there are such, and others
            for oneDNN where that pays (:func:`fastdllm.models.packed.pack_where_it_pays`); True is for oneDNN.
        attention: ``"sdpa"``, ``"matmul"``, ``"kernels"`` (those of ``compile``), or ``"auto"``: the
            kernels' where there are such, else on CPUs the one that is faster for the shape of a pass, timed once.
            These two round differently; name one where every run must give the same bits.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a kind that is not served.
        OptionError: an unknown dtype, device or attention, what contradicts the device or another option, or no
            compiler for ``compile``.
    """
    size, mixing = split_size(tensor_parallel), check_mixing(attention)
    if compile and size > 1:
        raise OptionError(f"compile=True does not go with tensor_parallel={size}: leave one of them out.")
    folder = resolve(str(source), revision)
    where = choose_device(device if size == 1 else own_device(device))
    config = read_config(folder)
    text = load_text(folder)
    config = replace(config, eos_ids=end_ids(config, text))
    chosen, split = choose_dtype(dtype, folder, where), None
    if compile and not has_kernels(chosen, where):
        check_compiler(where)
    if size > 1:
        from fastdllm.models.tensor_parallel import TensorParallel  # DTensor takes seconds to import

        split = TensorParallel(config, where, size)
        agree((config, chosen), "models or dtypes")
    layout = choose_layout(dtype, packed, chosen, where, config, compile=compile, tensor_parallel=size)
    model = load_weights(folder, config, chosen, where, split, layout)
    return Engine(made_ready(model, dtype, mixing, compile=compile), text, name=str(source))


def made_ready(model: Transformer, dtype: str | torch.dtype, mixing: Mixing, *, compile: bool) -> Transformer:
    """The network as :func:`load` hands it to an engine, from one with its weights that was asked for in ``dtype``."""
    model.mixing, model.quantized = mixing, quantization(dtype)
    weight = model.embed.weight
    if weight.device.type == "cpu":
        keep_freed()
    native = is_native(model) or (compile and has_kernels(weight.dtype, weight.device))
    if native:
        use_kernels(model)
    if mixing == KERNELS and KERNELS not in cast(Block, model.blocks[0]).attention.mixes:
        others = ", ".join(name for name in get_args(Mixing) if name != KERNELS)
        raise OptionError(
            f"attention={KERNELS!r} needs kernels (compile=True, or a large model) on a CPU with AVX-512, for bfloat16 "
            f"with AVX-512 BF16, and heads of a multiple of 32; else it is one of {others}."
        )
    return Compiled(model) if compile and not native else model


def end_ids(config: ModelConfig, text: Text | None) -> tuple[int, ...]:
    """Ids that end an answer: the configuration's, and the turn ends that the tokenizer knows."""
    return tuple(dict.fromkeys((*config.eos_ids, *(text.turn_end_ids() if text else ()))))


def choose_device(device: str | torch.device) -> torch.device:
    """The device a name stands for; ``auto`` is the GPU when there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}).") from None
    return chosen


def fast_at(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 16-bit products are faster than float32 ones: on GPUs, and on CPUs with instructions for bfloat16."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name for it yet
    return device.type != "cpu" or (dtype == torch.bfloat16 and bool(known and known()))


def choose_dtype(dtype: str | torch.dtype, folder: Path, device: torch.device) -> torch.dtype:
    """The dtype a name stands for; ``auto`` is the checkpoint's, where the device is fast at it.

    Where weights are to be rounded to 8 bits, it is that of all else.
    """
    if quantization(dtype):
        return torch.bfloat16 if fast_at(torch.bfloat16, device) else torch.float32
    if dtype == "auto":
        stored = stored_dtype(folder)
        return stored if stored in HALVES and fast_at(stored, device) else torch.float32
    for name, value in DTYPES.items():
        if dtype in (name, value):
            return value
    raise OptionError(f"dtype={dtype!r} is not one of auto, {', '.join((*DTYPES, *CAPABILITIES))}.")


def choose_layout(
    asked: str | torch.dtype, packed: bool | str, dtype: torch.dtype, device: torch.device, config: ModelConfig, *,
    compile: bool, tensor_parallel: int,
) -> Layout | None:  # fmt: skip
    """How linear layers hold their weights, for :func:`load` with these options; None for plain ones.

    Raises:
        OptionError: they contradict one another, or the device.
    """
    kind = quantization(asked)
    other = "compile=True" if compile else f"tensor_parallel={tensor_parallel}" if tensor_parallel > 1 else ""
    if kind and packed != "auto":
        raise OptionError(f"packed={packed} is about float weights: leave it out with dtype={kind!r}.")
    if kind and (tensor_parallel > 1 or (other and device.type == "cpu")):
        raise OptionError(f"dtype={kind!r} does not go with {other} on {device.type}: leave one of them out.")
    if kind:
        return int8_layout() if kind == "int8" and device.type == "cpu" else torchao_layout(kind, device)
    native = compile and has_kernels(dtype, device)
    if other and (packed is True or (native and packed != "auto")):
        raise OptionError(f"packed={packed} does not go with {other}: leave one of them out.")
    if native:
        return native_layout(dtype)
    if other:
        return None
    large = native_if_large(config, dtype, device) if packed == "auto" else None
    return large or choose_packing(packed, dtype, device)


def native_if_large(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Layout | None:
    """The kernels' layout for models of :data:`LARGE` weights, where they can be built; else None.

    No clock chooses, as answers differ in their last bits. A compiler that is there and fails is a warning.
    """
    if not has_kernels(dtype, device) or weight_bytes(config, dtype.itemsize) < LARGE or compiler() is None:
        return None
    try:
        return native_layout(dtype)
    except OptionError as error:
        warnings.warn(f"{error} Weights are laid out for oneDNN instead.", RuntimeWarning, stacklevel=2)
        return None
