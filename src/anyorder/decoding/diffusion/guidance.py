"""Classifier-free guidance, as masked diffusion uses it (Nie et al. 2025, arXiv 2502.09992)."""

from __future__ import annotations

from torch import Tensor


def guided(logits: Tensor, free: Tensor, scale: float) -> Tensor:
    """Logits that move away from those that were `free` of what is given; `scale` 0 moves them nowhere."""
    return free + (scale + 1) * (logits - free)
