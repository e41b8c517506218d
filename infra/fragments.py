"""Which part of each trained weight a rank updates, in plain training and under DeepSpeed ZeRO 1 to 3, where that part lies in
one flat tensor with those of other weights. State is saved and averaged by name through these, whatever the stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """The part of one weight that this rank updates: `count` elements from `start` on, in the order of the flattened weight.

    owner: the tensor that the optimizer steps and keeps its state under; the part begins there at `offset`. shape: of the
    whole weight. Nothing is flat where the owner is the weight itself.
    """

    parameter: nn.Parameter
    owner: Tensor
    shape: torch.Size
    offset: int = 0
    start: int = 0
    count: int = 0

    def of(self, tensor: Tensor) -> Tensor:
        """The part in `owner`, or in a tensor of its size, as a view."""
        return tensor if self.owner is self.parameter else tensor.detach().narrow(0, self.offset, self.count)

    def cut(self, whole: Tensor) -> Tensor:
        """The part of a whole tensor of the weight's shape."""
        return whole if self.owner is self.parameter else whole.reshape(-1).narrow(0, self.start, self.count)

    def gathered(self, part: Tensor, device: torch.device) -> Tensor:
        """All ranks' parts put together, on `device`; every rank calls it. Exact: each element is one rank's, plus zeros."""
        flat = torch.zeros(self.shape.numel(), dtype=torch.float32, device=device)
        flat[self.start : self.start + self.count] = part.to(device)
        dist.all_reduce(flat)
        return flat.view(self.shape)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def of_whole_weights(module: nn.Module) -> dict[str, Fragment]:
    """Without sharding."""
    return {n: Fragment(p, p, p.shape) for n, p in trained(module).items()}


def of_flat_groups(
    module: nn.Module, optimizer: torch.optim.Optimizer, group_of: Mapping[int, int]
) -> dict[str, Fragment]:
    """ZeRO 1 and 2: a rank owns a slice of each parameter group's flat tensor. group_of: id of a weight -> its group."""
    out = {}
    for name, p in trained(module).items():
        owner = optimizer.param_groups[group_of[id(p)]]["params"][0]
        linked: Any = p._hp_mapping  # type: ignore[attr-defined]
        if linked is None:
            out[name] = Fragment(p, owner, p.shape)
            continue
        here, there = linked.hp_fragment_address, linked.lp_fragment_address
        out[name] = Fragment(p, owner, p.shape, here.start, there.start, here.numel)
    return out


def of_partitions(module: nn.Module, optimizer: Any) -> dict[str, Fragment]:
    """ZeRO 3: a rank owns an equal share of every weight, the last ones of which may be padding."""
    out = {}
    for name, p in trained(module).items():
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(p)]
        start = min(dist.get_rank() * size, p.ds_numel)  # type: ignore[attr-defined]
        count = min(size, p.ds_numel - start)  # type: ignore[attr-defined]
        owner = optimizer.fp32_partitioned_groups_flat[group]
        out[name] = Fragment(p, owner, p.ds_shape, offset, start, count)  # type: ignore[attr-defined]
    return out
