"""Split a network over processes by its plan, with PyTorch's DTensor and `parallelize_module`.

A split parameter becomes a `DTensor`, so that optimizers, checkpoints and gradient clipping know its layout. Between
the modules that are split there are plain tensors: rows are whole in each process, heads and inner features are those
of the process.

Shape suffixes: P pairs of a row and one of its experts, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from anyorder.checkpoints.weights import blank, put
from anyorder.model.config import ModelConfig
from anyorder.model.experts import ExpertWeights, MixtureOfExperts
from anyorder.model.llama import Llama
from anyorder.parallel.plans import check_divisible, sharded_dimension, split_dimension, style_of, tensor_plan


class PartialNorm(ParallelStyle):
    """A norm of heads or rows, of which each process has some: its weight is whole.

    The gradient is `Partial`: each process has that of its heads or rows, and PyTorch adds them up where an operation
    reads it. A hook of the weight that did this earlier would be lost wherever `Module.to` swaps weights.

    Args:
        dimension: in which the heads or rows are split.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def partition(_: str, norm: nn.Module, mesh: DeviceMesh) -> None:
            for name, weight in list(norm.named_parameters(recurse=False)):
                whole = distribute_tensor(weight, mesh, [Replicate()], src_data_rank=None)
                norm.register_parameter(name, nn.Parameter(whole, requires_grad=weight.requires_grad))

        def entered(_: nn.Module, given: tuple[Tensor], mesh: DeviceMesh) -> Any:
            return DTensor.from_local(given[0], mesh, [Shard(self.dimension)], run_check=False)

        def left(_: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, device_mesh, partition, entered, left)


class ExpertParallel(ParallelStyle):
    """Each process has some of the experts, computes the rows of those, and all outputs are summed.

    Rows are whole in each process, so nothing need be sent there (transformers calls this "all_reduce").
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, weight in list(module.named_parameters(recurse=False)):
            split = distribute_tensor(weight, device_mesh, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(split, requires_grad=weight.requires_grad))

        def forward(rows_PE: Tensor, expert_P: Tensor) -> Tensor:
            whole = len(cast(Tensor, module.down_proj))
            split = cast(dict[str, DTensor], dict(module.named_parameters()))
            weights = SimpleNamespace(**{name: weight.to_local() for name, weight in split.items()})
            first = part_of(whole, device_mesh).start
            own = len(weights.down_proj)
            # Experts of other processes are absent ones here, which come last.
            numbered_P = torch.where((first <= expert_P) & (expert_P < first + own), expert_P - first, own)
            numbered_P, order_P = numbered_P.sort(stable=True)
            replicated = DTensor.from_local(rows_PE, device_mesh, [Replicate()], run_check=False)
            local_PE = replicated.to_local(grad_placements=[Partial()])[order_P]
            out_PE = ExpertWeights.forward(cast(ExpertWeights, weights), local_PE, numbered_P)[order_P.argsort()]
            return _summed(out_PE, device_mesh)

        module.forward = forward
        return module


def _summed(partial: Tensor, mesh: DeviceMesh) -> Tensor:
    """Sum a tensor over processes; backwards each has the whole gradient."""
    whole: Tensor = DTensor.from_local(partial, mesh, [Partial()], run_check=False).redistribute(
        placements=[Replicate()]
    ).to_local()  # fmt: skip
    return whole


class Rows:
    """The rows between layers, of which each process has some (sequence parallelism, Korthikanti et al. 2022).

    The layers but the last one norm and add these alone; attention and feed-forward read all (arXiv 2205.05198). The
    last layer, which may leave out rows, has all rows.

    Args:
        model: whole; what is split between layers is entered by hooks.
        mesh: the processes.
    """

    def __init__(self, model: Llama, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.number = 0
        *layers, last = model.model.layers
        for index, layer in enumerate(layers):
            if index == 0:
                layer.register_forward_pre_hook(lambda _, given: (self.split(given[0]), *given[1:]))
            parts: tuple[Any, ...] = (layer.self_attn, layer.mlp)
            for part in parts:
                part.register_forward_pre_hook(lambda _, given: (self.gathered(given[0]), *given[1:]))
            if isinstance(layer.mlp, MixtureOfExperts):
                layer.mlp.register_forward_hook(lambda _, given, whole: self.split(whole))
        if layers:
            last.register_forward_pre_hook(lambda _, given: (self.gathered(given[0]), *given[1:]))

    @staticmethod
    def styles(model: Llama) -> dict[str, ParallelStyle]:
        """Return the styles of the modules that have other inputs or outputs than without this."""
        split = Shard(1)
        inputs = Replicate() if model.config.qk_norm == "learned-full-width" else Shard(-1)
        styles: dict[str, ParallelStyle] = {}
        for index, layer in enumerate(model.model.layers[:-1]):
            name = f"model.layers.{index}"
            styles[f"{name}.input_layernorm"] = styles[f"{name}.post_attention_layernorm"] = PartialNorm(1)
            styles[f"{name}.self_attn.o_proj"] = RowwiseParallel(input_layouts=inputs, output_layouts=split)
            if not isinstance(layer.mlp, MixtureOfExperts):
                styles[f"{name}.mlp.down_proj"] = RowwiseParallel(output_layouts=split)
        return styles

    def split(self, whole_BRE: Tensor) -> Tensor:
        """Return the rows of this process, of rows that each has."""
        self.number = whole_BRE.shape[1]
        replicated = DTensor.from_local(whole_BRE, self.mesh, [Replicate()], run_check=False)
        own: Tensor = replicated.redistribute(placements=[Shard(1)]).to_local()
        return own

    def gathered(self, own_BRE: Tensor) -> Tensor:
        """Return the rows of all processes."""
        part = part_of(self.number, self.mesh)
        assert own_BRE.shape[1] == part.stop - part.start, "of the same pass"
        shape = torch.Size((own_BRE.shape[0], self.number, own_BRE.shape[2]))
        stride = (shape[1] * shape[2], shape[2], 1)
        split = DTensor.from_local(own_BRE, self.mesh, [Shard(1)], run_check=False, shape=shape, stride=stride)
        whole: Tensor = split.redistribute(placements=[Replicate()]).to_local()
        return whole


STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
    "embedding_rowwise": lambda: RowwiseParallel(input_layouts=Replicate()),
    "replicated_with_grad_allreduce": lambda: PartialNorm(2),
}
"""By their names in plans; experts have `ExpertParallel`."""


def part_of(size: int, mesh: DeviceMesh) -> slice:
    """Return which of `size` rows this process has: equally many each, and what remains the last ones."""
    each = -(-size // mesh.size())
    first = min(mesh.get_local_rank() * each, size)
    return slice(first, min(first + each, size))


@dataclass(frozen=True)
class Sharding:
    """Which part of each tensor of a checkpoint this process reads, and the parameter that it becomes.

    Attributes:
        config: the network.
        mesh: the processes that it is split over.
    """

    config: ModelConfig
    mesh: DeviceMesh

    def part(self, name: str, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the index of the part of a tensor that this process has."""
        dimension = self._dimension(name)
        if dimension is None:
            return ()
        return (slice(None),) * dimension + (part_of(shape[dimension], self.mesh),)

    def parameter(self, name: str, part: Tensor, shape: tuple[int, ...]) -> nn.Parameter:
        """Return the parameter of the whole shape whose part here is `part`."""
        dimension = self._dimension(name)
        if dimension is None:
            return nn.Parameter(part)
        stride = torch.empty(shape, device="meta").stride()
        placement: list[Placement] = [Shard(dimension)]
        whole = DTensor.from_local(part, self.mesh, placement, run_check=False, shape=torch.Size(shape), stride=stride)
        return nn.Parameter(whole)

    def _dimension(self, name: str) -> int | None:
        return None if self.mesh.size() == 1 else split_dimension(name, tensor_plan(self.config))


def parallelize(
    model: Llama, mesh: DeviceMesh, *, gather_logits: bool = True, sequence_parallel: bool = False
) -> Llama:  # fmt: skip
    """Split a network in place over the processes of a mesh of one dimension.

    Args:
        model: the same whole network in each process, or one that was read by a `Sharding`.
        mesh: the processes.
        gather_logits: whether each process has the scores of all tokens, as decoders need, and not a `DTensor` that is
            split by tokens, as `vocabulary.summed_loss` takes it.
        sequence_parallel: split the rows between layers, too, see `Rows`; for training, where they need memory.

    Raises:
        UserError: see `check_divisible`.
    """
    check_divisible(model.config, mesh.size())
    if mesh.size() == 1:
        return model
    plan = tensor_plan(model.config)
    styles: dict[str, Any] = {
        name: STYLES[style]() for name, _ in model.named_modules() if (style := style_of(name, plan)) is not None
    }
    styles |= {name: ExpertParallel() for name, module in model.named_modules() if isinstance(module, ExpertWeights)}
    if not gather_logits:
        styles["lm_head"] = ColwiseParallel(use_local_output=False)
    if sequence_parallel:
        styles |= Rows.styles(model)
        Rows(model, mesh)
    parallelize_module(model, mesh, styles, src_data_rank=None)
    model.tie_weights()
    if model.config.qk_norm != "learned-full-width":
        model.model.kv_heads //= mesh.size()
    return model


def shard(model: Llama, mesh: DeviceMesh) -> Llama:
    """Shard all parameters of a network in place over the groups of processes of a mesh (FSDP2).

    Each layer is gathered while it is computed. Embedding and head, which may be one matrix, are gathered with the
    rest. Optimizers are made afterwards. Gradients are averaged over the groups.

    Args:
        model: whole, or split by `parallelize` over the processes of each group.
        mesh: one process of each group, of one dimension.
    """

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(sharded_dimension(tuple(parameter.shape), mesh.size()))

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=placement)
    fully_shard(model, mesh=mesh, shard_placement_fn=placement)
    for method in ("hidden", "two_streams", "logits"):  # which gather weights as `forward` does
        register_fsdp_forward_method(model, method)
    return model


def reshard(model: nn.Module) -> None:
    """Free weights that were gathered for a pass without gradients, after which embedding and head stay whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(model: Llama) -> Llama:
    """Return a network that was split or sharded, whole and on the CPU, in the first process.

    All processes call this together. One weight after another is gathered, and the others keep none of them.
    """
    whole = blank(model.config)
    first = dist.get_rank() == 0
    for name, weight in model.named_parameters(remove_duplicate=False):
        full = _whole(weight.detach())
        if first:
            put(whole, name, nn.Parameter(full.cpu(), requires_grad=weight.requires_grad))
    if first:
        whole.tie_weights()
    return whole.eval()


def _whole(weight: Tensor) -> Tensor:
    """Gather the parts of a weight: those of the groups first, into which the parts of each group were cut."""
    if not isinstance(weight, DTensor):
        return weight
    for dimension in range(len(weight.placements)):
        done = dimension + 1
        weight = weight.redistribute(placements=[Replicate()] * done + list(weight.placements[done:]))
    return weight.to_local()
