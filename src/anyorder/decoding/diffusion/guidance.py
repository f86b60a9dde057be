"""Classifier-free guidance, as masked diffusion uses it (Nie et al. 2025, arXiv 2502.09992)."""

from __future__ import annotations

from torch import Tensor


def guided(logits: Tensor, free: Tensor, scale: float) -> Tensor:
    """Move logits away from those that were computed `free` of the given tokens; `scale` 0 changes nothing."""
    return free + (scale + 1) * (logits - free)
