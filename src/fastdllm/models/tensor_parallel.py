"""Tensor parallelism: each process of a group holds some heads of every layer and a part of its inner width.

``parallelize_module`` lays the weights out as DTensors (the division is Megatron-LM's, arXiv 1909.08053, section 3):
q, k, v, gate and up by their outputs, out and down by their inputs, embedding and head by the vocabulary. So a layer
sums over the processes twice, and what stands between layers is whole in every process.

The styles are our own because DTensor's works its sharding out anew for every shape that a product meets, and the
shapes of these passes change all the time: each process multiplies with its own shard, as a plain tensor.

All processes decide alike without being told: logits are gathered, so their bits are the same everywhere, and the
sums that policies rank by come out of one reduction whose result every process gets.

Shapes: P processes, B batch, R rows of a pass, E model width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from fastdllm.models.config import ModelConfig, check_divides
from fastdllm.models.transformer import Block, Transformer
from fastdllm.models.weights import Window
from fastdllm.processes import join


class Split(ParallelStyle):
    """Parameters divided along one dimension, and a forward that uses this process's part of them."""

    dimension = 0

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in list(module.named_parameters(recurse=False)):
            divided = distribute_tensor(parameter, device_mesh, [Shard(self.dimension)])
            module.register_parameter(name, nn.Parameter(divided, requires_grad=False))
        module.forward = partial(self.forward, module, device_mesh.get_group())
        return module

    def forward(self, module: nn.Module, group: ProcessGroup, x: Tensor) -> Tensor:
        """This process's part of the outputs, (..., outputs / P)."""
        return F.linear(x, own(module.weight), None if module.bias is None else own(module.bias))


class Columns(Split):
    """A linear layer divided by its outputs."""


class Rows(Split):
    """A linear layer without bias, divided by its inputs: what it is given is already, and what it gives is whole."""

    dimension = 1

    def forward(self, module: nn.Module, group: ProcessGroup, x: Tensor) -> Tensor:
        return summed(group, super().forward(module, group, x))


class Head(Columns):
    """A linear layer divided by its outputs, which are gathered: (..., outputs)."""

    def forward(self, module: nn.Module, group: ProcessGroup, x: Tensor) -> Tensor:
        part = super().forward(module, group, x)
        parts = [torch.empty_like(part) for _ in range(group.size())]
        distributed.all_gather(parts, part, group=group)
        return torch.cat(parts, dim=-1)


class Table(Split):
    """An embedding divided by the vocabulary; a token's row is a sum in which one process alone adds anything."""

    def forward(self, module: nn.Module, group: ProcessGroup, x: Tensor) -> Tensor:
        weight = own(module.weight)
        places = x - group.rank() * len(weight)
        here = (places >= 0) & (places < len(weight))
        return summed(group, F.embedding(places.where(here, 0), weight).masked_fill(~here[..., None], 0.0))


PLAN: dict[str, ParallelStyle] = {
    "embed": Table(),
    "blocks.*.attention.q": Columns(),
    "blocks.*.attention.k": Columns(),
    "blocks.*.attention.v": Columns(),
    "blocks.*.attention.out": Rows(),
    "blocks.*.feed_forward.gate": Columns(),
    "blocks.*.feed_forward.up": Columns(),
    "blocks.*.feed_forward.down": Rows(),
    "head": Head(),
}


class TensorParallel:
    """The division of one model among all processes, which it lets meet first if they have not.

    Args:
        device: of this process.
        size: processes.

    Raises:
        OptionError: the model cannot be divided so.
    """

    def __init__(self, config: ModelConfig, device: torch.device, size: int) -> None:
        check_divides(config, size)
        join(device)
        self.size = size
        self.mesh = init_device_mesh(device.type, (size,))

    def apply(self, model: Transformer) -> None:
        """Divide the parameters of a model on the meta device, and have it compute in parts."""
        parallelize_module(model, self.mesh, PLAN)
        model.tensor_parallel = self.size
        for block in model.blocks:
            cast(Block, block).attention.over_heads = partial(summed, self.mesh.get_group())

    def window(self, tensor: Tensor) -> Window:
        """The part of a parameter that this process holds."""
        ranges = [slice(0, length) for length in tensor.shape]
        if isinstance(tensor, DTensor):
            (placement,) = tensor.placements
            assert isinstance(placement, Shard)
            length = tensor.shape[placement.dim] // self.size
            first = self.mesh.get_local_rank() * length
            ranges[placement.dim] = slice(first, first + length)
        return tuple(ranges)

    def place(self, part: Tensor, like: Tensor) -> Tensor:
        """A parameter laid out as ``like``, of which this process holds ``part``."""
        if not isinstance(like, DTensor):
            return part
        return DTensor.from_local(
            part, self.mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )


def own(parameter: object) -> Tensor:
    """This process's part of a divided parameter, without a copy."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def summed(group: ProcessGroup, x: Tensor) -> Tensor:
    """The sum of every process's ``x``, in its place."""
    distributed.all_reduce(x, group=group)
    return x
