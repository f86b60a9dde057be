"""What is compared in each of several processes: functions of split scores with those of whole ones."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Shard, distribute_tensor

from anyorder.parallel import begin, vocabulary

ROWS = 40


def written(logits: Tensor, temperature: float = 0.8) -> Tensor:
    """A draw for each of `ROWS` rows, of positions of five samples."""
    row_N = torch.arange(ROWS)
    return vocabulary.draw(logits, temperature=temperature, seed=7, sample_N=row_N % 5, position_N=row_N // 5)


def split_scores() -> None:
    """Of vocabularies that are split evenly, unevenly, and so that a process has none."""
    processes = begin(dist.get_world_size(), "cpu").tensor
    for tokens in (32, 99, 3):
        whole = torch.randn(ROWS, tokens, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)
        split = distribute_tensor(whole, processes, [Shard(1)], src_data_rank=None)
        expected_NV = whole.log_softmax(-1)
        token_N = torch.arange(ROWS) % tokens
        found = vocabulary.log_probs(split, token_N)
        torch.testing.assert_close(found, expected_NV[torch.arange(ROWS), token_N])
        torch.testing.assert_close(vocabulary.entropy(split), -(expected_NV.exp() * expected_NV).sum(-1))
        best = vocabulary.top_k(split, 3)
        torch.testing.assert_close(best, tuple(whole.topk(3)), rtol=0, atol=0)
        assert torch.equal(written(split), written(whole))
        assert torch.equal(written(split, temperature=0), whole.argmax(-1))
        tied = torch.zeros_like(whole)
        assert not written(distribute_tensor(tied, processes, [Shard(1)], src_data_rank=None), temperature=0).any()
