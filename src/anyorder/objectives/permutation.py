"""Any order: each token from those before it in the order of its sample, by two streams.

Shape suffixes: B batch, L tokens of a sample, K query rows, R rows, N predictions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from anyorder.errors import UserError
from anyorder.model.modes import ANY_ORDER, Mode
from anyorder.objectives.inputs import Batch, Objective, TrainingInputs
from anyorder.objectives.schedules import Always, Schedule
from anyorder.orders.plan import GroupPlan
from anyorder.utils.annotations import check_fields
from anyorder.utils.rng import generator
from anyorder.visibility import documents, groups


@dataclass(frozen=True, kw_only=True)
class Permutation(Objective):
    """Mean of `-log p(token | groups before its own)` over predicted tokens (XLNet, arXiv 1906.08237).

    Tokens outside of the loss mask (a prompt) are one group, the first. Of each sample's other tokens the last in its
    order are predicted; those before them are read in that order. Packed documents do not see each other.

    Attributes:
        schedule: the order of each sample.
        predicted: share of the tokens in the loss mask that are predicted, rounded up. Each costs a row: with K of L
            tokens, a step costs about 1 + K / L of a step from left to right.

    Raises:
        UserError: the share is not above 0 and at most 1.
    """

    schedule: Schedule = field(default_factory=Always)
    predicted: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.predicted <= 1:
            raise UserError(f"predicted is {self.predicted}: give a share of the tokens above 0 and at most 1.")

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Any order."""
        return (ANY_ORDER,)

    def inputs(self, batch: Batch, seed: int) -> TrainingInputs:
        """Draws the order by the sample."""
        rows = self.plan(batch, seed).rows()
        index_BR = torch.cat((rows.content_BL, rows.query_BK), 1)
        query_valid_BK = rows.valid_BR[:, rows.n_keys :]
        sample_N, query_N = query_valid_BK.nonzero(as_tuple=True)
        target_BR = batch.ids_BL.gather(1, index_BR)
        return TrainingInputs(
            ids_BR=target_BR,
            labels={
                "position": batch.position_BL.gather(1, index_BR),
                "document": batch.document_BL.gather(1, index_BR),
                "rank": rows.labels["rank"],
                "stream": rows.labels["stream"],
            },
            visibility=groups() & documents(),
            n_keys=rows.n_keys,
            valid_BR=rows.valid_BR,
            sample_N=sample_N,
            row_N=query_N + rows.n_keys,
            target_N=target_BR[sample_N, query_N + rows.n_keys],
            weight_N=torch.ones(len(sample_N), dtype=torch.float64),
            count=float(len(sample_N)),
        )

    def plan(self, batch: Batch, seed: int) -> GroupPlan:
        """Draw the plan of these samples."""
        loss_mask_BL = batch.loss_mask_BL & batch.valid_BL
        rank_BL = torch.zeros(loss_mask_BL.shape, dtype=torch.int64)
        for row, (sample, _) in enumerate(batch.samples()):
            rng = generator("order", seed, sample)
            u = float(torch.rand((), generator=rng, dtype=torch.float64))
            order = self.schedule.order(batch.step, u)
            rank_BL[row, loss_mask_BL[row]] = order.groups(int(loss_mask_BL[row].sum()), rng) + 1
        plan = GroupPlan(rank_BL=rank_BL, given_BL=batch.valid_BL & ~loss_mask_BL, valid_BL=batch.valid_BL)
        return plan.predict_last([math.ceil(self.predicted * count - 1e-9) for count in loss_mask_BL.sum(1).tolist()])
