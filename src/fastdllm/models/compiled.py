"""A network whose layers are compiled, and whose small passes are replayed as CUDA graphs.

A pass over one block of a canvas is a thousand kernels of a few microseconds each: on a GPU the host takes longer to
launch them than they take to run. So for such passes layers are compiled (one compilation serves all of them), and
each is recorded once for its shape and replayed. Shapes are few: canvases are rounded up to :data:`LENGTH` slots,
rows to :data:`ROWS`, batches to powers of two, and a store is used again by the next generation of its size, whose
addresses the recordings know. What is added by rounding is masked, or written where nothing reads it.

Shapes: N batch rows of a pass, R rows of each, T canvas length, H key/value heads, D head width, E model width.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fastdllm.errors import OptionError
from fastdllm.kv import BoundStore, KVStore
from fastdllm.models.attention import bucket
from fastdllm.models.transformer import Block, KeyValues, LayerHook, Transformer, rotary_angles

LENGTH, ROWS = 128, 8
FEW = 256
"""Passes of more rows than this are left as they are: launching them costs no more than running them. Not so where
weights are rounded to 8 bits: there each layer is dozens of small kernels until it is compiled."""
Held = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerStore:
    """Keys and values (N, H, T + 1, D) of one layer."""

    keys: Tensor
    values: Tensor
    rows: Tensor

    def exchange(self, layer: int, keys: Tensor, values: Tensor) -> Held:
        """As :meth:`fastdllm.kv.BoundStore.exchange`; every slot is in reach."""
        batch = torch.arange(len(self.rows), device=self.rows.device)[:, None]
        self.keys[batch, :, self.rows] = keys.transpose(1, 2)
        self.values[batch, :, self.rows] = values.transpose(1, 2)
        return self.keys[:, :, :-1], self.values[:, :, :-1]


def run_layer(
    block: Block, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, keys: Tensor, values: Tensor, rows: Tensor
) -> Tensor:
    """One layer of a pass as a function of tensors alone, which is what compiles."""
    out: Tensor = block(x, (cos, sin), visible, 0, LayerStore(keys, values, rows))
    return out


class Compiled(Transformer):
    """A network over the modules of another, for passes over few rows of a store; all others run as they always do.

    Args:
        model: the network, on its device.
        backend: of :func:`torch.compile`.
        graphs: record passes over few rows as CUDA graphs; by default on GPUs.
    """

    def __init__(
        self, model: Transformer, *, backend: str | Callable[..., object] = "inductor", graphs: bool | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self.graphs = model.embed.weight.is_cuda if graphs is None else graphs
        self._layer: Callable[..., Tensor] = torch.compile(run_layer, backend=backend)
        self._idle: KVStore | None = None
        self._given: weakref.ref[KVStore] | None = None
        self._passes: weakref.WeakKeyDictionary[KVStore, dict[tuple[int, int], StaticPass]]
        self._passes = weakref.WeakKeyDictionary()

    def room(self, length: int) -> int:
        """Slots of the canvas that holds ``length`` tokens."""
        return _up(length, LENGTH)

    def allocate(self, batch: int, length: int) -> KVStore:
        """A store for canvases of ``length`` slots: that of the last generation where it fits and is free."""
        if self._given is not None and self._given() is not None:
            return super().allocate(batch, length)
        if self._idle is None or (self._idle.batch, self._idle.length) != (batch, length):
            self._idle = None  # its memory goes before the new one comes
            self._idle = super().allocate(batch, length)
        given = self._idle.again()
        self._given = weakref.ref(given)
        return given

    def forward(
        self,
        tokens_BR: Tensor,
        positions_BR: Tensor,
        visible: Tensor | None = None,
        store: KeyValues | None = None,
        layers: LayerHook | None = None,
    ) -> Tensor:
        """As :meth:`Transformer.forward`."""
        wide = tokens_BR.shape[1] > FEW and self.quantized is None
        if layers is not None or not isinstance(store, BoundStore) or wide:
            return super().forward(tokens_BR, positions_BR, visible, store, layers)
        pool = store.store.pool
        passes = self._passes.setdefault(pool.base, {})
        shape = min(bucket(int(store.places.max()) + 1), pool.batch), _up(tokens_BR.shape[1], ROWS)
        if shape not in passes:
            passes[shape] = StaticPass(self, pool, *shape)
        return passes[shape](tokens_BR, positions_BR, visible, store)

    def few(self, tokens: Tensor, rows: Tensor, visible: Tensor, held: list[Held]) -> Tensor:
        """Hidden states (N, R, E) of a pass over the first batch rows of a store, layer by layer over what is held."""
        cos, sin = rotary_angles(rows, self.config.head_dim, self.config.rope_theta)
        x: Tensor = self.embed(tokens)
        for block, (keys, values) in zip(self.blocks, held, strict=True):
            x = self._layer(block, x, cos, sin, visible[:, None, None], keys, values, rows)
        return cast(Tensor, self.norm(x))


class StaticPass:
    """Passes over at most ``count`` batch rows of a pool and ``width`` rows of each, always of that shape.

    Its inputs lie at fixed addresses. A batch row stands at its own place in the pool; places that a pass does not
    compute get the spare slot's row, which nothing reads.
    """

    def __init__(self, network: Compiled, pool: KVStore, count: int, width: int) -> None:
        device = pool.device
        self.network, self.spare = network, pool.length
        self.held = [pool.of_layer(i, slice(0, count)) for i in range(pool.layers)]
        self.tokens = torch.zeros(count, width, dtype=torch.long, device=device)
        self.rows = torch.full((count, width), pool.length, device=device)
        self.visible = torch.ones(count, pool.length, dtype=torch.bool, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden = torch.empty(0)

    def __call__(self, tokens: Tensor, rows: Tensor, visible: Tensor | None, store: BoundStore) -> Tensor:
        """Hidden states (N, R, E) of a pass over ``store``, in the order of its batch rows."""
        assert visible is None or visible.ndim == 2
        where, width, reach = store.where, rows.shape[1], store.reach
        self.rows.fill_(self.spare)
        self.visible[:, 1:] = False  # one slot stays visible to all: a row that sees nothing is no number
        self.tokens[where, :width], self.rows[where, :width] = tokens, rows
        self.visible[where, :reach] = True if visible is None else visible
        return self._run()[where, :width]

    def _run(self) -> Tensor:
        inputs = self.tokens, self.rows, self.visible, self.held
        if not self.network.graphs:
            return self.network.few(*inputs)
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        return self.hidden.clone()  # the next replay writes here

    def _record(self) -> None:
        """Record the pass that its inputs say; to run it more than once writes the same keys and values again."""
        inputs = self.tokens, self.rows, self.visible, self.held
        stream = torch.cuda.Stream(self.tokens.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries make what they keep
                self.network.few(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(self.graph):
            self.hidden = self.network.few(*inputs)


@contextmanager
def uncollected() -> Iterator[None]:
    """Nothing that is unreachable is freed inside: an old recording that goes while a new one is made spoils it."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def check_compiler(device: torch.device) -> None:
    """Refuse a CPU without a C++ compiler, before a model is loaded that could not make its first pass.

    Raises:
        OptionError: there is none.
    """
    if device.type != "cpu":
        return
    from torch._inductor import cpp_builder, exc  # seconds to import, which the first compilation takes anyway

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise OptionError(
            "compile=True on a CPU needs a C++ compiler such as g++, and none was found; leave it out."
        ) from None


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
