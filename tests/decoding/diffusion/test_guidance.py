"""Classifier-free guidance."""

from __future__ import annotations

import torch

from anyorder.decoding.diffusion.guidance import guided


def test_guidance_by_hand() -> None:
    """With scale s, `u + (s + 1) (c - u)`."""
    logits, free = torch.tensor([3.0, 1.0]), torch.tensor([1.0, 2.0])
    assert guided(logits, free, 0.5).tolist() == [4.0, 0.5]
    assert guided(logits, free, 0.0).tolist() == logits.tolist()
