"""From prepared rows to training inputs: the order of the samples, and their numbers, which decide all random draws.

Shape suffixes: B batch, L tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from anyorder.data.collate import collate
from anyorder.errors import UserError
from anyorder.objectives import Batch, Objective, TrainingInputs
from anyorder.objectives.inputs import begins
from anyorder.utils import rng

Row = Mapping[str, Any]
"""A row of prepared data: `input_ids`, and `document` or `prompt_length` and `turns`."""


class Rows(Protocol):
    """Rows that can be counted and looked up, such as a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class TensorRows:
    """Rows of a tensor int64 `[rows, length]`, each one document."""

    def __init__(self, ids_NL: Tensor) -> None:
        self.ids_NL = ids_NL

    def __len__(self) -> int:
        return len(self.ids_NL)

    def __getitem__(self, index: int) -> Row:
        return {"input_ids": self.ids_NL[index].tolist()}


class Samples(Dataset):
    """All samples of a training, one after the other: rows in an order drawn anew for each epoch.

    Sample n is the same whatever the batch, the number of processes and where training was resumed.

    Args:
        rows: the data.
        total: samples of the whole training.
        seed: decides the orders.
        shuffle: False takes the rows as they are, as for validation.
    """

    def __init__(self, rows: Rows, total: int, seed: int, *, shuffle: bool = True) -> None:
        self.rows = rows
        self.total = total
        self.seed = seed
        self.shuffle = shuffle
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> Row:
        epoch, index = divmod(number, len(self.rows))
        if self.shuffle:
            if self._order[0] != epoch:
                source = rng.generator("epoch", self.seed, epoch)
                self._order = (epoch, torch.randperm(len(self.rows), generator=source))
            index = int(self._order[1][index])
        return {**self.rows[index], "sample": number}


class StreamedSamples(IterableDataset):
    """The samples of a training whose rows are made while they are read: as they come, and again from the first one.

    Args:
        rows: the data, which may be gone through several times.
        total: samples of the whole training.
    """

    def __init__(self, rows: Iterable[Row], total: int) -> None:
        self.rows = rows
        self.total = total

    def __iter__(self) -> Iterator[Row]:
        number = 0
        while number < self.total:
            before = number
            for row in self.rows:
                if number == self.total:
                    return
                yield {**row, "sample": number}
                number += 1
            if number == before:
                raise UserError("the data have 0 rows: give more text, or a shorter length.")


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Collates samples into `{"inputs": TrainingInputs}`; runs where data are loaded, which needs no network.

    Attributes:
        objective: makes the training inputs.
        seed: with the numbers of sample and step, decides all draws.
        samples_per_step: of an optimizer step, over all processes; from it follows the step of a sample.
    """

    objective: Objective
    seed: int
    samples_per_step: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, TrainingInputs]:
        """The training inputs of these samples."""
        batch = make_batch(rows)
        step = int(batch.sample_B[0]) // self.samples_per_step
        return {"inputs": self.objective.inputs(batch.replace(step=step), self.seed)}


def make_batch(rows: Sequence[Row]) -> Batch:
    """Rows of prepared data as tensors; positions begin anew with each packed document."""
    columns = collate(rows)
    ids_BL, valid_BL = columns["input_ids"], columns["valid"]
    index_BL = torch.arange(ids_BL.shape[1]).expand_as(ids_BL)
    document_BL = columns.get("document", torch.zeros_like(ids_BL))
    position_BL = index_BL - torch.where(begins(document_BL), index_BL, 0).cummax(1).values
    loss_mask_BL = valid_BL
    if "turns" in columns:
        begin_BT1, end_BT1 = columns["turns"].unsqueeze(2).unbind(-1)
        loss_mask_BL = ((begin_BT1 <= index_BL.unsqueeze(1)) & (index_BL.unsqueeze(1) < end_BT1)).any(1)
    return Batch(
        ids_BL=ids_BL, valid_BL=valid_BL, loss_mask_BL=loss_mask_BL, document_BL=document_BL, position_BL=position_BL,
        sample_B=columns["sample"],
    )  # fmt: skip
