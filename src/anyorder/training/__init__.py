"""Training: transformers' `Trainer` with the training inputs of this package's objectives.

Nothing is imported before it is asked for, since settings are read where PyTorch is not needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyorder.training.causal import train_causal
    from anyorder.training.loop import fit
    from anyorder.training.runs import run
    from anyorder.training.settings import Run, Training

__all__ = ["Run", "Training", "fit", "run", "train_causal"]

_MODULES = {"Run": "settings", "Training": "settings", "fit": "loop", "run": "runs", "train_causal": "causal"}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
