"""One network on several processes, by PyTorch's own engine: which module is split how, and what they exchange.

`plans` is the table, `apply` splits a network by it, `vocabulary` computes with scores of a split vocabulary,
`processes` starts the processes and lets them agree, and `sizes` predicts bytes. The network itself knows no ranks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.parallel.apply import gathered, parallelize, reshard, shard
    from anyorder.parallel.plans import tensor_plan
    from anyorder.parallel.processes import Processes, begin, is_split

__all__ = ["Processes", "begin", "gathered", "is_split", "parallelize", "reshard", "shard", "tensor_plan"]

_MODULES = {"gathered": "apply", "parallelize": "apply", "reshard": "apply", "shard": "apply", "tensor_plan": "plans"}
"""Where the names are; in `processes` unless named here."""


def __getattr__(name: str) -> object:
    # On first use: PyTorch's parts for several processes take a second to import, and one process needs none of them.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"anyorder.parallel.{_MODULES.get(name, 'processes')}"), name)
