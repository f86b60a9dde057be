"""What all objectives share: samples in, and out come the rows, who sees whom, what is predicted and how it counts.

An objective knows no network. It makes a `Lesson` of a `Batch`, on the CPU and without weights, so that it can be
tested by hand and made ahead by the workers that load data; `summed_loss` lets a network take it.

Shape suffixes: B batch, L tokens of a sample, R rows, E hidden size, N predictions of the whole batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.visibility import Visibility
from anyorder.ways import Way

if TYPE_CHECKING:
    from anyorder.model.llama import Llama


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples of a step, padded on the right.

    Attributes:
        ids_BL: token ids, int64; any id where there is padding.
        valid_BL: which entries are tokens, boolean.
        learnt_BL: which tokens may be predicted, boolean: all in pre-training, the answer (with the end tokens behind
            it) in fine-tuning.
        document_BL: number of each token's document within its sample; all 0 unless documents are packed.
        position_BL: position of each token within its document.
        sample_B: number of each sample since training began, never used twice: it decides the sample's draws.
        step: number of the optimizer step, from 0: it decides what is drawn once a step, and how far schedules are.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    learnt_BL: Tensor
    document_BL: Tensor
    position_BL: Tensor
    sample_B: Tensor
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What the network reads, and what it is to predict.

    Attributes:
        ids_BR: token ids of the rows, int64. Rows behind the first `n_keys` are query rows, whose ids are not read.
        labels: of each row, each int64 `[batch, rows]`, "position" among them.
        visibility: who sees whom.
        n_keys: the first `n_keys` rows are read from tokens and offer keys; the others only look.
        valid_BR: which rows are no padding, boolean.
        sample_N, row_N: the rows whose logits count, by sample in the batch and by row.
        target_N: the token that each of them predicts.
        weight_N: what its cross-entropy is multiplied by.
        count: what the sum is divided by. It adds up over batches, so that the loss of several is that of one large
            batch.
    """

    ids_BR: Tensor
    labels: Mapping[str, Tensor]
    visibility: Visibility
    n_keys: int
    valid_BR: Tensor
    sample_N: Tensor
    row_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    count: float

    def to(self, device: torch.device) -> Lesson:
        """The same on another device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        labels = {name: label.to(device, non_blocking=True) for name, label in self.labels.items()}
        return dataclasses.replace(self, labels=labels, **moved)  # type: ignore[arg-type]


class Objective(ABC):
    """Turns samples into lessons, with draws that depend on (seed, sample) or (seed, step) alone."""

    @property
    @abstractmethod
    def ways(self) -> tuple[Way, ...]:
        """The ways of writing that it teaches."""

    @abstractmethod
    def lesson(self, batch: Batch, seed: int) -> Lesson:
        """What the network reads and predicts for these samples."""


def summed_loss(model: Llama, lesson: Lesson) -> Tensor:
    """Weighted cross-entropies in nats, summed: a scalar. Divided by `lesson.count`, it is the objective's loss.

    The vocabulary is projected on the rows alone that predict something.
    """
    views = model.prepare(lesson.visibility, lesson.labels, n_keys=lesson.n_keys, valid=lesson.valid_BR)
    rows_BRE = model.model.embed_tokens(lesson.ids_BR[:, : lesson.n_keys])
    if lesson.n_keys < lesson.ids_BR.shape[1]:
        assert model.query_rows is not None, "a network without query rows was refused before"
        queries_BKE = model.query_rows(lesson.labels["position"][:, lesson.n_keys :])
        rows_BRE = torch.cat((rows_BRE, queries_BKE.to(rows_BRE.dtype)), 1)
    hidden_NE = model.read(rows_BRE, views)[lesson.sample_N, lesson.row_N]
    logits_NV = model.logits(hidden_NE)
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    nats_N = F.cross_entropy(wide_NV, lesson.target_N, reduction="none")
    return (nats_N * lesson.weight_N).sum()
