"""Masked diffusion: tokens are masked at random, and predicted from all that is left, on either side.

Shape suffixes: B batch, L tokens of a sample, N predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.modes import Mode
from anyorder.objectives.inputs import Batch, TrainingInputs
from anyorder.objectives.noise import MaskingObjective
from anyorder.utils.rng import generator
from anyorder.visibility import Visibility, annealed, bidirectional, documents


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusionBase(MaskingObjective):
    """What pre-training and fine-tuning by masked diffusion share.

    Attributes:
        shifted: a token is predicted by the row before it, as a causal network is used to (the first of a document by
            its own row); otherwise by its own.
        opening_steps: over this many steps the mask of a causal network is opened: besides all before it, a row sees
            each later one with a probability that rises from 0 to 1. 0 for a network that sees everything already.

    Raises:
        UserError: a field has a value that cannot be.
    """

    shifted: bool = False
    opening_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.opening_steps < 0:
            raise UserError(f"opening_steps is {self.opening_steps}: give a number of steps, or 0 to see all at once.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode of this name, with the conventions of the fields."""
        return (Mode(name=self.mode_name, shifted=self.shifted, mask_token_id=self.mask_token_id),)

    def visibility(self, step: int, seed: int) -> Visibility:
        """Everything in the own document; while the mask is being opened, less (DiffuLLaMA, arXiv 2410.17891)."""
        if step >= self.opening_steps:
            return bidirectional() & documents()
        return annealed(step / self.opening_steps, seed) & documents()

    def masked_inputs(
        self, batch: Batch, masked_BL: Tensor, weight_BL: Tensor, count: float, seed: int
    ) -> TrainingInputs:
        """Make the training inputs that predict the masked tokens."""
        sample_N, at_N = masked_BL.nonzero(as_tuple=True)
        position_N = batch.position_BL[sample_N, at_N]
        (mode,) = self.modes
        sample_BL = batch.sample_B.unsqueeze(1).expand_as(batch.ids_BL)
        return TrainingInputs(
            ids_BR=batch.ids_BL.masked_fill(masked_BL, self.mask_token_id),
            labels={"position": batch.position_BL, "document": batch.document_BL, "sample": sample_BL},
            visibility=self.visibility(batch.step, seed),
            n_keys=batch.ids_BL.shape[1],
            valid_BR=batch.valid_BL,
            sample_N=sample_N,
            row_N=at_N - position_N + mode.row(position_N),  # of the same document
            target_N=batch.ids_BL[sample_N, at_N],
            weight_N=weight_BL[sample_N, at_N],
            count=count,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion(MaskedDiffusionBase):
    """Pre-training as LLaDA's (arXiv 2502.09992): `sum over masked of CE / p`, divided by all tokens.

    Each sample draws t, uniform from 0 to 1; each of its tokens is masked with probability `p = (1 - eps) t + eps`.

    Attributes:
        random_length: share of the steps whose samples are cropped to a length drawn evenly from 1 to the longest.
    """

    random_length: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.random_length <= 1:
            raise UserError(f"random_length is {self.random_length}: give the share of steps to crop, from 0 to 1.")

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Draws whether and where to crop by the step, time and masks by the sample."""
        batch = self._cropped(batch, seed)
        masked_BL, probability_BL = self.draw_masks(batch, seed)
        return self.masked_inputs(batch, masked_BL, 1 / probability_BL, batch.count, seed)

    def _cropped(self, batch: Batch, seed: int) -> Batch:
        rng = generator("crop", seed, batch.step)
        crop, share = torch.rand(2, generator=rng, dtype=torch.float64).tolist()
        if crop >= self.random_length:
            return batch
        # Of its own length and not of the batch's, so that no sample depends on those beside it.
        length_B = batch.valid_BL.sum(1)
        kept_B1 = (share * length_B).long().unsqueeze(1) + 1
        valid_BL = batch.valid_BL & (torch.arange(batch.ids_BL.shape[1]) < kept_B1)
        return batch.replace(valid_BL=valid_BL).trimmed()


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusionTuning(MaskedDiffusionBase):
    """Fine-tuning as LLaDA's: `mean over samples of (sum over masked of CE / p) / tokens of the answer`.

    Only the answer is masked, the end tokens behind it included: so the network learns to stop. Of a conversation of
    several turns, one is drawn: its answer is the loss mask, and what comes after is left out.

    Attributes:
        length: each answer is padded with end tokens until the sample has this many tokens; None adds none.
        end_token_id: the end token; needed with `length`.
    """

    length: int | None = None
    end_token_id: int | None = None
    unit = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None and self.end_token_id is None:
            raise UserError(
                f"end_token_id is None beside the length {self.length}: give the token that ends an answer."
            )

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Draws turn, time and masks by the sample."""
        batch = self._one_answer(batch, seed)
        if self.length is not None:
            batch = self._ended(batch)
        masked_BL, probability_BL = self.draw_masks(batch, seed)
        answer_B1 = batch.loss_mask_BL.sum(1, keepdim=True)
        return self.masked_inputs(
            batch, masked_BL, 1 / (probability_BL * answer_B1), float(len(batch.ids_BL)), seed
        )  # fmt: skip

    def _one_answer(self, batch: Batch, seed: int) -> Batch:
        """Cut each sample behind one of its answers, which becomes the loss mask."""
        loss_mask_BL = torch.zeros_like(batch.loss_mask_BL)
        valid_BL = batch.valid_BL.clone()
        for row, (sample, _) in enumerate(batch.samples()):
            answers = _runs(batch.loss_mask_BL[row] & batch.valid_BL[row])
            if not answers:
                raise UserError(f"sample {sample} has no token to learn: give each sample an answer.")
            chosen = int(torch.randint(len(answers), (), generator=generator("turn", seed, sample)))
            begin, end = answers[chosen]
            loss_mask_BL[row, begin:end] = True
            valid_BL[row, end:] = False
        return batch.replace(loss_mask_BL=loss_mask_BL, valid_BL=valid_BL).trimmed()

    def _ended(self, batch: Batch) -> Batch:
        """Append end tokens to each answer, up to `length`."""
        assert self.length is not None
        assert self.end_token_id is not None
        longest = batch.ids_BL.shape[1]
        if longest > self.length:
            raise UserError(f"a sample has {longest} tokens, but length is {self.length}: raise it or leave it out.")
        batch = batch.padded(self.length)
        behind_BL = ~batch.valid_BL
        last_B1 = batch.valid_BL.sum(1, keepdim=True) - 1
        at_L = torch.arange(self.length)
        return batch.replace(
            ids_BL=batch.ids_BL.masked_fill(behind_BL, self.end_token_id),
            valid_BL=torch.ones_like(behind_BL),
            loss_mask_BL=batch.loss_mask_BL | behind_BL,
            document_BL=torch.where(behind_BL, batch.document_BL.gather(1, last_B1), batch.document_BL),
            position_BL=torch.where(
                behind_BL, batch.position_BL.gather(1, last_B1) + at_L - last_B1, batch.position_BL
            ),
        )


def _runs(mask_L: Tensor) -> list[tuple[int, int]]:
    """Where each run of true entries begins, and where it has ended."""
    edges_L = F.pad(mask_L.long(), (1, 1)).diff()
    begins, ends = (edges_L == 1).nonzero().flatten().tolist(), (edges_L == -1).nonzero().flatten().tolist()
    return list(zip(begins, ends, strict=True))
