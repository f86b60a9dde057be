"""One network on several processes, by PyTorch's own engine: which module is split how, and what they exchange.

`plans` is the table, `apply` splits a network by it, `vocabulary` computes with scores of a split vocabulary,
`processes` starts the processes and lets them agree, and `sizes` predicts bytes. The network itself knows no ranks.
"""

from __future__ import annotations

from anyorder.parallel.apply import is_split, parallelize, shard
from anyorder.parallel.plans import tensor_plan
from anyorder.parallel.processes import Processes, begin

__all__ = ["Processes", "begin", "is_split", "parallelize", "shard", "tensor_plan"]
