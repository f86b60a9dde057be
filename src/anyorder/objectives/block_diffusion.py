"""Block diffusion: blocks from left to right, the tokens of each by masked diffusion.

Shape suffixes: B batch, L tokens of a sample, N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import Mode, blocks
from anyorder.objectives.inputs import Batch, Objective, TrainingInputs, begins
from anyorder.objectives.masked_diffusion import refuse_masks
from anyorder.objectives.noise import Independent, Times, check_eps, mask_probability, masked
from anyorder.utils.annotations import check_fields
from anyorder.visibility import block_diffusion, documents


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(Objective):
    """All blocks of a text in one pass (BD3-LM, arXiv 2503.09573): `sum over masked of CE / p`, divided by all tokens.

    The rows are the text with masks, then the text without: a row with masks around it sees its own noised block and
    the clean blocks before, a clean row the clean blocks up to its own. Each block draws a time of its own. Blocks
    count from the start of each document.

    Attributes:
        mask_token_id: the token that hides others.
        block_length: tokens of a block.
        eps: the lowest probability of being masked.
        times: how the times of the blocks are drawn.

    Raises:
        UserError: a field has a value that cannot be.
    """

    mask_token_id: int
    block_length: int
    eps: float = 1e-3
    times: Times = field(default_factory=Independent)

    def __post_init__(self) -> None:
        check_fields(self)
        check_eps(self.eps)
        if self.block_length < 1:
            raise UserError(f"block_length is {self.block_length}: give the tokens of a block, above 0.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Block by block."""
        return (blocks(self.mask_token_id, self.block_length),)

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Draws times and masks by the sample."""
        refuse_masks(batch, self.mask_token_id)
        block_BL = batch.position_BL // self.block_length
        probability_BL = torch.ones(batch.valid_BL.shape, dtype=torch.float64)
        masked_BL = torch.zeros_like(batch.valid_BL)
        for row, (sample, length) in enumerate(batch.samples()):
            p_L = self._probabilities(block_BL[row, :length], batch.document_BL[row, :length], seed, sample)
            probability_BL[row, :length] = p_L
            masked_BL[row, :length] = masked(p_L, seed, sample)
        masked_BL &= batch.loss_mask_BL & batch.valid_BL
        sample_N, row_N = masked_BL.nonzero(as_tuple=True)
        noised_BL = batch.ids_BL.masked_fill(masked_BL, self.mask_token_id)
        is_noised_BL = torch.ones_like(batch.ids_BL)
        return TrainingInputs(
            ids_BR=torch.cat((noised_BL, batch.ids_BL), 1),
            labels={
                "position": torch.cat((batch.position_BL, batch.position_BL), 1),
                "document": torch.cat((batch.document_BL, batch.document_BL), 1),
                "block": torch.cat((block_BL, block_BL), 1),
                "noised": torch.cat((is_noised_BL, 1 - is_noised_BL), 1),
            },
            visibility=block_diffusion() & documents(),
            n_keys=2 * batch.ids_BL.shape[1],
            valid_BR=torch.cat((batch.valid_BL, batch.valid_BL), 1),
            sample_N=sample_N,
            row_N=row_N,
            target_N=batch.ids_BL[sample_N, row_N],
            weight_N=1 / probability_BL[sample_N, row_N],
            count=float((batch.loss_mask_BL & batch.valid_BL).sum()),
        )

    def _probabilities(self, block_L: Tensor, document_L: Tensor, seed: int, sample: int) -> Tensor:
        """That of each token's block, `[length]`."""
        number_L = (begins(block_L) | begins(document_L)).long().cumsum(0) - 1
        time_J = self.times.draw(seed, sample, int(number_L[-1]) + 1)
        return mask_probability(time_J, self.eps)[number_L]
