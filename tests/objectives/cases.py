"""Every objective at a small size, and ragged batches for them."""

from __future__ import annotations

import torch

from anyorder.checkpoints.adapt import adapt
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.objectives import (
    Antithetic,
    Autoregressive,
    Batch,
    BlockDiffusion,
    MaskedDiffusion,
    MaskedDiffusionTuning,
    Mixture,
    Objective,
    Permutation,
    Stratified,
    growing,
)
from anyorder.objectives.schedules import Always
from anyorder.orders.kinds import LeftToRight, Spans
from tests.model.networks import VOCABULARY, network

MASK, END = VOCABULARY - 1, VOCABULARY - 2

OBJECTIVES: dict[str, Objective] = {
    "autoregressive": Autoregressive(),
    "permutation": Permutation(),
    "permutation of spans, half": Permutation(schedule=Always(Spans(size=2)), predicted=0.5),
    "permutation from left to right": Permutation(schedule=Always(LeftToRight())),
    "growing groups": Permutation(schedule=growing(1)),
    "masked diffusion": MaskedDiffusion(mask_token_id=MASK),
    "masked diffusion, shifted": MaskedDiffusion(mask_token_id=MASK, shifted=True, times=Stratified(strata=3)),
    "masked diffusion, cropped": MaskedDiffusion(mask_token_id=MASK, random_length=1.0, times=Antithetic()),
    "masked diffusion, opening": MaskedDiffusion(mask_token_id=MASK, opening_steps=4, shifted=True),
    "tuning": MaskedDiffusionTuning(mask_token_id=MASK),
    "tuning with end tokens": MaskedDiffusionTuning(mask_token_id=MASK, length=12, end_token_id=END),
    "block diffusion": BlockDiffusion(mask_token_id=MASK, block_length=3),
    "mixture by sample": Mixture(
        parts=(Autoregressive(), Permutation(predicted=0.5), BlockDiffusion(mask_token_id=MASK, block_length=2)),
        shares=(1, 1, 1),
    ),
    "mixture by step": Mixture(
        parts=(Permutation(), MaskedDiffusionTuning(mask_token_id=MASK)), shares=(1, 2), by="step"
    ),
}  # fmt: skip


def learner(layers: str = "plain") -> Llama:
    """A small network with query rows, in training mode."""
    return adapt(network(layers), (LEFT_TO_RIGHT, ANY_ORDER)).train()


def ragged(*lengths: int, seed: int = 0, prompts: bool = False, packed: bool = False, step: int = 2) -> Batch:
    """Random texts of these lengths, with samples numbered from 10 on."""
    draws = torch.Generator().manual_seed(seed)
    texts = [torch.randint(END, (length,), generator=draws).tolist() for length in lengths]
    batch = Batch.of(texts, [length // 3 for length in lengths] if prompts else None, first_sample=10, step=step)
    if packed:
        document_BL = batch.position_BL // 4
        batch = batch.replace(document_BL=document_BL, position_BL=batch.position_BL % 4)
    return batch
