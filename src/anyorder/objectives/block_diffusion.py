"""Block diffusion: blocks from left to right, the tokens of each by masked diffusion.

Shape suffixes: B batch, L tokens of a sample, J blocks of a sample, N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.objectives.inputs import Batch, TrainingInputs, begins
from anyorder.objectives.noise import MaskingObjective
from anyorder.visibility import block_diffusion, documents


@dataclass(frozen=True, kw_only=True)
class BlockDiffusion(MaskingObjective):
    """All blocks of a text in one pass (BD3-LM, arXiv 2503.09573): `sum over masked of CE / p`, divided by all tokens.

    The rows are the text with masks, then the text without: a row with masks around it sees its own noised block and
    the clean blocks before, a clean row the clean blocks up to its own. Each block draws a time of its own. Blocks
    count from the start of each document.

    Attributes:
        block_length: tokens of a block.
        causal_context: a clean row sees the clean rows up to its own alone, see `Mode`.
        mode_name: as in `MaskingObjective`.

    Raises:
        UserError: a field has a value that cannot be.
    """

    block_length: int
    causal_context: bool = False
    mode_name: str = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_length < 1:
            raise UserError(f"block_length is {self.block_length}: give the tokens of a block, above 0.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode of this name, with the conventions of the fields."""
        mode = Mode(
            name=self.mode_name, shifted=False, mask_token_id=self.mask_token_id, block_length=self.block_length,
            causal_context=self.causal_context,
        )  # fmt: skip
        return (mode,)

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Draws times and masks by the sample."""
        masked_BL, probability_BL = self.draw_masks(batch, seed)
        sample_N, row_N = masked_BL.nonzero(as_tuple=True)
        noised_BL = batch.ids_BL.masked_fill(masked_BL, self.mask_token_id)
        is_noised_BL = torch.ones_like(batch.ids_BL)
        return TrainingInputs(
            ids_BR=torch.cat((noised_BL, batch.ids_BL), 1),
            labels={
                "position": batch.position_BL.repeat(1, 2),
                "document": batch.document_BL.repeat(1, 2),
                "block": batch.position_BL.repeat(1, 2) // self.block_length,
                "noised": torch.cat((is_noised_BL, 1 - is_noised_BL), 1),
            },
            visibility=block_diffusion(self.causal_context) & documents(),
            n_keys=2 * batch.ids_BL.shape[1],
            valid_BR=batch.valid_BL.repeat(1, 2),
            sample_N=sample_N,
            row_N=row_N,
            target_N=batch.ids_BL[sample_N, row_N],
            weight_N=1 / probability_BL[sample_N, row_N],
            count=batch.count,
        )

    def _times(self, position_L: Tensor, document_L: Tensor, seed: int, sample: int) -> Tensor:
        number_L = (begins(position_L // self.block_length) | begins(document_L)).long().cumsum(0) - 1
        time_J = self.times.draw(seed, sample, int(number_L[-1]) + 1)
        return time_J[number_L]
