"""Weights in safetensors files, read into our module and written from it.

Each tensor is copied in pieces of :data:`PIECE` bytes, and the file is opened anew for every piece:
safetensors maps the file into memory, and pages once read count as ours until that map is closed.
So memory holds the weights in the wanted dtype plus one piece, whatever the dtype in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastdllm.errors import CheckpointError
from fastdllm.models.config import ModelConfig
from fastdllm.models.config_file import Fields
from fastdllm.models.families import FORMATS, HEAD
from fastdllm.models.packed import Layout, replace_layer
from fastdllm.models.transformer import Transformer

if TYPE_CHECKING:
    from fastdllm.models.tensor_parallel import TensorParallel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECE = 32 * 2**20
Window = tuple[slice, ...]  # part of a tensor: a range of each dimension
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies, and its shape and safetensors dtype (``"BF16"``)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device,
    split: TensorParallel | None = None, layout: Layout | None = None,
) -> Transformer:  # fmt: skip
    """Build the network of ``config`` and fill it from the safetensors files of ``folder``.

    Every tensor must be there once, in its shape, and no other; a tied checkpoint may carry the head,
    which is then ignored, as the families' own classes do.

    Args:
        split: divides the network among processes; this one then reads and holds its part alone.
        layout: what becomes of linear layers; each is made as its weight is read, so that no two forms of all
            weights are held at a time. None leaves them as they are.

    Returns:
        The network in ``dtype`` on ``device``, in eval mode, without gradients.

    Raises:
        CheckpointError: files or tensors are missing, unexpected, damaged, or of another kind.
    """
    stored = list_tensors(folder)
    names = FORMATS[config.family].tensor_names(config)
    with torch.device("meta"):
        model = Transformer(config)
    if split is not None:
        split.apply(model)
    blank = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in blank.items()}
    if config.tie_embeddings:
        stored.pop(FORMATS[config.family].head_name, None)
    _check_tensors(folder, stored, {theirs: shapes[ours] for theirs, ours in names.items()})
    filled: dict[str, nn.Parameter] = {}
    for theirs, ours in names.items():
        window = whole(stored[theirs].shape) if split is None else split.window(blank[ours])
        tensor = _read(stored[theirs], theirs, window, dtype, device)
        layer, _, leaf = ours.rpartition(".")
        owner = model.get_submodule(layer)
        if layout is not None and leaf == "weight" and isinstance(owner, nn.Linear):
            replace_layer(model, layer, layout(owner, tensor))
        else:
            filled[ours] = nn.Parameter(tensor if split is None else split.place(tensor, blank[ours]))
    if config.tie_embeddings:
        filled[HEAD] = filled["embed.weight"]
    model.load_state_dict(filled, assign=True, strict=False)  # what is missing stands in its layer already
    return model.eval().requires_grad_(False)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype in which most of the weights of ``folder`` are stored.

    Where the weights are not there, or not all, it is what config.json says of them.

    Raises:
        CheckpointError: the files are missing or damaged, or that dtype is not a float of 16 bits or more.
    """
    try:
        stored = list_tensors(folder)
    except CheckpointError:
        raw = Fields.read(folder / "config.json").raw
        said = raw.get("torch_dtype") or raw.get("dtype")
        for dtype in DTYPES.values():
            if str(dtype) == f"torch.{said}":
                return dtype
        raise
    sizes: Counter[str] = Counter()
    for tensor in stored.values():
        sizes[tensor.dtype] += prod(tensor.shape)
    name = max(sizes, key=sizes.__getitem__, default="nothing")
    if name not in DTYPES:
        raise CheckpointError(f"{folder} stores its weights as {name}; expected is one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint by its name in the file, from the files' headers alone.

    Raises:
        CheckpointError: no safetensors files, a shard missing, a file damaged, or a tensor stored twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _files(folder):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safe_open is no mapping)
                if name in stored:
                    raise CheckpointError(f"{name} is stored twice, in {stored[name].file} and {file.name}.")
                view = tensors.get_slice(name)
                stored[name] = StoredTensor(file=file, shape=tuple(view.get_shape()), dtype=view.get_dtype())
    return stored


def _files(folder: Path) -> list[Path]:
    """The single file, or the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise CheckpointError(_no_weights(folder))
    index = Fields.read(folder / INDEX)
    places = index.raw.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise index.refusal("weight_map", "an object from tensor names to file names")
    shards = sorted(set(places.values()))
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{index.path} names the shard {shard!r}; expected is a file beside the index.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder} has no {shard}, one of the {len(shards)} shards that {INDEX} names.")
    return [folder / shard for shard in shards]


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is not a folder; expected is one with config.json and {WEIGHTS}."
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in {".bin", ".pt", ".pth", ".ckpt"})
    if pickles:
        return (
            f"{folder} has its weights as {pickles[0]}, a pickle, which can run code when it is read; "
            f"convert it to {WEIGHTS} first."
        )
    return f"{folder} has neither {WEIGHTS} nor {INDEX}."


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated, damaged, or not a safetensors file ({error}).") from None


def _check_tensors(folder: Path, stored: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Refuse a checkpoint whose tensors are not exactly those of the network."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(f"{folder} lacks {_some(missing)}, of the {len(expected)} that config.json asks for.")
    unexpected = [name for name in stored if name not in expected]
    if unexpected:
        raise CheckpointError(f"{folder} has {_some(unexpected)} that the network of its config.json has no place for.")
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name} in {tensor.file} has shape {list(tensor.shape)}; config.json asks for {list(shape)}."
            )
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {tensor.file} has dtype {tensor.dtype}; expected is one of {', '.join(DTYPES)}."
            )


def _some(names: list[str], shown: int = 3) -> str:
    """``2 tensors (a, b)``, naming the first few."""
    more = ", ..." if len(names) > shown else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:shown])}{more})"


def whole(shape: Sequence[int]) -> Window:
    """All of a tensor."""
    return tuple(slice(0, length) for length in shape)


def _read(stored: StoredTensor, name: str, window: Window, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A part of a tensor in ``dtype`` on ``device``, copied piece by piece along its first dimension."""
    rows, *others = window
    filled = torch.empty([part.stop - part.start for part in window], dtype=dtype, device=device)
    row_bytes = prod(stored.shape[1:]) * DTYPES[stored.dtype].itemsize  # parts of a row lie on the pages of all of it
    step = max(1, PIECE // row_bytes)
    for done in range(0, len(filled), step):
        piece = slice(rows.start + done, min(rows.start + done + step, rows.stop))
        with _opened(stored.file) as tensors:
            filled[done : done + step].copy_(tensors.get_slice(name)[(piece, *others)])
    return filled
