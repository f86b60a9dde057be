"""What is compared in each of several processes: texts of a split network with those of the whole one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import anyorder
from anyorder.api.output import Output
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, blocks, diffusion
from anyorder.objectives import summed_loss
from anyorder.parallel import Processes, begin, is_split, parallelize, shard
from anyorder.parallel.sizes import Layout, Sizes
from tests.model.networks import VOCABULARY, network
from tests.objectives.cases import OBJECTIVES, ragged
from tests.parallel.scores import split_scores
from tests.parallel.split import built

MASK = VOCABULARY - 1

ORDERS = ("left-to-right", "random", "groups:4", "diffusion", "blocks:5")

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9], [10, 11, 12]]


def writer(kv_heads: int = 2) -> Llama:
    """A network of every mode, in float64: rounding decides no draw."""
    modes = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(MASK), blocks(MASK, 5))
    return adapt(network(num_key_value_heads=kv_heads), modes).double().eval()


def every_mode(processes: Processes, kv_heads: int = 2) -> None:
    """25 tokens in each mode, greedy and drawn, by a network that is split over all processes, and by a whole one."""
    whole = writer(kv_heads)
    split = parallelize(copy.deepcopy(whole), processes.tensor)
    assert is_split(split)
    expected = processes.broadcast(list(texts(whole)) if processes.is_first else [])
    for found, (what, token_ids) in zip(texts(split), expected, strict=True):
        assert found == (what, token_ids)
    with pytest.raises(UserError, match="compile is True, but the network is split over processes: leave compile out"):
        anyorder.generate(split, None, [1, 2], compile=True)


def texts(model: Llama) -> Iterator[tuple[str, object]]:
    """What is written, and its tokens."""
    for order in ORDERS:
        for drawn in ({}, {"temperature": 0.9, "seed": 3}):
            options: dict[str, Any] = {"order": order, "max_new_tokens": 25, "compile": False, **drawn}
            yield f"{order} {drawn}", anyorder.generate(model, None, PROMPTS[:2], **options).token_ids
    yield "fusion", anyorder.fuse(model, None, [[1, 2, 3], [4, 5]], suffix=[6], max_new_tokens=25).token_ids


def shared_out(processes: Processes) -> None:
    """Texts that processes share out, of numbers that they do not divide, are those of one process."""
    model = writer()
    for batch_size in (None, 1):
        options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "batch_size": batch_size}
        expected = anyorder.generate(model, None, PROMPTS[:3], **options)
        reported: list[Output] = []
        found = anyorder.generate(model, None, PROMPTS[:3], processes=processes, progress=reported.append, **options)
        assert found.token_ids == expected.token_ids
        assert [ids for batch in reported for ids in batch.token_ids] == expected.token_ids
        assert found.sequences == expected.sequences
        assert sorted(event.sample_id for event in found.trace.events) == sorted(
            event.sample_id for event in expected.trace.events
        )


def loaded(processes: Processes, folder: Path) -> None:
    """A checkpoint of which each process reads its part; its size, and the refusal of networks that differ."""
    whole, _ = anyorder.load(folder, device="cpu")
    split, _ = anyorder.load(folder, device="cpu", processes=processes)
    bytes_whole = sum(weight.nbytes for weight in whole.parameters())
    bytes_here = sum(weight.to_local().nbytes for weight in split.parameters() if hasattr(weight, "to_local"))
    bytes_here += sum(weight.nbytes for weight in split.parameters() if not hasattr(weight, "to_local"))
    assert bytes_here <= 1.05 * bytes_whole / processes.mesh.size()
    ids = torch.arange(12).view(2, 6)
    torch.testing.assert_close(split(ids).logits, whole(ids).logits, rtol=1e-5, atol=1e-5)
    assert split.new_cache(1, 4).layers[0].keys.shape[2] == whole.config.num_key_value_heads // processes.mesh.size()
    with pytest.raises(UserError, match=r"dtype is 'int8', but weights of several processes are not rounded"):
        anyorder.load(folder, dtype="int8", processes=processes)
    with pytest.raises(
        UserError, match=r"process 1 has a network whose vocab_size is 32, and process 0 one whose .* 31"
    ):
        processes.split(network(vocab_size=VOCABULARY + dist.get_rank()).config)
    with pytest.raises(
        UserError, match=r"does not divide what is split \(1 key-value heads, 24 inner .*: give one of 1\."
    ):
        processes.split(network(num_key_value_heads=1).config)


class Sent(TorchDispatchMode):
    """Counts the bytes of the results of collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.summed = self.gathered = self.scattered = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(one, DTensor) for one in args):
            return NotImplemented
        if func is torch.ops._c10d_functional.all_reduce.default:
            self.summed += out.nbytes
        if func is torch.ops._c10d_functional.all_gather_into_tensor.default:
            self.gathered += out.nbytes
        if func is torch.ops.c10d._allgather_base_.default:
            self.gathered += args[0].nbytes
        if func is torch.ops.c10d._reduce_scatter_base_.default:
            self.scattered += args[1].nbytes
        return out


def sizes(processes: Processes) -> None:
    """What a process holds and sends is what is computed from the configuration."""
    for name in ("plain", "tied", "norms of heads, biases", "norm of all heads", "experts"):
        model = parallelize(built(name, vocab_size=32).eval(), processes.tensor)
        expected = Sizes(model.config, Layout(tp=2), torch.float64)
        held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
        assert sum(weight.nbytes for weight in held) == expected.weights, name
        cache = model.new_cache(1, 9)
        assert sum(layer.keys[:, 1:].nbytes + layer.values[:, 1:].nbytes for layer in cache.layers) == (
            9 * expected.cache_per_token
        )
        with torch.no_grad(), Sent() as sent:
            model(torch.arange(14).view(2, 7))
        assert (sent.summed, sent.gathered) == (expected.summed_in_pass(14), expected.gathered_in_pass(14, 14)), name
    for name in ("tied", "experts"):
        sharded_sizes(name, processes)


def sharded_sizes(name: str, processes: Processes) -> None:
    """What a process of a sharded network holds and sends in a step of training; the last one holds the least."""
    model = shard(adapt(built(name), (LEFT_TO_RIGHT, ANY_ORDER)).train(), processes.mesh["tensor"])
    inputs = OBJECTIVES["permutation"].inputs(ragged(9, 5, seed=1, prompts=True, step=0), seed=1)
    expected = Sizes(model.config, Layout(fsdp=2), torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with Sent() as sent:
        summed_loss(model, inputs).backward()
    assert (sent.gathered, sent.scattered) == (2 * expected.shards, expected.shards), name
    optimizer.step()
    moments = [optimizer.state[weight][key] for weight in model.parameters() for key in ("exp_avg", "exp_avg_sq")]
    gradients = [weight.grad for weight in model.parameters()]
    held = torch.tensor([local_bytes(model.parameters()), local_bytes([*model.parameters(), *gradients, *moments])])
    dist.all_reduce(held, dist.ReduceOp.MAX)
    assert held.tolist() == [expected.weights, expected.training], name


def local_bytes(parts: Iterable[Tensor | None]) -> int:
    """Bytes of the parts of tensors that this process has."""
    return sum(part.to_local().nbytes for part in parts if isinstance(part, DTensor))


def everything(folder: Path) -> None:
    """All of the above with two processes, which are started once."""
    split = begin(2, "cpu")
    split_scores()
    every_mode(split)
    loaded(split, folder)
    sizes(split)
    shared_out(begin(1, "cpu"))


def four(kv_heads: int) -> None:
    split_scores()
    every_mode(begin(4, "cpu"), kv_heads)
