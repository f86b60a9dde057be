"""Weights and gradients of which some are split over processes, and not all over the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

Some = TypeVar("Some", bound=Tensor)


def by_mesh(tensors: Iterable[Some]) -> dict[Any, list[Some]]:
    """Return tensors by the processes that they are split over, which one operation can take together."""
    found: dict[Any, list[Some]] = {}
    for tensor in tensors:
        mesh = tensor.device_mesh if isinstance(tensor, DTensor) else None
        found.setdefault(mesh, []).append(tensor)
    return found


def clip_grad_norm(parameters: Iterable[Tensor], most: float) -> Tensor:
    """Scale gradients so that their norm, of all of them over all processes, is at most `most`; returns it before.

    As `torch.nn.utils.clip_grad_norm_`, which takes no gradients that are split over different processes.
    """
    by_parts: dict[int, list[Tensor]] = {}
    for weight in parameters:
        if weight.grad is not None:
            weight.grad = _added_up(weight.grad)
            by_parts.setdefault(_parts(weight.grad), []).append(_local(weight.grad))
    squares = [parts * torch.nn.utils.get_total_norm(grads).double() ** 2 for parts, grads in by_parts.items()]
    square = torch.stack(squares).sum() / dist.get_world_size()  # equal parts are in several processes
    dist.all_reduce(square)
    norm = square.sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1)
    for grads in by_parts.values():
        torch._foreach_mul_(grads, factor.to(grads[0]))
    return norm


def _added_up(grad: Tensor) -> Tensor:
    """Return a gradient of which each process has a summand, added up over them; others as they are."""
    if not isinstance(grad, DTensor) or not any(placement.is_partial() for placement in grad.placements):
        return grad
    placements = [Replicate() if placement.is_partial() else placement for placement in grad.placements]
    return grad.redistribute(placements=placements)


def _parts(tensor: Tensor) -> int:
    """Return over how many processes a tensor is split; the others have one of the same parts."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, placement in sizes if not placement.is_replicate())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like(weight: Tensor, whole: Tensor) -> Tensor:
    """Return a tensor of which each process has all, split as a weight is, and of its dtype."""
    if isinstance(weight, DTensor):
        return distribute_tensor(whole.to(weight.dtype), weight.device_mesh, weight.placements, src_data_rank=None)
    return whole.to(weight)
